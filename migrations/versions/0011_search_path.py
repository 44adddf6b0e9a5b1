"""The search_path of a session of ours around triggers of the user's on tables that we write.

Our sessions look for names in pg_catalog alone, and say by outlier.session that they are ours; triggers of the user's,
on scores for instance, find names as in any other session of the role. Sessions of others are left as they are.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
CREATE FUNCTION outlier.begin_users_path() RETURNS trigger LANGUAGE plpgsql AS $outlier$
BEGIN
    IF pg_catalog.current_setting('outlier.session', true) OPERATOR(pg_catalog.=) 'on' THEN
        SET LOCAL search_path TO DEFAULT;
    END IF;
    RETURN NULL;
END
$outlier$""")
    op.execute("""
CREATE FUNCTION outlier.end_users_path() RETURNS trigger LANGUAGE plpgsql AS $outlier$
BEGIN
    IF pg_catalog.current_setting('outlier.session', true) OPERATOR(pg_catalog.=) 'on' THEN
        SET LOCAL search_path TO pg_catalog, pg_temp;
    END IF;
    RETURN NULL;
END
$outlier$""")


def downgrade() -> None:
    op.execute("DROP FUNCTION outlier.begin_users_path() CASCADE")
    op.execute("DROP FUNCTION outlier.end_users_path() CASCADE")
