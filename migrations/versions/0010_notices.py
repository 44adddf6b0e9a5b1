"""Notices of rows that became flagged, and the webhooks that they are delivered to.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# What whoever is told may see: not how far the delivery is. A row that is deleted meanwhile keeps its notice.
_FLAGGED_NOTICES = """
CREATE VIEW outlier.flagged_notices AS
SELECT id, source, key, reconstruction_error, threshold, model_version, scored_at, top_features, xact_id
FROM outlier.notices
"""


def _time(name: str, *, nullable: bool = False, comment: str | None = None) -> sa.Column[object]:
    default = None if nullable else sa.text("now()")
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=nullable, comment=comment
    )


def _by() -> sa.Column[object]:
    return sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False)


def _id() -> sa.Column[object]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def _of(table: str, column: str, referred: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"outlier.{referred}"], name=op.f(f"{table}_{column}_fkey"), ondelete="CASCADE"
    )


def upgrade() -> None:
    _notices()
    _webhooks()
    _deliveries()


def _notices() -> None:
    op.create_table(
        "notices",
        _id(),
        sa.Column("source", sa.Text(), nullable=False, comment="name of the source"),
        sa.Column("key", sa.Text(), nullable=False, comment="the row's key, as text"),
        sa.Column("reconstruction_error", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True, comment="that of the model version"),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("top_features", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "xact_id",
            sa.BigInteger(),
            server_default=sa.text("((pg_current_xact_id())::text)::bigint"),
            nullable=False,
            comment="the transaction that flagged the row",
        ),
        _time("created_at"),
        sa.Column("waits", sa.Boolean(), nullable=False, comment="for a delivery to put it into"),
        sa.Column(
            "delivery_id",
            sa.Uuid(),
            nullable=True,
            comment="the delivery that it was put into: the webhook-id",
        ),
        _time("delivered_at", nullable=True),
        _of("notices", "source", "sources.name"),
        sa.PrimaryKeyConstraint("id", name=op.f("notices_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("notices_source_id_idx"),
        "notices",
        ["source", "id"],
        schema="outlier",
        postgresql_where=sa.text("waits"),
    )
    op.create_index(op.f("notices_source_xact_id_idx"), "notices", ["source", "xact_id"], schema="outlier")
    op.create_index(
        op.f("notices_delivery_id_idx"),
        "notices",
        ["delivery_id"],
        schema="outlier",
        postgresql_where=sa.text("delivery_id IS NOT NULL"),
    )
    op.execute(_FLAGGED_NOTICES)


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column(
            "source", sa.Text(), nullable=False, comment="name of the source, for which notices are on"
        ),
        sa.Column("url", sa.Text(), nullable=True, comment="null: notices are written and nothing is sent"),
        sa.Column("insecure_http", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("per_minute", sa.Integer(), server_default=sa.text("60"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        _time(
            "not_before",
            nullable=True,
            comment="the next request is not sent earlier: by the limit, or because the last one failed",
        ),
        sa.Column("problem", sa.Text(), nullable=True, comment="why nothing is delivered, if so"),
        _time("created_at"),
        _by(),
        sa.CheckConstraint(
            "url ~ '^https?://[^/?#@[:space:]]+([/?][^[:space:]]*)?$'",
            name=op.f("webhooks_url_form_check"),
        ),
        sa.CheckConstraint("per_minute BETWEEN 1 AND 6000", name=op.f("webhooks_per_minute_in_range_check")),
        _of("webhooks", "source", "sources.name"),
        sa.PrimaryKeyConstraint("source", name=op.f("webhooks_pkey")),
        schema="outlier",
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column(
            "id",
            sa.Uuid(),
            server_default=sa.text("gen_random_uuid()"),
            nullable=False,
            comment="the webhook-id",
        ),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("n_notices", sa.Integer(), nullable=False),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="requests begun",
        ),
        _time("not_before", nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        _time("created_at"),
        _of("deliveries", "source", "webhooks.source"),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("deliveries_source_created_at_idx"), "deliveries", ["source", "created_at"], schema="outlier"
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.Uuid(), nullable=False, comment="that of the delivery"),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("n_notices", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when the delivery was made",
        ),
        _time("died_at"),
        _of("dead_letters", "source", "webhooks.source"),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("dead_letters_source_died_at_idx"), "dead_letters", ["source", "died_at"], schema="outlier"
    )


def downgrade() -> None:
    _drop_triggers()
    op.execute("DROP VIEW outlier.flagged_notices")
    for table in ("dead_letters", "deliveries", "webhooks", "notices"):
        op.drop_table(table, schema="outlier")


def _drop_triggers() -> None:
    """They would keep every score from being written."""
    names = op.get_bind().execute(sa.text("SELECT name FROM outlier.sources ORDER BY name")).scalars().all()
    quoted = op.get_bind().dialect.identifier_preparer.quote_identifier
    for name in names:
        for event in ("insert", "update"):
            op.execute(f"DROP FUNCTION IF EXISTS outlier.{quoted(f'notice_{event}_{name}')}() CASCADE")
