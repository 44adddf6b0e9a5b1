"""The function of each source that takes its views on the user's table away and brings them back.

It runs with the rights of whoever attached, who owns the views. Only outlier.before_migration and
outlier.after_migration call it, which see to it that their caller owns the table. It holds the statements that make the
views and functions, with places for the names of the table and its columns: the migration may have changed these.
"""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import challenger_objects, queue_triggers, source_views
from pgoutlier.db.past.entries import Past
from pgoutlier.db.scoring import write_back
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, dollar_quote, one

# The places that outlier.with_names fills.
_SHOWN = ("outlier:shown",)
_QUOTE = '"outlier:quote"'
_ARGUMENTS = sql.SQL("(jsonb, regclass, jsonb, boolean)")


def create(connection: Connection, source: SourceDefinition, *, by_event_time: bool) -> list[sql.Composed]:
    """Statements that make it, in place of one that is there."""
    name = ours("views", source.name)
    body = _body(source, by_event_time=by_event_time)
    caller = one(
        connection,
        "SELECT pg_get_userbyid(proowner)::text FROM pg_proc"
        " WHERE oid = 'outlier.after_migration(regclass)'::regprocedure",
    )
    return [
        *drop(source.name),
        compose(
            """
CREATE FUNCTION {name}(definition jsonb, relation regclass, grants jsonb, renamed boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {quote}{body}{quote}""",
            name=name,
            quote=dollar_quote(as_text(body)),
            body=body,
        ),
        compose("REVOKE ALL ON FUNCTION {name}{arguments} FROM PUBLIC", name=name, arguments=_ARGUMENTS),
        compose(
            "GRANT EXECUTE ON FUNCTION {name}{arguments} TO {caller}",
            name=name,
            arguments=_ARGUMENTS,
            caller=identifier(caller),
        ),
    ]


def drop(source_name: str) -> list[sql.Composed]:
    """Statements that remove it."""
    return [
        compose(
            "DROP FUNCTION IF EXISTS {name}{arguments}", name=ours("views", source_name), arguments=_ARGUMENTS
        )
    ]


def _body(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    """definition: NULL to take the views away. renamed: names in the functions are others, too."""
    places = _with_places(source)
    views = source_views.views(places, _SHOWN, by_event_time=by_event_time)
    compared = challenger_objects.create(
        places, source_views.shown(_SHOWN, beside=challenger_objects.COMPARED_COLUMNS)
    )["compared"][0]
    functions = [*(write_back.functions(places) if source.write_columns else [])]
    functions += queue_triggers.functions(places, _SHOWN)
    return compose(
        """
DECLARE
    g text;
BEGIN
    DROP VIEW IF EXISTS {views};
    IF definition IS NULL THEN
        RETURN;
    END IF;
    IF renamed THEN
        {functions}
    END IF;
    {made}
    {share};
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND c.relrowsecurity) THEN
        {barriers};
    END IF;
    FOR g IN SELECT outlier.grant_statements(grants, {names}::text[]) LOOP
        EXECUTE g;
    END LOOP;
END
""",
        views=sql.SQL(", ").join(ours(view, source.name) for view in challenger_objects.VIEWS_OF_ROWS),
        functions=_executed(functions, ()),
        made=sql.SQL("").join(
            [
                _executed(list(views.values()), source_views.ours_beside(source)),
                _executed([compared], tuple(challenger_objects.COMPARED_COLUMNS)),
            ]
        ),
        share=source_views.share_rows(source),
        barriers=sql.SQL(";\n        ").join(source_views.barriers(source)),
        names=sql.Literal([f"{view}_{source.name}" for view in challenger_objects.VIEWS_OF_ROWS]),
    )


def _with_places(source: SourceDefinition) -> SourceDefinition:
    roles = {
        f"{role}_column": f"outlier:{role}"
        for role in ("key", "time", "entity", "label")
        if getattr(source, f"{role}_column") is not None
    }
    return source.model_copy(
        update={
            "relation_schema": "outlier:schema",
            "relation_name": "outlier:relation",
            "features": tuple(
                feature.model_copy(
                    update={"column": f"outlier:feature {place}", "past": _with_place(feature.past, place)}
                )
                for place, feature in enumerate(source.features)
            ),
            "further_key_columns": tuple(
                further.model_copy(update={"column": f"outlier:key {place}"})
                for place, further in enumerate(source.further_key_columns, start=1)
            ),
            **roles,
        }
    )


def _with_place(past: Past | None, place: int) -> Past | None:
    if past is None or past.by is None:
        return past
    return past.model_copy(update={"by": f"outlier:by {place}"})


def _executed(statements: list[sql.Composed], taken: tuple[str, ...]) -> sql.Composed:
    return sql.SQL("\n    ").join(
        compose(
            "EXECUTE outlier.with_names({statement}, relation, definition, {taken}::text[]);",
            # No name of the user's is in it, so this ends nothing but the body of a function.
            statement=sql.Literal(as_text(statement).replace("$outlier$", _QUOTE).replace("%", "%%")),
            taken=sql.Literal(list(taken)),
        )
        for statement in statements
    )
