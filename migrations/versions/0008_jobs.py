"""Jobs over rows that are there already, in ranges of keys; versions that differ in the threshold only; who did what
with a source.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_EVENTS = "version_events_action_known_check"
_KNOWN = "'tag', 'untag', 'prune', 'export', 'import'"


def _created(name: str = "created_at") -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _by() -> sa.Column[object]:
    return sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False)


def _count(name: str, comment: str | None = None) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment)


def upgrade() -> None:
    op.add_column(
        "model_versions",
        sa.Column(
            "errors_of",
            sa.Integer(),
            nullable=True,
            comment="the version whose detector it is, and so whose errors: they differ in the threshold only",
        ),
        schema="outlier",
    )
    _allow_events(f"{_KNOWN}, 'threshold'")
    _jobs()
    _ranges()
    _events()
    _source_events()


def _allow_events(known: str) -> None:
    op.drop_constraint(op.f(_EVENTS), "version_events", schema="outlier", type_="check")
    op.create_check_constraint(op.f(_EVENTS), "version_events", f"action in ({known})", schema="outlier")


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "version",
            sa.Integer(),
            nullable=True,
            comment="that scores or flags the rows; null: the champion as it is then",
        ),
        sa.Column(
            "as_champion",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="it is to do so as the champion, so the job fails when that is another one",
        ),
        sa.Column("status", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True, comment="why it stands still or has failed"),
        _created(),
        _by(),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        sa.ForeignKeyConstraint(
            ["source_id"], ["outlier.sources.id"], name=op.f("jobs_source_id_fkey"), ondelete="CASCADE"
        ),
        sa.CheckConstraint("kind in ('backfill', 'rescore', 'reflag')", name=op.f("jobs_kind_known_check")),
        sa.CheckConstraint(
            "status in ('running', 'succeeded', 'failed', 'cancelled')", name=op.f("jobs_status_known_check")
        ),
        schema="outlier",
    )
    op.create_index(
        "jobs_running_idx",
        "jobs",
        ["source_id", "kind"],
        unique=True,
        schema="outlier",
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(op.f("jobs_source_id_id_idx"), "jobs", ["source_id", "id"], schema="outlier")


def _ranges() -> None:
    op.create_table(
        "job_ranges",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "first_key",
            sa.Text(),
            nullable=False,
            comment="the first and the last key of the range, as text",
        ),
        sa.Column("last_key", sa.Text(), nullable=False),
        sa.Column("n_keys", sa.BigInteger(), nullable=False, comment="when the job was made"),
        _count("n_done", "rows scored or flagged"),
        _count("n_flagged"),
        _count("n_quarantined"),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="after a failure"),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("job_ranges_pkey")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["outlier.jobs.id"], name=op.f("job_ranges_job_id_fkey"), ondelete="CASCADE"
        ),
        schema="outlier",
    )
    op.create_index(
        "job_ranges_unfinished_idx",
        "job_ranges",
        ["job_id", "number"],
        schema="outlier",
        postgresql_where=sa.text("finished_at IS NULL"),
    )


def _events() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        _created(),
        _by(),
        sa.PrimaryKeyConstraint("id", name=op.f("job_events_pkey")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["outlier.jobs.id"], name=op.f("job_events_job_id_fkey"), ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "action in ('start', 'cancel', 'resume')", name=op.f("job_events_action_known_check")
        ),
        schema="outlier",
    )
    op.create_index(op.f("job_events_job_id_id_idx"), "job_events", ["job_id", "id"], schema="outlier")


def _source_events() -> None:
    op.create_table(
        "source_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="name of the source"),
        sa.Column(
            "action", sa.Text(), nullable=False, comment="what was done, such as attach or keep_history"
        ),
        sa.Column("detail", sa.Text(), nullable=True),
        _created(),
        _by(),
        sa.PrimaryKeyConstraint("id", name=op.f("source_events_pkey")),
        schema="outlier",
    )
    op.create_index(op.f("source_events_source_id_idx"), "source_events", ["source", "id"], schema="outlier")


def downgrade() -> None:
    for table in ("source_events", "job_events", "job_ranges", "jobs"):
        op.drop_table(table, schema="outlier")
    op.execute("DELETE FROM outlier.version_events WHERE action = 'threshold'")
    _allow_events(_KNOWN)
    op.drop_column("model_versions", "errors_of", schema="outlier")
