"""`python -m trainer.tracking.database URI`: make MLflow's SQLite database, whole or not at all.

MLflow migrates a new database step by step, and one whose first migration was killed is of no use to it, ever. So it is
made under another name, and gets its own once it is complete. The local stack's server is started behind this command.
"""

import sys
from pathlib import Path

from diffusion import durable
from trainer.files import file_lock
from trainer.tracking.client import mlflow_environment

TIMEOUT_S = 120.0


def make_database(tracking_uri: str) -> None:
    """Make the database at `sqlite:///FILE`, unless there is one."""
    from sqlalchemy import make_url

    file = Path(make_url(tracking_uri).database or "").absolute()
    if file.exists():
        return
    with file_lock(file.with_name(f"{file.name}.lock"), f"{file}: another process is making it", TIMEOUT_S):
        if file.exists():
            return
        mlflow_environment()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with durable.replacing(file) as temporary:
            store = SqlAlchemyStore(f"sqlite:///{temporary}", f"file://{file.parent}/mlflow-artifacts")
            store.engine.dispose()


if __name__ == "__main__":
    make_database(sys.argv[1])
