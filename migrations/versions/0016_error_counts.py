"""How many scores there are of which error, by day and version: counted by the sweep as it goes through all keys.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TABLES = ("error_counts", "error_turns")
# Who works on jobs also sweeps, and goes on doing so.
_WORKERS = """
SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = 'outlier.jobs'::regclass AND a.privilege_type = 'UPDATE' AND a.grantee <> 0 AND a.grantee <> c.relowner
"""


def upgrade() -> None:
    op.create_table(
        "error_turns",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column(
            "by_event_time",
            sa.Boolean(),
            nullable=False,
            comment="days are those of the time column; false: of scored_at",
        ),
        sa.Column("place", sa.Text(), nullable=True, comment="the key, as text, up to which it has counted"),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True, comment="null: it is under way"),
        sa.ForeignKeyConstraint(
            ["source_id"], ["outlier.sources.id"], name=op.f("error_turns_source_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("error_turns_pkey")),
        schema="outlier",
    )
    op.create_index(op.f("error_turns_source_id_idx"), "error_turns", ["source_id"], schema="outlier")
    op.create_table(
        "error_counts",
        sa.Column("turn_id", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column(
            "day", sa.DateTime(timezone=True), nullable=True, comment="its begin in UTC; null: no time"
        ),
        sa.Column("n_rows", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "bins",
            postgresql.ARRAY(sa.SmallInteger()),
            nullable=False,
            comment="n: errors above 2^(n/16), up to 2^((n+1)/16)",
        ),
        sa.Column(
            "flagged", postgresql.ARRAY(sa.Boolean()), nullable=False, comment="of the rows of each bin"
        ),
        sa.Column("counts", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column(
            "labelled",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            comment="of them with a label and without a verdict",
        ),
        sa.Column(
            "fraud", postgresql.ARRAY(sa.Integer()), nullable=False, comment="of those labelled as fraud"
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"],
            ["outlier.error_turns.id"],
            name=op.f("error_counts_turn_id_fkey"),
            ondelete="CASCADE",
        ),
        schema="outlier",
    )
    op.create_index(
        op.f("error_counts_turn_id_model_version_day_idx"),
        "error_counts",
        ["turn_id", "model_version", "day"],
        schema="outlier",
    )
    for role in op.get_bind().execute(sa.text(_WORKERS)).scalars().all():
        for table in _TABLES:
            op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.{table} TO {role}")


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table, schema="outlier")
