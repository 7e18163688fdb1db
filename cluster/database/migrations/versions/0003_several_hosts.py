"""Several machines: where files are kept, and which dispatcher leads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; files stay beside the database, and nobody leads."""
    with op.batch_alter_table("queue") as queue:
        queue.add_column(sa.Column("files", sa.Text))
        queue.add_column(sa.Column("epoch", sa.Integer, nullable=False, server_default="0"))
        queue.add_column(sa.Column("leader", sa.Text, nullable=False, server_default=""))
        queue.add_column(sa.Column("lease_until", sa.Float, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop the columns; a queue that keeps its files elsewhere finds them no more."""
    with op.batch_alter_table("queue") as queue:
        for name in ("files", "epoch", "leader", "lease_until"):
            queue.drop_column(name)
