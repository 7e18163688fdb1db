"""Many jobs at once: queues, users, placements, what an attempt says and what is asked of it."""

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"

STATES_BEFORE = "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')"
STATES = "state IN ('queued', 'starting', 'running', 'succeeded', 'failed', 'cancelled')"
DRIVER_BEFORE = '{"resources": {"memory": 536870912}}'


def _altered_jobs() -> AbstractContextManager[BatchOperations]:
    """SQLite makes a table with other constraints anew."""
    sqlite = op.get_context().dialect.name == "sqlite"
    return op.batch_alter_table(
        "jobs", recreate="always" if sqlite else "never", table_kwargs={"sqlite_autoincrement": True}
    )


def upgrade() -> None:
    """Add what jobs and attempts now have, with the values that those from before behave as, and the queues."""
    with _altered_jobs() as jobs:
        jobs.drop_constraint("job_state", type_="check")
        jobs.create_check_constraint("job_state", STATES)
        jobs.add_column(sa.Column("driver", sa.JSON, nullable=False, server_default=DRIVER_BEFORE))
        jobs.add_column(sa.Column("user", sa.String(100), nullable=False, server_default="unknown"))
        jobs.add_column(sa.Column("queue", sa.String(100), nullable=False, server_default="default"))
        jobs.add_column(sa.Column("max_runtime_s", sa.Float))
        jobs.add_column(sa.Column("at_the_limit", sa.String(10), nullable=False, server_default="requeue"))
        jobs.add_column(sa.Column("retries", sa.Integer, nullable=False, server_default="2"))
        jobs.add_column(sa.Column("after", sa.JSON, nullable=False, server_default="{}"))
        jobs.add_column(sa.Column("says_when", sa.Boolean, nullable=False, server_default=sa.false()))
        jobs.add_column(sa.Column("array_id", sa.Integer))
        jobs.add_column(sa.Column("array_index", sa.Integer))
        jobs.add_column(sa.Column("key", sa.String(200)))
        jobs.add_column(sa.Column("reason_code", sa.String(20), nullable=False, server_default=""))
        jobs.add_column(sa.Column("start_at", sa.Float))
        jobs.add_column(sa.Column("hold", sa.String(10)))
        jobs.add_column(sa.Column("problem", sa.Text, nullable=False, server_default=""))
        jobs.add_column(sa.Column("waiting_since", sa.Float, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("preemptions", sa.Integer, nullable=False, server_default="0"))
        jobs.create_index("ix_jobs_key", ["key"])
        jobs.create_index("ix_jobs_array_id", ["array_id"])
        jobs.create_index("ix_jobs_name", ["name"])
    with op.batch_alter_table("queue") as queue:
        queue.add_column(sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()))
        queue.add_column(sa.Column("nodes", sa.JSON, nullable=False, server_default="[]"))
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("placement", sa.JSON))
        attempts.add_column(sa.Column("cpus", sa.Float, nullable=False, server_default="0"))
        attempts.add_column(sa.Column("gpus", sa.Float, nullable=False, server_default="0"))
        attempts.add_column(sa.Column("share", sa.Float, nullable=False, server_default="0"))
        attempts.add_column(sa.Column("running_at", sa.Float))
        attempts.add_column(sa.Column("asked", sa.String(10)))
        attempts.add_column(sa.Column("asked_at", sa.Float))
        attempts.add_column(sa.Column("asked_reason", sa.Text, nullable=False, server_default=""))
        attempts.add_column(sa.Column("asked_by", sa.Integer))
        attempts.add_column(sa.Column("heard_at", sa.Float))
        attempts.add_column(sa.Column("step", sa.Integer))
        attempts.add_column(sa.Column("saved_step", sa.Integer))
        attempts.create_index("ix_attempts_ended_at", ["ended_at"])
    op.execute("UPDATE attempts SET running_at = began_at WHERE confirmed")
    op.execute("UPDATE jobs SET waiting_since = submitted_at")
    op.create_table(
        "queues",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("guaranteed", sa.Float, nullable=False),
        sa.Column("maximum", sa.Float, nullable=False),
        sa.Column("max_running", sa.Integer),
        sa.Column("max_running_per_user", sa.Integer),
        sa.Column("max_priority", sa.Integer),
        sa.Column("usage", sa.Float, nullable=False),
        sa.Column("usage_at", sa.Float, nullable=False),
    )
    op.execute("INSERT INTO queues VALUES ('default', 1, 0, 1, NULL, NULL, NULL, 0, 0)")


def downgrade() -> None:
    """Drop what version 0001 does not know; a starting job is a running one there."""
    op.drop_table("queues")
    with op.batch_alter_table("queue") as queue:
        queue.drop_column("draining")
        queue.drop_column("nodes")
    op.execute("UPDATE jobs SET state = 'running' WHERE state = 'starting'")
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_index("ix_attempts_ended_at")
        for name in (
            "placement", "cpus", "gpus", "share", "running_at", "asked", "asked_at", "asked_reason", "asked_by",
            "heard_at", "step", "saved_step",
        ):  # fmt: skip
            attempts.drop_column(name)
    with _altered_jobs() as jobs:
        jobs.drop_index("ix_jobs_key")
        jobs.drop_index("ix_jobs_name")
        jobs.drop_index("ix_jobs_array_id")
        jobs.drop_constraint("job_state", type_="check")
        jobs.create_check_constraint("job_state", STATES_BEFORE)
        for name in (
            "driver", "user", "queue", "max_runtime_s", "at_the_limit", "retries", "after", "says_when", "key",
            "array_id", "array_index", "reason_code", "start_at", "hold", "problem",
            "waiting_since", "preemptions",
        ):  # fmt: skip
            jobs.drop_column(name)
