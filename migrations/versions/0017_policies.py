"""Notices and verdicts, too, are shown to analysts only of rows that they may see in the user's table.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# With the rights, the policies and the search path of whoever asks: what cannot be looked up is not shown.
_SHOWS = """
CREATE FUNCTION outlier.shows(source text, relation regclass, definition jsonb, key text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY INVOKER AS $outlier$
DECLARE
    columns pg_catalog.jsonb := pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
        'column', definition OPERATOR(pg_catalog.->) 'key_column',
        'type', definition OPERATOR(pg_catalog.->) 'key_type')) OPERATOR(pg_catalog.||)
        coalesce(definition OPERATOR(pg_catalog.->) 'further_key_columns', '[]'::pg_catalog.jsonb);
    has_the_key pg_catalog.text;
    shown boolean;
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(columns) k
               WHERE pg_catalog.has_column_privilege(relation, k OPERATOR(pg_catalog.->>) 'column', 'SELECT')
                     IS NOT TRUE) THEN
        RETURN false;
    END IF;
    IF NOT pg_catalog.row_security_active(relation::pg_catalog.oid) THEN
        RETURN true;
    END IF;
    -- A key of several columns is a JSON array of them.
    SELECT pg_catalog.string_agg(pg_catalog.format(
               CASE WHEN pg_catalog.jsonb_array_length(columns) OPERATOR(pg_catalog.=) 1
                    THEN 'r.%1$I OPERATOR(pg_catalog.=) $1::%2$s'
                    ELSE 'r.%1$I OPERATOR(pg_catalog.=) ($1::pg_catalog.jsonb OPERATOR(pg_catalog.->>) %3$s)::%2$s' END,
               k OPERATOR(pg_catalog.->>) 'column', k OPERATOR(pg_catalog.->>) 'type',
               place OPERATOR(pg_catalog.-) 1), ' AND ')
    INTO has_the_key FROM pg_catalog.jsonb_array_elements(columns) WITH ORDINALITY e (k, place);
    EXECUTE pg_catalog.concat('SELECT EXISTS (SELECT FROM ', pg_catalog.format('outlier.%I', pg_catalog.concat(
        'rows_', source)), ' r WHERE ', has_the_key, ')') INTO shown USING key;
    RETURN shown;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END
$outlier$"""
# Who may read the whole table need not be asked row by row. A barrier, so that no function of a query sees the others.
_SHOWN = """
((SELECT has_table_privilege('outlier.{table}', 'SELECT')) OR EXISTS (SELECT FROM outlier.sources s
    WHERE s.name = v.source AND outlier.shows(s.name, s.relation, s.definition, v.key)))"""
_LOG = """
CREATE VIEW outlier.verdict_log WITH (security_barrier = true) AS
SELECT v.id, v.source, v.key, v.verdict, v.note, v.created_at, v.created_by FROM outlier.verdicts v
WHERE {shown} WITH CHECK OPTION
"""
_CURRENT = """
CREATE OR REPLACE VIEW outlier.current_verdicts {options} AS
SELECT v.* FROM (
    SELECT DISTINCT ON (source, key) id, source, key, verdict, note, created_at, created_by
    FROM outlier.verdicts ORDER BY source DESC, key DESC, id DESC
) v WHERE v.verdict <> 'withdrawn' {shown}
"""
# Behind a barrier PostgreSQL orders nothing by an index for the one who asks: so the view says the usual order.
_NOTICES = """
CREATE OR REPLACE VIEW outlier.flagged_notices WITH (security_barrier = true) AS
SELECT id, source, key, reconstruction_error, threshold, model_version, scored_at, top_features, xact_id
FROM outlier.notices v WHERE {shown} ORDER BY id DESC
"""
_NOTICES_BEFORE = """
CREATE OR REPLACE VIEW outlier.flagged_notices WITH (security_barrier = false) AS
SELECT id, source, key, reconstruction_error, threshold, model_version, scored_at, top_features, xact_id
FROM outlier.notices
"""
# Who could read the log goes on reading it.
_GRANT_LOG = """
DO $outlier$
DECLARE
    reader text;
BEGIN
    FOR reader IN SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'outlier.verdicts'::regclass AND a.privilege_type = 'SELECT' AND a.grantee NOT IN (0, c.relowner)
    LOOP
        EXECUTE 'GRANT SELECT, INSERT ON outlier.verdict_log TO ' || reader;
    END LOOP;
END
$outlier$"""


# Those of sources, which are made by attach, need a column that goes with migrations before this one.
_COMPARISONS_BEFORE = """
DO $outlier$
DECLARE
    v record;
BEGIN
    FOR v IN SELECT c.oid::regclass AS name, pg_get_viewdef(c.oid) AS query FROM pg_class c JOIN outlier.sources s
        ON c.relname = 'comparison_' || s.name WHERE c.relnamespace = 'outlier'::regnamespace AND c.relkind = 'v'
    LOOP
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', v.name,
                       regexp_replace(v.query, 'WHERE \\(NOT row_security_active[^)]*\\)::oid\\)\\)', ''));
    END LOOP;
END
$outlier$"""


def upgrade() -> None:
    connection = op.get_bind()
    of_verdicts, of_notices = (_SHOWN.format(table=table) for table in ("verdicts", "notices"))
    for statement in (
        _SHOWS,
        _LOG.format(shown=of_verdicts),
        _CURRENT.format(options="WITH (security_barrier = true)", shown=f"AND {of_verdicts}"),
        _NOTICES.format(shown=of_notices),
        _GRANT_LOG,
    ):
        connection.exec_driver_sql(statement.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(_COMPARISONS_BEFORE.replace("%", "%%"))
    op.execute("DROP VIEW outlier.verdict_log")
    op.execute(_CURRENT.format(options="WITH (security_barrier = false)", shown=""))
    op.execute(_NOTICES_BEFORE)
    op.execute("DROP FUNCTION outlier.shows(text, regclass, jsonb, text)")
