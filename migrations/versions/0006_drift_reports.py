"""Drift of each source, measured on schedule.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drift_reports",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="the champion that had scored the rows"),
        sa.Column("measured_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("n_rows", sa.BigInteger(), nullable=False, comment="rows it was measured on, the newest"),
        sa.Column(
            "features",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="feature, psi and limit of each, the largest psi first",
        ),
        sa.Column("error_psi", sa.Double(), nullable=True, comment="PSI of the reconstruction error"),
        sa.Column("error_limit", sa.Double(), nullable=True),
        sa.Column("flag_rate", sa.Double(), nullable=True, comment="share of the rows that are flagged"),
        sa.Column(
            "expected_flag_rate",
            sa.Double(),
            nullable=True,
            comment="that of the first report of the version",
        ),
        sa.Column(
            "quarantine_rate",
            sa.Double(),
            nullable=False,
            comment="share of the newest rows that are in quarantine",
        ),
        sa.Column("drifted", sa.Boolean(), nullable=False, comment="whether anything is beyond its limit"),
        sa.Column(
            "reasons",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="a sentence for each that is",
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("drift_reports_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("drift_reports_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("drift_reports_source_id_id_idx"),
        "drift_reports",
        ["source_id", "id"],
        unique=False,
        schema="outlier",
    )


def downgrade() -> None:
    op.drop_table("drift_reports", schema="outlier")
