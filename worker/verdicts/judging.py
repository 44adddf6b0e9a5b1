"""Giving verdicts: all of a call or of a file in one transaction, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import structlog

from pgoutlier.db.errors import SourceError, VerdictError
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.source.typed_keys import Word
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.statements import show_what_policies_allow
from pgoutlier.db.tables import LONGEST_NOTE
from pgoutlier.db.verdicts import verdicts
from pgoutlier.db.verdicts.verdicts import GivenVerdict, Verdict, VisibleRows
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

# Verdicts checked and written by one statement.
BATCH = 10_000


@dataclass(frozen=True)
class Given:
    """n_given: verdicts added to the log. n_unchanged: those that say what is said of the row already."""

    source: str
    n_given: int
    n_unchanged: int


def label(
    runtime: Runtime,
    source_name: str,
    words: Sequence[Word],
    verdict: str,
    *,
    note: str | None = None,
    by: str | None = None,
) -> Given:
    """Say the same of each of the rows with these keys. verdict: fraud, normal or withdrawn. Else as `give`."""
    word = verdicts.named(verdict)
    with runtime.engine.begin() as connection:
        keys = typed_keys.together(sources.find(connection, source_name).definition, words)
    return give(runtime, source_name, [Verdict(key, word, note) for key in keys], by=by)


def give(
    runtime: Runtime,
    source_name: str,
    given: Iterable[Verdict],
    *,
    by: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Given:
    """Give each row its verdict, or take it back.

    by: who gives them, where it is not the connected role itself. on_progress: called with the number of
    verdicts written so far. Raises SourceError if there is no such source, VerdictError naming the first one that
    cannot be used: a key that is not of the source's type, that comes twice, or that no row has. Then nothing is
    changed.
    """
    n_read = n_given = 0
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        rows = VisibleRows.of(connection, source.definition)
        show_what_policies_allow(connection)
        checked = _checked(source.definition, given)
        while batch := list(islice(checked, BATCH)):
            keys = [verdict.key for verdict in batch]
            absent = verdicts.first_without_row(connection, rows, keys)
            if absent is not None:
                what = "no scored row" if rows.scored_only else "no row"
                raise _unusable(
                    batch[absent], f"there is {what} of {source_name} with the key {keys[absent]!r}"
                )
            n_given += verdicts.give(connection, source.definition, batch, by=by)
            n_read += len(batch)
            if on_progress is not None:
                on_progress(n_read)
    log.info("verdicts_given", source=source_name, n_given=n_given, n_unchanged=n_read - n_given)
    return Given(source=source_name, n_given=n_given, n_unchanged=n_read - n_given)


def _checked(source: SourceDefinition, given: Iterable[Verdict]) -> Iterator[Verdict]:
    """The verdicts with their keys as PostgreSQL prints them, each key once."""
    seen: dict[str, int] = {}
    for verdict in given:
        key = _key_of(source, verdict)
        try:
            key_types.canonical(verdict.note or "", "text")
        except ValueError:
            raise _unusable(verdict, "the note is not text that PostgreSQL can keep") from None
        if len(verdict.note or "") > LONGEST_NOTE:
            raise _unusable(
                verdict,
                f"the note has {len(verdict.note or ''):,} characters; shorten it to {LONGEST_NOTE:,}",
            )
        if key in seen:
            earlier = f" (line {seen[key]})" if verdict.line else ""
            raise _unusable(verdict, f"the key {key!r} was there before{earlier}; give each row one verdict")
        seen[key] = verdict.line
        yield replace(verdict, key=key)


def listed(
    runtime: Runtime, source_name: str, *, key: str | None, history: bool, limit: int
) -> list[GivenVerdict]:
    """The verdicts of a source that hold now, or with history all that were ever given, the newest first.

    key: only those of the row with this key. Raises SourceError if there is no such source, VerdictError if it is no
    key of the source.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        canonical = None if key is None else _key_of(source.definition, Verdict(key, "normal"))
        return verdicts.listed(connection, source_name, history=history, key=canonical, limit=limit)


def _key_of(source: SourceDefinition, verdict: Verdict) -> str:
    """The key as PostgreSQL prints it. Raises VerdictError if it is none of the source's."""
    try:
        return typed_keys.read(source, verdict.key)
    except SourceError as error:
        raise _unusable(verdict, str(error).rstrip(".")) from None


def _unusable(verdict: Verdict, what: str) -> VerdictError:
    if verdict.line:
        return VerdictError(f"Line {verdict.line}: {what}. Nothing was changed.", line=verdict.line)
    return VerdictError(f"{what[0].upper()}{what[1:]}. Nothing was changed.")
