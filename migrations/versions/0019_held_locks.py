"""Who holds a lock for longer than a transaction, and which listeners look by themselves: for those behind a pooler.

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# Who writes trainings also holds their lock, and who writes trainings or sees how jobs are sees listeners.
_WORKERS = """
SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = 'outlier.training_runs'::regclass AND a.privilege_type = 'INSERT'
    AND a.grantee <> 0 AND a.grantee <> c.relowner
"""
_MONITORS = """
SELECT DISTINCT a.grantee::regrole::text FROM pg_attribute c, aclexplode(c.attacl) a
WHERE c.attrelid = 'outlier.job_ranges'::regclass AND c.attname = 'n_done' AND a.privilege_type = 'SELECT'
    AND a.grantee <> 0
"""


def upgrade() -> None:
    op.create_table(
        "held_locks",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="what for: training, webhook"),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "until",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="a lease is free from then on; infinity: it is held as long as a session has the advisory lock",
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("held_locks_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_id", "name", name=op.f("held_locks_pkey")),
        schema="outlier",
    )
    op.create_table(
        "listeners",
        sa.Column("name", sa.Text(), nullable=False, comment="host:process id"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "looked_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it last looked into the queues, within some seconds",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("listeners_pkey")),
        schema="outlier",
    )
    for role in op.get_bind().execute(sa.text(_WORKERS)).scalars().all():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.held_locks, outlier.listeners TO {role}")
    for role in op.get_bind().execute(sa.text(_MONITORS)).scalars().all():
        op.execute(f"GRANT SELECT ON outlier.listeners TO {role}")


def downgrade() -> None:
    op.drop_table("listeners", schema="outlier")
    op.drop_table("held_locks", schema="outlier")
