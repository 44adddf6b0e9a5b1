"""What happens to a version that was trained, and what is needed to repeat a training.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _of_runs() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("recipe_hash", sa.Text(), nullable=True, comment="SHA-256 of the recipe"),
        sa.Column(
            "data_fingerprint",
            sa.Text(),
            nullable=True,
            comment="SHA-256 of the rows that were read, and which of them are normal",
        ),
        sa.Column(
            "window_from", sa.Text(), nullable=True, comment="first key or event time of the normal rows"
        ),
        sa.Column("window_to", sa.Text(), nullable=True),
        sa.Column(
            "n_scored_before",
            sa.BigInteger(),
            nullable=True,
            comment="scores ever written when it began, by PostgreSQL's statistics",
        ),
    )


def upgrade() -> None:
    op.add_column(
        "sources",
        sa.Column(
            "promotion",
            sa.Text(),
            server_default=sa.text("'manual'"),
            nullable=False,
            comment="what happens to a version that was trained: detector.gate",
        ),
        schema="outlier",
    )
    op.add_column(
        "sources", sa.Column("promotion_set_at", sa.DateTime(timezone=True), nullable=True), schema="outlier"
    )
    op.add_column("sources", sa.Column("promotion_set_by", sa.Text(), nullable=True), schema="outlier")
    op.create_check_constraint(
        op.f("sources_promotion_known_check"),
        "sources",
        "promotion in ('manual', 'if_better', 'always')",
        schema="outlier",
    )
    for column in _of_runs():
        op.add_column("training_runs", column, schema="outlier")


def downgrade() -> None:
    for column in reversed(_of_runs()):
        op.drop_column("training_runs", column.name, schema="outlier")
    op.drop_constraint(op.f("sources_promotion_known_check"), "sources", schema="outlier", type_="check")
    for name in ("promotion_set_by", "promotion_set_at", "promotion"):
        op.drop_column("sources", name, schema="outlier")
