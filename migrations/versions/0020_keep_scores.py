"""How long scores are kept, and what they are partitioned by, are said in the definition of a source.

Nothing is to be done: a source of before says neither. The functions for partitions are made for each source, see
db.ddl.partition_objects.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

from alembic import op

from pgoutlier.db.errors import SchemaNotReady

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    # The program of before would delete scores of other partitions, and score anew what has gone on purpose.
    _refuse("score_partitions", "are partitioned", "detach each first, which drops its scores and versions")
    _refuse(
        "keep_scores_days", "are kept for some days", "attach each again with --keep-scores forever first"
    )
    # It knows no such fields.
    op.execute(
        "UPDATE outlier.sources SET definition = definition - 'score_partitions' - 'keep_scores_days'"
        " WHERE definition ?| '{score_partitions,keep_scores_days}'"
    )


def _refuse(field: str, are: str, mend: str) -> None:
    found = op.get_bind().exec_driver_sql(
        f"SELECT name FROM outlier.sources WHERE definition ->> '{field}' IS NOT NULL ORDER BY name"  # noqa: S608
    )
    names = ", ".join(found.scalars().all())
    if names:
        raise SchemaNotReady(f"Scores of {names} {are}, which the version before does not know; {mend}.")
