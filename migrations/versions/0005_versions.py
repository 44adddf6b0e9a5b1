"""Challengers and their moves, tags of versions, and what else becomes of a version.

The tables of shadow scores are made for each source, see db.source_ddl.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ACTION_KNOWN = "alias_events_action_known_check"


def upgrade() -> None:
    op.drop_constraint(op.f(_ACTION_KNOWN), "alias_events", schema="outlier", type_="check")
    op.create_check_constraint(
        op.f(_ACTION_KNOWN),
        "alias_events",
        "action in ('promote', 'rollback', 'challenge', 'clear')",
        schema="outlier",
    )
    op.add_column(
        "model_aliases",
        sa.Column("problem", sa.Text(), nullable=True, comment="why a challenger does not score, if so"),
        schema="outlier",
    )
    op.add_column(
        "model_aliases",
        sa.Column(
            "paused_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="a challenger that failed is left alone until then",
        ),
        schema="outlier",
    )
    op.add_column(
        "model_versions",
        sa.Column(
            "imported_from",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="models_store.version_file.Origin: which version of which source it was",
        ),
        schema="outlier",
    )
    op.create_table(
        "model_tags",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint(
            "tag ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name=op.f("model_tags_tag_form_check")
        ),
        sa.ForeignKeyConstraint(
            ["source_id", "version"],
            ["outlier.model_versions.source_id", "outlier.model_versions.version"],
            name=op.f("model_tags_source_id_version_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_id", "version", "tag", name=op.f("model_tags_pkey")),
        schema="outlier",
    )
    op.create_table(
        "version_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint(
            "action in ('tag', 'untag', 'prune', 'export', 'import')",
            name=op.f("version_events_action_known_check"),
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("version_events_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("version_events_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("version_events_source_id_id_idx"),
        "version_events",
        ["source_id", "id"],
        unique=False,
        schema="outlier",
    )


def downgrade() -> None:
    _drop_shadows()
    op.execute("DELETE FROM outlier.model_aliases WHERE alias = 'challenger'")
    op.execute("DELETE FROM outlier.alias_events WHERE alias = 'challenger'")
    op.drop_index(op.f("version_events_source_id_id_idx"), table_name="version_events", schema="outlier")
    op.drop_table("version_events", schema="outlier")
    op.drop_table("model_tags", schema="outlier")
    op.drop_column("model_versions", "imported_from", schema="outlier")
    op.drop_column("model_aliases", "paused_until", schema="outlier")
    op.drop_column("model_aliases", "problem", schema="outlier")
    op.drop_constraint(op.f(_ACTION_KNOWN), "alias_events", schema="outlier", type_="check")
    op.create_check_constraint(
        op.f(_ACTION_KNOWN), "alias_events", "action in ('promote', 'rollback')", schema="outlier"
    )


def _drop_shadows() -> None:
    """The program of the revision before knows nothing of them, and could not detach the sources."""
    names = op.get_bind().execute(sa.text("SELECT name FROM outlier.sources ORDER BY name")).scalars().all()
    quoted = op.get_bind().dialect.identifier_preparer.quote_identifier
    for name in names:
        op.execute(f"DROP VIEW IF EXISTS outlier.{quoted(f'comparison_{name}')}")
        op.execute(f"DROP VIEW IF EXISTS outlier.{quoted(f'compared_{name}')}")
        op.execute(f"DROP TABLE IF EXISTS outlier.{quoted(f'shadow_scores_{name}')}")
