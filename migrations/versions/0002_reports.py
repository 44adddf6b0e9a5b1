"""Reports of trainings, and how the training rows of a version are spread, to tell drift by.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "model_versions",
        sa.Column(
            "drift_reference",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="detector.drift.Reference: how its training rows are spread",
        ),
        schema="outlier",
    )
    op.create_table(
        "model_reports",
        sa.Column("model_version_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "page",
            sa.LargeBinary(),
            nullable=False,
            comment="the HTML of the training's report, compressed by gzip",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["outlier.model_versions.id"],
            name=op.f("model_reports_model_version_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_version_id", name=op.f("model_reports_pkey")),
        schema="outlier",
    )


def downgrade() -> None:
    op.drop_table("model_reports", schema="outlier")
    op.drop_column("model_versions", "drift_reference", schema="outlier")
