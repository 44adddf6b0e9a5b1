"""How far the sweep and the prune of each source have come, since they look at a part of the keys at a time.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Who works on jobs also sweeps and prunes, and goes on doing so.
_WORKERS = """
SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = 'outlier.jobs'::regclass AND a.privilege_type = 'UPDATE' AND a.grantee <> 0 AND a.grantee <> c.relowner
"""


def upgrade() -> None:
    op.create_table(
        "upkeep_places",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False, comment="sweep, or what is pruned"),
        sa.Column(
            "place",
            sa.Text(),
            nullable=True,
            comment="the key, as text, that it goes on after; null: at the first",
        ),
        sa.Column(
            "seen_to",
            sa.Text(),
            nullable=True,
            comment="key or time, as text, after which rows were new to the last look",
        ),
        sa.Column("looked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "turn_began_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="since when it goes through all keys",
        ),
        sa.Column(
            "turn_ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when it had last been through all of them",
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("upkeep_places_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_id", "task", name=op.f("upkeep_places_pkey")),
        schema="outlier",
    )
    for role in op.get_bind().execute(sa.text(_WORKERS)).scalars().all():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.upkeep_places TO {role}")


def downgrade() -> None:
    op.drop_table("upkeep_places", schema="outlier")
