"""Which table a source is of, and functions for migrations of that table.

A regclass stays the same whatever the table is called, and a dump writes it as a name. The functions take our views on
a table away and bring them back.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# As [{view, privilege, column, grantee, grantable}]. Those of the owner are left out: they come with the view.
_GRANTS_ON = """
CREATE FUNCTION outlier.grants_on(relation regclass) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'view', g.relname, 'privilege', g.privilege_type, 'column', g.attname, 'grantable', g.is_grantable,
               'grantee', CASE WHEN g.grantee <> 0 THEN pg_get_userbyid(g.grantee) END)), '[]')
    FROM (
        SELECT c.relname, c.relowner, NULL::name AS attname, a.* FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = relation
        UNION ALL
        SELECT c.relname, c.relowner, t.attname, a.* FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid,
            aclexplode(t.attacl) a WHERE c.oid = relation AND NOT t.attisdropped
    ) g WHERE g.grantee <> g.relowner
$outlier$"""
_GRANT_STATEMENTS = """
CREATE FUNCTION outlier.grant_statements(grants jsonb, views text[]) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT format('GRANT %s%s ON outlier.%I TO %s%s', g.privilege, ' (' || quote_ident(g.column) || ')', g.view,
                  coalesce(quote_ident(g.grantee), 'PUBLIC'), CASE WHEN g.grantable THEN ' WITH GRANT OPTION' END)
    FROM jsonb_to_recordset(grants) AS g (view text, privilege text, "column" text, grantee text, grantable boolean)
    WHERE g.view = ANY (views) AND g.privilege ~ '^[A-Z]+$'
        AND (g.grantee IS NULL OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.grantee))
        AND (g.column IS NULL OR EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             WHERE c.relnamespace = 'outlier'::regnamespace AND c.relname = g.view AND a.attname = g.column))
$outlier$"""

# A definition with the names of now in it. numbers: of the columns, by the names that they had.
_RENAMED = """
CREATE FUNCTION outlier.renamed(definition jsonb, relation regclass, numbers jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
DECLARE
    names jsonb;
BEGIN
    SELECT coalesce(jsonb_object_agg(n.key, a.attname), '{}') INTO names FROM jsonb_each_text(numbers) n
    JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = n.value::integer AND NOT a.attisdropped;
    SELECT definition || jsonb_build_object('relation_schema', n.nspname, 'relation_name', c.relname) INTO definition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    definition := definition || (
        SELECT coalesce(jsonb_object_agg(r, names -> (definition ->> r)), '{}')
        FROM unnest('{key_column,time_column,entity_column,label_column}'::text[]) r WHERE names ? (definition ->> r));
    IF definition ->> 'feature_view_name' IS NULL THEN
        definition := jsonb_set(definition, '{features}', (
            SELECT jsonb_agg(CASE WHEN names ->> (f ->> 'column') <> f ->> 'column' THEN f || jsonb_build_object(
                'column', names -> (f ->> 'column'), 'known_as', coalesce(f ->> 'known_as', f ->> 'column'))
                ELSE f END ORDER BY place)
            FROM jsonb_array_elements(definition -> 'features') WITH ORDINALITY e (f, place)));
    END IF;
    RETURN definition;
END
$outlier$"""

# A statement with the names of a definition in the places that db.ddl.migration_functions left for them, in one pass:
# what is put in is not looked at again. taken: names of columns of ours in the view.
_WITH_NAMES = """
CREATE FUNCTION outlier.with_names(statement text, relation regclass, definition jsonb, taken text[]) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $outlier$
DECLARE
    place constant text := 't[.]"outlier:shown" AS "outlier:shown"|(r|o|NEW|OLD)[.]"outlier:shown"'
                           '|"outlier:(schema|relation|key|time|entity|label|quote|feature [0-9]+)"';
    quote constant text := '$outlier_' || replace(gen_random_uuid()::text, '-', '') || '$';
    columns text[];
    shown text;
    other text;
    found text;
    written text;
    made text := '';
BEGIN
    SELECT array_agg(a.attname::text ORDER BY a.attnum) INTO columns FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
        AND NOT (a.attname IN ('reconstruction_error', 'flagged')
                 AND starts_with(coalesce(col_description(a.attrelid, a.attnum), ''), 'Written by pgoutlier'));
    FOREACH found IN ARRAY columns LOOP
        other := found;
        WHILE other = ANY (taken) OR (other <> found AND other = ANY (columns)) LOOP
            other := 'source_' || other;
        END LOOP;
        shown := concat_ws(', ', shown, format('t.%I AS %I', found, other));
    END LOOP;
    WHILE regexp_instr(statement, place) > 0 LOOP
        found := regexp_substr(statement, place);
        made := made || left(statement, regexp_instr(statement, place) - 1);
        statement := substr(statement, regexp_instr(statement, place) + length(found));
        IF found LIKE 't.%' THEN
            written := shown;
        ELSIF found LIKE '%.%' THEN
            written := (SELECT string_agg(format('%s.%I', split_part(found, '.', 1), c), ', ' ORDER BY p)
                        FROM unnest(columns) WITH ORDINALITY u (c, p));
        ELSIF found = '"outlier:quote"' THEN
            written := quote;
        ELSIF found LIKE '%feature%' THEN
            written := quote_ident(
                definition -> 'features' -> regexp_substr(found, '[0-9]+')::integer ->> 'column');
        ELSE
            found := trim(BOTH '"' FROM substr(found, 10));
            written := quote_ident(
                definition ->> CASE WHEN found IN ('schema', 'relation')
                                    THEN replace('relation_' || found, 'relation_relation', 'relation_name')
                                    ELSE found || '_column' END);
        END IF;
        made := made || written;
    END LOOP;
    RETURN made || statement;
END
$outlier$"""

# Whoever called a function that has the rights of its owner: only the session tells.
_CALLER = """
CREATE FUNCTION outlier.caller() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END
$outlier$"""
_REQUIRE_OWNER = """
CREATE FUNCTION outlier.require_owner(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c
                   WHERE c.oid = relation AND pg_has_role(outlier.caller(), c.relowner, 'USAGE')) THEN
        RAISE insufficient_privilege USING MESSAGE = format('must be owner of table %s', relation);
    END IF;
END
$outlier$"""
# Whoever attached owns the function of the views, and may make it one that runs with the rights of its caller.
_REQUIRE_OWN_RIGHTS = """
CREATE FUNCTION outlier.require_own_rights(source text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $outlier$
BEGIN
    IF EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'outlier'::regnamespace
               AND p.proname = 'views_' || source AND NOT p.prosecdef) THEN
        RAISE EXCEPTION 'outlier.views_% would run with the rights of another: attach the table again', source
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$outlier$"""
_BEFORE = """
CREATE FUNCTION outlier.before_migration(relation regclass) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $outlier$
DECLARE
    s record;
    n integer := 0;
BEGIN
    PERFORM outlier.require_owner(relation);
    FOR s IN SELECT o.name, o.migration FROM outlier.sources o WHERE o.relation = before_migration.relation LOOP
        IF to_regprocedure(format('outlier.%I(jsonb, regclass, jsonb, boolean)', 'views_' || s.name)) IS NULL THEN
            RAISE object_not_in_prerequisite_state USING MESSAGE = format(
                'source %s was attached by an earlier version of pgoutlier; run the same pgoutlier attach again first',
                s.name);
        END IF;
        IF s.migration IS NULL THEN
            UPDATE outlier.sources o SET migration = jsonb_build_object(
                'begun_at', now(), 'begun_by', outlier.caller(),
                'numbers', (SELECT jsonb_object_agg(a.attname, a.attnum) FROM pg_attribute a
                            WHERE a.attrelid = before_migration.relation AND a.attnum > 0 AND NOT a.attisdropped),
                'grants', (SELECT coalesce(jsonb_agg(g), '[]') FROM pg_class c,
                                  jsonb_array_elements(outlier.grants_on(c.oid::regclass)) g
                           WHERE c.relnamespace = 'outlier'::regnamespace AND c.relname = ANY (ARRAY[
                               'scored_' || s.name, 'flagged_' || s.name, 'quality_' || s.name, 'compared_' || s.name]))
            ) WHERE o.name = s.name;
        END IF;
        PERFORM outlier.require_own_rights(s.name);
        EXECUTE format('SELECT outlier.%I(NULL::jsonb, NULL::regclass, NULL::jsonb, false)', 'views_' || s.name);
        n := n + 1;
    END LOOP;
    IF n = 0 THEN
        RETURN format('%s is attached to no source', relation);
    END IF;
    RETURN format('the views on %s are away until: SELECT outlier.after_migration(%L)', relation, relation);
END
$outlier$"""
_AFTER = """
CREATE FUNCTION outlier.after_migration(relation regclass) RETURNS text
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
            UPDATE outlier.sources o SET definition = renamed, migration = NULL WHERE o.name = s.name;
        EXCEPTION WHEN undefined_function OR undefined_column OR datatype_mismatch OR cannot_coerce THEN
            said := concat_ws('; ', said, format(
                'the views of source %s are still away (%s): see pgoutlier doctor', s.name, SQLERRM));
            RAISE WARNING '%', said;
        END;
    END LOOP;
    RETURN coalesce(said, format('the views on %s are there', relation));
END
$outlier$"""
_FUNCTIONS = (
    _GRANTS_ON,
    _GRANT_STATEMENTS,
    _RENAMED,
    _WITH_NAMES,
    _CALLER,
    _REQUIRE_OWNER,
    _REQUIRE_OWN_RIGHTS,
    _BEFORE,
    _AFTER,
)


def upgrade() -> None:
    op.add_column(
        "sources",
        sa.Column(
            "relation",
            postgresql.REGCLASS(),
            nullable=True,
            comment="its table, whatever that is called; null: it was gone",
        ),
        schema="outlier",
    )
    # By the catalogue: to_regclass fails where this role may not look into the schema.
    op.execute(
        "UPDATE outlier.sources s SET relation = c.oid::regclass FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = s.definition ->> 'relation_schema'"
        " AND c.relname = s.definition ->> 'relation_name' AND c.relkind IN ('r', 'p')"
    )
    op.add_column(
        "sources",
        sa.Column(
            "migration",
            postgresql.JSONB(none_as_null=True),
            nullable=True,
            comment="what outlier.before_migration took away, until it is back: {numbers, grants}",
        ),
        schema="outlier",
    )
    for function in _FUNCTIONS:
        op.get_bind().exec_driver_sql(function.replace("%", "%%"))


def downgrade() -> None:
    # The program of before knows no such field.
    op.execute(
        "UPDATE outlier.sources SET definition = jsonb_set(definition, '{features}',"
        " (SELECT jsonb_agg(f - 'known_as' ORDER BY place) FROM jsonb_array_elements(definition -> 'features')"
        " WITH ORDINALITY e (f, place))) WHERE jsonb_path_exists(definition, '$.features[*].known_as')"
    )
    # Those of each source go with their names: nothing depends on them.
    op.execute(
        "DO $outlier$ DECLARE f regprocedure; BEGIN FOR f IN SELECT p.oid::regprocedure FROM pg_proc p"
        " JOIN outlier.sources s ON p.proname = 'views_' || s.name WHERE p.pronamespace = 'outlier'::regnamespace LOOP"
        " EXECUTE 'DROP FUNCTION ' || f; END LOOP; END $outlier$"
    )
    for signature in (
        "after_migration(regclass)",
        "before_migration(regclass)",
        "with_names(text, regclass, jsonb, text[])",
        "renamed(jsonb, regclass, jsonb)",
        "grant_statements(jsonb, text[])",
        "grants_on(regclass)",
        "require_own_rights(text)",
        "require_owner(regclass)",
        "caller()",
    ):
        op.execute(f"DROP FUNCTION outlier.{signature}")
    op.drop_column("sources", "migration", schema="outlier")
    op.drop_column("sources", "relation", schema="outlier")
