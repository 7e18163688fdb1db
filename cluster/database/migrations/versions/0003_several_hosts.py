"""Several machines: where files are kept, and which dispatcher leads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
STEPS = ("step", "saved_step")


def upgrade() -> None:
    """Add what is new; files stay beside the database, and nobody leads."""
    with op.batch_alter_table("queue") as queue:
        queue.add_column(sa.Column("files", sa.Text))
        queue.add_column(sa.Column("epoch", sa.Integer, nullable=False, server_default="0"))
        queue.add_column(sa.Column("holder", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "lease",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("leader", sa.Text, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.execute("INSERT INTO lease VALUES (1, '', '', 0)")
    if op.get_context().dialect.name != "sqlite":  # whose integers have 64 bits
        with op.batch_alter_table("attempts") as attempts:
            for name in STEPS:
                attempts.alter_column(name, type_=sa.BigInteger)


def downgrade() -> None:
    """Drop what is new; a queue that keeps its files elsewhere finds them no more."""
    op.drop_table("lease")
    with op.batch_alter_table("queue") as queue:
        for name in ("files", "epoch", "holder"):
            queue.drop_column(name)
