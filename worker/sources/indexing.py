"""The indexes that a source needs on the user's table: which it lacks, and making them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from pgoutlier.db.scoring import past_statements
from pgoutlier.db.source import indexes
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.training import newest
from pgoutlier.detector import Recipe
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import index_advice


@dataclass(frozen=True)
class IndexAdvice:
    """The CREATE INDEX statements that are lacking.

    before_each: for a recipe that scores rows with those before them, or None. newest: for finding the newest rows, or
    None. past: for the features over the rows before, one for each kind of entity.
    """

    before_each: str | None
    newest: str | None
    past: tuple[str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(filter(None, (self.before_each, *self.past, self.newest))))


def advice(connection: Connection, definition: SourceDefinition, recipe: Recipe) -> IndexAdvice:
    return IndexAdvice(
        before_each=index_advice(connection, definition, [recipe]),
        newest=newest.missing_index(connection, definition),
        past=tuple(past_statements.missing_indexes(connection, definition)),
    )


def lacking(runtime: Runtime, definition: SourceDefinition, recipe: Recipe) -> IndexAdvice:
    """The same, in a transaction of its own."""
    with runtime.engine.begin() as connection:
        return advice(connection, definition, recipe)


def make(runtime: Runtime, definition: SourceDefinition, recipe: Recipe) -> Iterator[str]:
    """Run them one after the other, as long as one is lacking; each is told before it is begun.

    Raises SourceError if PostgreSQL refuses one, which leaves nothing of it behind.
    """
    made: set[str] = set()
    # One may make another needless: that of the whole table by time finds its newest rows as well.
    while needed := [each for each in lacking(runtime, definition, recipe).statements if each not in made]:
        yield needed[0]
        indexes.make(runtime.engine, definition.relation, needed[0])
        made.add(needed[0])
