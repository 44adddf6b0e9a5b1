"""Attach and detach: from what was asked for to a source, each in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import structlog
from sqlalchemy import Connection

from pgoutlier.db.ddl import core_objects, installation
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest, request_of, resolve
from pgoutlier.detector import Recipe
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import index_advice, require_order
from pgoutlier.worker.training import recipes

log = structlog.get_logger()

# What becomes of the rows that are there already: nothing, the next sweep queues them, a job scores them.
OldRows = Literal["left", "swept", "backfilled"]


@dataclass(frozen=True)
class Attached:
    """A source, and what attach did: made is False if it was attached like this already.

    columns_taken_out: that its table had the scores in columns until now. job: the backfill, if one was asked for.
    index_advice: the CREATE INDEX that finding the rows before each needs, or None.
    """

    source: Source
    made: bool
    columns_taken_out: bool
    job: Started | None
    index_advice: str | None


def attach(
    runtime: Runtime, request: AttachRequest, recipe: Recipe, *, old_rows: OldRows = "left"
) -> Attached:
    """Watch a table. Scores that lie there already are copied into its columns by `filling.fill`.

    Raises SourceError or ModelError, with one sentence, if the table or the recipe does not fit what was asked for.
    """
    with runtime.engine.begin() as connection:
        definition, columns = _resolved(connection, request, recipe)
        had_columns = sources.writes_columns(connection, definition.name)
        made = sources.attach(
            connection,
            definition,
            columns,
            recipe.model_dump(mode="json"),
            sweep_old_rows=old_rows == "swept",
            row_triggers=request.row_triggers,
        )
    # Not in that transaction, which may hold a lock on the table.
    with runtime.engine.begin() as connection:
        source = sources.find(connection, definition.name)
        advice = index_advice(connection, definition, [recipe])
    job = job_control.backfill(runtime, source.name) if old_rows == "backfilled" else None
    return Attached(source, made, had_columns and not definition.write_columns, job, advice)


def script(runtime: Runtime, request: AttachRequest, recipe: Recipe) -> str:
    """The SQL that `attach` would run on the source's objects; nothing is changed. Raises what `attach` raises."""
    with runtime.engine.begin() as connection:
        definition, columns = _resolved(connection, request, recipe)
        statements = installation.plan(connection, definition, columns, row_triggers=request.row_triggers)
        return core_objects.script(statements)


def adopt(runtime: Runtime, source_name: str, *, key: str | None = None) -> Attached:
    """Go on with the table that has the name of the source's now: its scores of before are dropped, and a job scores
    all rows anew.

    key: its key column, where that has another name. Raises SourceError if there is no such source or the table does
    not fit, as `attach` does.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        request = request_of(source.definition)
        definition, columns = _resolved(
            connection,
            request if key is None else replace(request, key=key),
            Recipe.model_validate(source.recipe),
        )
        sources.adopt(connection, source, definition, columns)
    log.info("table_adopted", source=source_name, relation=str(definition.relation))
    job = job_control.backfill(runtime, source_name)
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        advice = index_advice(connection, source.definition, [Recipe.model_validate(source.recipe)])
    return Attached(source, made=False, columns_taken_out=False, job=job, index_advice=advice)


def _resolved(
    connection: Connection, request: AttachRequest, recipe: Recipe
) -> tuple[SourceDefinition, tuple[str, ...]]:
    definition, columns = resolve(connection, request)
    require_order(recipe, definition)
    recipes.check_columns(connection, recipe, definition)
    return definition, columns


def detach(runtime: Runtime, source_name: str) -> str | None:
    """Drop all our objects of a source and its rows in our tables; the user's table is left as it was.

    Returns the statement that drops the columns in it, where only its owner may do that. Raises SourceError if there
    is no such source, its table is in use, or other objects need ours.
    """
    with runtime.engine.begin() as connection:
        return sources.detach(connection, sources.find(connection, source_name))
