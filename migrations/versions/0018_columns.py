"""Which columns a source reads: a column keeps its number whatever it is called.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# Of all columns of a table; another one after any of them was added, dropped or renamed.
_DIGEST = """
CREATE FUNCTION outlier.columns_digest(relation regclass) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT sum(hashname(a.attname) * a.attnum::bigint)::bigint FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0
$outlier$"""
# With the table's number, as a number: after a dump and restore it is another one, and so may be those of the columns.
_NUMBERS = """
CREATE FUNCTION outlier.column_numbers(definition jsonb, relation regclass) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT jsonb_build_object('table', relation::oid::bigint, 'digest', outlier.columns_digest(relation),
                              'numbers', coalesce(jsonb_object_agg(a.attname, a.attnum), '{}'))
    FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname IN (
        SELECT definition ->> r FROM unnest('{key_column,time_column,entity_column,label_column}'::text[]) r
        UNION ALL
        SELECT k ->> 'column' FROM jsonb_array_elements(coalesce(definition -> 'further_key_columns', '[]')) k
        UNION ALL
        SELECT f ->> 'column' FROM jsonb_array_elements(definition -> 'features') f
        WHERE definition ->> 'feature_view_name' IS NULL)
$outlier$"""
# The same after a migration of the table, by the names of now. Those that are gone keep theirs: a new column of that
# name is another one.
_RENAMED = """
CREATE FUNCTION outlier.renamed_columns(columns jsonb, relation regclass) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT columns || jsonb_build_object('digest', outlier.columns_digest(relation), 'numbers', (
        SELECT coalesce(jsonb_object_agg(coalesce(a.attname, n.key), n.value), '{}')
        FROM jsonb_each(columns -> 'numbers') n LEFT JOIN pg_attribute a
            ON a.attrelid = relation AND a.attnum = n.value::integer AND NOT a.attisdropped))
$outlier$"""
_AFTER = """
CREATE OR REPLACE FUNCTION outlier.after_migration(relation regclass) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $outlier$
DECLARE
    s record;
    renamed jsonb;
    said text;
BEGIN
    PERFORM outlier.require_owner(relation);
    FOR s IN SELECT o.name, o.definition, o.migration FROM outlier.sources o
             WHERE o.relation = after_migration.relation AND o.migration IS NOT NULL LOOP
        renamed := outlier.renamed(s.definition, relation, s.migration -> 'numbers');
        PERFORM outlier.require_own_rights(s.name);
        BEGIN
            EXECUTE format('SELECT outlier.%I($1, $2, $3, $4)', 'views_' || s.name)
            USING renamed, relation, s.migration -> 'grants', renamed <> s.definition;
            UPDATE outlier.sources o SET definition = renamed, migration = NULL{columns} WHERE o.name = s.name;
        EXCEPTION WHEN undefined_function OR undefined_column OR datatype_mismatch OR cannot_coerce THEN
            said := concat_ws('; ', said, format(
                'the views of source %s are still away (%s): see pgoutlier doctor', s.name, SQLERRM));
            RAISE WARNING '%', said;
        END;
    END LOOP;
    RETURN coalesce(said, format('the views on %s are there', relation));
END
$outlier$"""
_COLUMNS = ",\n                columns = outlier.renamed_columns(o.columns, after_migration.relation)"


def _execute(statement: str) -> None:
    op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def upgrade() -> None:
    op.add_column(
        "sources",
        sa.Column(
            "columns",
            postgresql.JSONB(none_as_null=True),
            nullable=True,
            comment="numbers of the columns it reads by their names: {table, numbers, digest}",
        ),
        schema="outlier",
    )
    _execute(_DIGEST)
    _execute(_NUMBERS)
    _execute(_RENAMED)
    _execute(_AFTER.replace("{columns}", _COLUMNS))
    _execute(
        "UPDATE outlier.sources SET columns = outlier.column_numbers(definition, relation)"
        " WHERE relation IS NOT NULL AND migration IS NULL"
    )


def downgrade() -> None:
    _execute(_AFTER.replace("{columns}", ""))
    op.execute("DROP FUNCTION outlier.renamed_columns(jsonb, regclass)")
    op.execute("DROP FUNCTION outlier.column_numbers(jsonb, regclass)")
    op.execute("DROP FUNCTION outlier.columns_digest(regclass)")
    op.drop_column("sources", "columns", schema="outlier")
