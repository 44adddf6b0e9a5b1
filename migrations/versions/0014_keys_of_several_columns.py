"""Keys of several columns.

The functions for migrations of the user's table know the names of the further columns, which a definition has beside
the first, and what checks a verdict knows the text of such a key.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

from alembic import op

from pgoutlier.db.errors import SourceError

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# {further}: what is new of it.
_RENAMED = """
CREATE OR REPLACE FUNCTION outlier.renamed(definition jsonb, relation regclass, numbers jsonb) RETURNS jsonb
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
{further}    IF definition ->> 'feature_view_name' IS NULL THEN
        definition := jsonb_set(definition, '{features}', (
            SELECT jsonb_agg(CASE WHEN names ->> (f ->> 'column') <> f ->> 'column' THEN f || jsonb_build_object(
                'column', names -> (f ->> 'column'), 'known_as', coalesce(f ->> 'known_as', f ->> 'column'))
                ELSE f END ORDER BY place)
            FROM jsonb_array_elements(definition -> 'features') WITH ORDINALITY e (f, place)));
    END IF;
    RETURN definition;
END
$outlier$"""
_FURTHER = """    IF definition ? 'further_key_columns' THEN
        definition := jsonb_set(definition, '{further_key_columns}', (
            SELECT coalesce(jsonb_agg(k || CASE WHEN names ? (k ->> 'column')
                                                THEN jsonb_build_object('column', names -> (k ->> 'column'))
                                                ELSE '{}' END ORDER BY place), '[]')
            FROM jsonb_array_elements(definition -> 'further_key_columns') WITH ORDINALITY e (k, place)));
    END IF;
"""

# {place}, {filled}: what is new of it.
_WITH_NAMES = """
CREATE OR REPLACE FUNCTION outlier.with_names(statement text, relation regclass, definition jsonb, taken text[])
RETURNS text LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $outlier$
DECLARE
    place constant text := 't[.]"outlier:shown" AS "outlier:shown"|(r|o|NEW|OLD)[.]"outlier:shown"'
                           '|"outlier:(schema|relation|key|time|entity|label|quote|feature [0-9]+{place})"';
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
{filled}        ELSE
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
_PLACE = "|key [0-9]+"
_FILLED = """        ELSIF found LIKE '"outlier:key %' THEN
            written := quote_ident(definition -> 'further_key_columns'
                                   -> regexp_substr(found, '[0-9]+')::integer - 1 ->> 'column');
"""

_CHECK_BEFORE = """
CREATE OR REPLACE FUNCTION outlier.check_verdict() RETURNS trigger
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
_CHECK = """
CREATE OR REPLACE FUNCTION outlier.check_verdict() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    definition jsonb;
    key_type text;
    columns text[];
    types text[];
    given jsonb;
    kept jsonb := '[]';
    part text;
BEGIN
    SELECT s.definition INTO definition FROM outlier.sources s WHERE s.name = NEW.source;
    IF NOT FOUND THEN
        RAISE foreign_key_violation USING MESSAGE = format('There is no source %s; sources: %s.', NEW.source,
            (SELECT coalesce(string_agg(s.name, ', ' ORDER BY s.name), 'none') FROM outlier.sources s));
    END IF;
    key_type := definition ->> 'key_type';
    -- As PostgreSQL prints it, so that a key is one text however it was written.
    IF coalesce(definition -> 'further_key_columns', '[]') = '[]' THEN
        NEW.key := CASE key_type
            WHEN 'smallint' THEN NEW.key::smallint::text
            WHEN 'integer' THEN NEW.key::integer::text
            WHEN 'bigint' THEN NEW.key::bigint::text
            WHEN 'uuid' THEN NEW.key::uuid::text
            ELSE NEW.key END;
        RETURN NEW;
    END IF;
    -- One of several columns as a JSON array of them, times in UTC.
    SELECT array_agg(k ->> 'column' ORDER BY place), array_agg(k ->> 'type' ORDER BY place),
           '(' || string_agg(format('%I %s', k ->> 'column', k ->> 'type'), ', ' ORDER BY place) || ')'
    INTO columns, types, key_type
    FROM jsonb_array_elements(jsonb_build_array(jsonb_build_object('column', definition -> 'key_column',
                                                                   'type', definition -> 'key_type'))
                              || (definition -> 'further_key_columns')) WITH ORDINALITY e (k, place);
    given := NEW.key::jsonb;
    IF jsonb_typeof(given) = 'object' THEN
        IF (SELECT count(*) FROM jsonb_object_keys(given)) <> cardinality(columns) THEN
            RAISE invalid_text_representation;
        END IF;
        given := (SELECT jsonb_agg(given -> c ORDER BY place) FROM unnest(columns) WITH ORDINALITY u (c, place));
    END IF;
    IF jsonb_typeof(given) <> 'array' OR jsonb_array_length(given) <> cardinality(types) THEN
        RAISE invalid_text_representation;
    END IF;
    FOR i IN 1 .. cardinality(types) LOOP
        part := given ->> i - 1;
        IF part IS NULL THEN
            RAISE invalid_text_representation;
        END IF;
        kept := kept || CASE types[i]
            WHEN 'smallint' THEN to_jsonb(part::smallint)
            WHEN 'integer' THEN to_jsonb(part::integer)
            WHEN 'bigint' THEN to_jsonb(part::bigint)
            WHEN 'uuid' THEN to_jsonb(part::uuid)
            WHEN 'date' THEN to_jsonb(part::date)
            WHEN 'timestamp' THEN to_jsonb(part::timestamp)
            WHEN 'timestamptz' THEN to_jsonb(CASE
                WHEN NOT isfinite(part::timestamptz) THEN part::timestamptz::text
                WHEN part::timestamptz < '0001-01-01 00:00:00+00'::timestamptz
                THEN to_char(timezone('UTC', part::timestamptz), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00 BC"')
                ELSE (to_jsonb(timezone('UTC', part::timestamptz)) #>> '{}') || '+00:00' END)
            ELSE to_jsonb(part) END;
    END LOOP;
    NEW.key := kept::text;
    RETURN NEW;
EXCEPTION WHEN invalid_text_representation OR numeric_value_out_of_range OR invalid_datetime_format
               OR datetime_field_overflow THEN
    RAISE invalid_text_representation USING MESSAGE =
        format('%L cannot be a key of source %s, whose keys are of type %s.', NEW.key, NEW.source, key_type);
END
$function$
"""


def _make(function: str) -> None:
    op.get_bind().exec_driver_sql(function.replace("%", "%%"))


def upgrade() -> None:
    _make(_RENAMED.replace("{further}", _FURTHER))
    _make(_WITH_NAMES.replace("{place}", _PLACE).replace("{filled}", _FILLED))
    _make(_CHECK)


def downgrade() -> None:
    several = (
        op.get_bind()
        .exec_driver_sql(
            "SELECT name FROM outlier.sources WHERE definition -> 'further_key_columns' <> '[]' ORDER BY name LIMIT 1"
        )
        .scalar()
    )
    if several is not None:
        raise SourceError(
            f"Source {several} has a key of several columns, which the version before does not know; detach it first:"
            f" pgoutlier detach {several}"
        )
    # The program of before knows no such field.
    op.execute("UPDATE outlier.sources SET definition = definition - 'further_key_columns'")
    _make(_RENAMED.replace("{further}", ""))
    _make(_WITH_NAMES.replace("{place}", "").replace("{filled}", ""))
    _make(_CHECK_BEFORE)
