"""Attach and detach: from what was asked for to a source, each in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import structlog
from sqlalchemy import Connection

from pgoutlier.db.ddl import core_objects, installation
from pgoutlier.db.roles import grants
from pgoutlier.db.source import labels
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.source.labels import LabelValue
from pgoutlier.db.sources import sources, suggesting
from pgoutlier.db.sources.attach import AttachRequest, not_features, request_of, resolve
from pgoutlier.db.sources.suggesting import Suggestion
from pgoutlier.detector import Recipe
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import require_order
from pgoutlier.worker.sources import indexing
from pgoutlier.worker.sources.indexing import IndexAdvice
from pgoutlier.worker.training import recipes

log = structlog.get_logger()

# What becomes of the rows that are there already: nothing, the next sweep queues them, a job scores them.
OldRows = Literal["left", "swept", "backfilled"]


@dataclass(frozen=True)
class Attached:
    """A source, and what attach did: made is False if it was attached like this already.

    left_out: columns that are no features although nobody named those that are, with the type of each. labels: what
    the label column says. columns_taken_out: that its table had the scores in columns until now. job: the backfill, if
    one was asked for. indexes: those that the table lacks. workers_without_table: roles of workers that may not read
    the table. analysts_without_rows: roles that may read the views and not the table.
    """

    source: Source
    made: bool
    left_out: dict[str, str]
    labels: list[LabelValue]
    columns_taken_out: bool
    job: Started | None
    indexes: IndexAdvice
    workers_without_table: list[str]
    analysts_without_rows: list[str]


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
        grants.give_new_tables(connection, definition.name)
    return _attached(
        runtime,
        definition.name,
        recipe,
        made=made,
        named=request.features is not None,
        columns_taken_out=had_columns and not definition.write_columns,
        backfilled=old_rows == "backfilled",
    )


def _attached(
    runtime: Runtime,
    source_name: str,
    recipe: Recipe,
    *,
    made: bool,
    named: bool,
    columns_taken_out: bool,
    backfilled: bool,
) -> Attached:
    """What to tell of it. Not in the transaction of an attach, which may hold a lock on the table."""
    job = job_control.backfill(runtime, source_name) if backfilled else None
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        return Attached(
            source,
            made,
            left_out={} if named else not_features(connection, source.definition),
            labels=labels.values(connection, source.definition),
            columns_taken_out=columns_taken_out,
            job=job,
            indexes=indexing.advice(connection, source.definition, recipe),
            workers_without_table=grants.workers_without_table(connection, source.definition),
            analysts_without_rows=grants.analysts_without_rows(connection, source.definition),
        )


def suggest(runtime: Runtime, request: AttachRequest) -> Suggestion:
    """What to attach the table with; nothing is changed. Raises SourceError if there is no such table or column."""
    with runtime.engine.begin() as connection:
        return suggesting.suggest(
            connection, request.relation, time=request.time, entity=request.entity, label=request.label
        )


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
        request, recipe = request_of(source.definition), Recipe.model_validate(source.recipe)
        definition, columns = _resolved(
            connection, request if key is None else replace(request, key=key), recipe
        )
        sources.adopt(connection, source, definition, columns)
    log.info("table_adopted", source=source_name, relation=str(definition.relation))
    return _attached(
        runtime, source_name, recipe, made=False, named=True, columns_taken_out=False, backfilled=True
    )


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
