"""Verdicts: what analysts say of rows, every word of it kept, and the view of those that hold now.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pgoutlier.db.errors import SchemaNotReady

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# SECURITY DEFINER: who gives a verdict need not be able to read outlier.sources.
_CHECK = """
CREATE FUNCTION outlier.check_verdict() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    key_type text;
BEGIN
    SELECT s.definition ->> 'key_type' INTO key_type FROM outlier.sources s WHERE s.name = NEW.source;
    IF NOT FOUND THEN
        RAISE foreign_key_violation USING MESSAGE = format('There is no source %s; sources: %s.', NEW.source,
            (SELECT coalesce(string_agg(s.name, ', ' ORDER BY s.name), 'none') FROM outlier.sources s));
    END IF;
    -- As PostgreSQL prints it, so that a key is one text however it was written.
    NEW.key := CASE key_type
        WHEN 'smallint' THEN NEW.key::smallint::text
        WHEN 'integer' THEN NEW.key::integer::text
        WHEN 'bigint' THEN NEW.key::bigint::text
        WHEN 'uuid' THEN NEW.key::uuid::text
        ELSE NEW.key END;
    RETURN NEW;
EXCEPTION WHEN invalid_text_representation OR numeric_value_out_of_range THEN
    RAISE invalid_text_representation USING MESSAGE =
        format('%L cannot be a key of source %s, whose keys are of type %s.', NEW.key, NEW.source, key_type);
END
$function$
"""
# In this order the index on (source, key, id) is read backwards, with nothing to sort.
_CURRENT = """
CREATE VIEW outlier.current_verdicts AS
SELECT v.* FROM (
    SELECT DISTINCT ON (source, key) id, source, key, verdict, note, created_at, created_by
    FROM outlier.verdicts ORDER BY source DESC, key DESC, id DESC
) v WHERE v.verdict <> 'withdrawn'
"""


def upgrade() -> None:
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="name of the source"),
        sa.Column("key", sa.Text(collation="C"), nullable=False, comment="the row's key, as text"),
        sa.Column(
            "verdict",
            sa.Text(),
            nullable=False,
            comment="fraud, normal, or withdrawn: as if none had been given",
        ),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.CheckConstraint(
            "verdict in ('fraud', 'normal', 'withdrawn')", name=op.f("verdicts_verdict_known_check")
        ),
        sa.ForeignKeyConstraint(
            ["source"], ["outlier.sources.name"], name=op.f("verdicts_source_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("verdicts_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("verdicts_source_key_id_idx"),
        "verdicts",
        ["source", "key", "id"],
        unique=False,
        schema="outlier",
    )
    op.execute(_CHECK)
    op.execute("REVOKE ALL ON FUNCTION outlier.check_verdict() FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER check_verdict BEFORE INSERT OR UPDATE OF source, key ON outlier.verdicts"
        " FOR EACH ROW EXECUTE FUNCTION outlier.check_verdict()"
    )
    op.execute(_CURRENT)


def downgrade() -> None:
    attached = (
        op.get_bind().execute(sa.text("SELECT name FROM outlier.sources ORDER BY name")).scalars().all()
    )
    if attached:
        raise SchemaNotReady(
            f"Sources are still attached ({', '.join(attached)}), and their views read the verdicts; detach them"
            f" first: {'; '.join(f'pgoutlier detach {name}' for name in attached)}"
        )
    op.execute("DROP VIEW outlier.current_verdicts")
    op.drop_index(op.f("verdicts_source_key_id_idx"), table_name="verdicts", schema="outlier")
    op.drop_table("verdicts", schema="outlier")
    op.execute("DROP FUNCTION outlier.check_verdict()")
