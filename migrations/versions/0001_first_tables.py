"""The plugin-wide tables: sources, model registry, training runs and quarantine.

What `attach` makes for each source is not here, see db.source_ddl.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from pgoutlier.db.errors import SchemaNotReady

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sources",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "definition",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="db.sources.SourceDefinition",
        ),
        sa.Column(
            "recipe",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="detector.Recipe that new versions are trained with",
        ),
        sa.Column(
            "attached_xid",
            sa.BigInteger(),
            nullable=True,
            comment="rows written by older transactions are not swept up; null: they are",
        ),
        sa.Column("last_problem", sa.Text(), nullable=True, comment="why scoring stands still, if it does"),
        sa.Column("last_problem_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("sources_pkey")),
        sa.UniqueConstraint("name", name=op.f("sources_name_key")),
        schema="outlier",
    )
    op.create_table(
        "alias_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=True),
        sa.Column("to_version", sa.Integer(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint("action in ('promote', 'rollback')", name=op.f("alias_events_action_known_check")),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("alias_events_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("alias_events_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("alias_events_source_id_alias_id_idx"),
        "alias_events",
        ["source_id", "alias", "id"],
        unique=False,
        schema="outlier",
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("recipe_name", sa.Text(), nullable=False),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("feature_names", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "signature",
            sa.Text(),
            nullable=True,
            comment="HMAC-SHA-256 of the artifact, when a signing key was set",
        ),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column(
            "metrics",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("n_training_rows", sa.BigInteger(), nullable=False),
        sa.Column(
            "training_from", sa.Text(), nullable=True, comment="first key or event time of the training rows"
        ),
        sa.Column("training_to", sa.Text(), nullable=True),
        sa.Column(
            "parent_version",
            sa.Integer(),
            nullable=True,
            comment="the champion when this version was trained",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("model_versions_sha256_hex_check")),
        sa.CheckConstraint("version > 0", name=op.f("model_versions_version_positive_check")),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("model_versions_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("model_versions_pkey")),
        sa.UniqueConstraint("source_id", "version", name=op.f("model_versions_source_id_version_key")),
        schema="outlier",
    )
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False, comment="the row's key, as text"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("column_name", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column(
            "change_id",
            sa.BigInteger(),
            nullable=False,
            comment="queue id of the change that could not be scored",
        ),
        sa.Column(
            "quarantined_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "reason in ('null', 'nan', 'infinite', 'wrong_length', 'missing', 'error')",
            name=op.f("quarantine_reason_known_check"),
        ),
        sa.ForeignKeyConstraint(
            ["source_id"], ["outlier.sources.id"], name=op.f("quarantine_source_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("quarantine_pkey")),
        sa.UniqueConstraint("source_id", "key", name=op.f("quarantine_source_id_key_key")),
        schema="outlier",
    )
    op.create_index(
        op.f("quarantine_source_id_change_id_idx"),
        "quarantine",
        ["source_id", "change_id"],
        unique=False,
        schema="outlier",
    )
    op.create_table(
        "training_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("n_rows", sa.BigInteger(), nullable=True),
        sa.Column(
            "left_out",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="rows left out of training, by reason",
        ),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("n_epochs", sa.Integer(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("eta_seconds", sa.Double(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "versions",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="of Python, TensorFlow and pgoutlier",
        ),
        sa.Column("version", sa.Integer(), nullable=True, comment="the model version it made"),
        sa.Column("promoted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint(
            "status in ('running', 'succeeded', 'failed', 'abandoned')",
            name=op.f("training_runs_status_known_check"),
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["outlier.sources.id"],
            name=op.f("training_runs_source_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("training_runs_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("training_runs_source_id_id_idx"),
        "training_runs",
        ["source_id", "id"],
        unique=False,
        schema="outlier",
    )
    op.create_table(
        "model_aliases",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "alias in ('champion', 'challenger')", name=op.f("model_aliases_alias_known_check")
        ),
        sa.ForeignKeyConstraint(
            ["source_id", "version"],
            ["outlier.model_versions.source_id", "outlier.model_versions.version"],
            name=op.f("model_aliases_source_id_version_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_id", "alias", name=op.f("model_aliases_pkey")),
        schema="outlier",
    )


def downgrade() -> None:
    attached = (
        op.get_bind().execute(sa.text("SELECT name FROM outlier.sources ORDER BY name")).scalars().all()
    )
    if attached:
        raise SchemaNotReady(
            f"Sources are still attached ({', '.join(attached)}), and their triggers would fail without these"
            f" tables; detach them first: {'; '.join(f'pgoutlier detach {name}' for name in attached)}"
        )
    op.drop_table("model_aliases", schema="outlier")
    op.drop_index(op.f("training_runs_source_id_id_idx"), table_name="training_runs", schema="outlier")
    op.drop_table("training_runs", schema="outlier")
    op.drop_index(op.f("quarantine_source_id_change_id_idx"), table_name="quarantine", schema="outlier")
    op.drop_table("quarantine", schema="outlier")
    op.drop_table("model_versions", schema="outlier")
    op.drop_index(op.f("alias_events_source_id_alias_id_idx"), table_name="alias_events", schema="outlier")
    op.drop_table("alias_events", schema="outlier")
    op.drop_table("sources", schema="outlier")
