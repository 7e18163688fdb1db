"""`python -m trainer.tracking.database URI`: make MLflow's SQLite database, behind which a server is started."""

import sys

from trainer.tracking.client import make_database

if __name__ == "__main__":
    make_database(sys.argv[1])
