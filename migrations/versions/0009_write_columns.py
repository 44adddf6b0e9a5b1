"""Whether the columns that attach --write-columns adds to the user's table have every score.

The columns, and the triggers that write them, are made for each source, see db.write_back.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pgoutlier.db.errors import SchemaNotReady

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sources",
        sa.Column(
            "columns_filled_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the scores of before attach --write-columns were all in the columns of the table",
        ),
        schema="outlier",
    )


def downgrade() -> None:
    written = (
        op.get_bind()
        .execute(
            sa.text(
                "SELECT name FROM outlier.sources WHERE (definition ->> 'write_columns')::boolean ORDER BY name"
            )
        )
        .scalars()
        .all()
    )
    if written:
        raise SchemaNotReady(
            f"Scores are still written into the tables of {', '.join(written)}; attach each again with"
            " --no-write-columns first."
        )
    # The program of before knows no such field.
    op.execute("UPDATE outlier.sources SET definition = definition - 'write_columns'")
    op.drop_column("sources", "columns_filled_at", schema="outlier")
