"""Names there and back: what we compose means to PostgreSQL what the user typed, whatever that was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pgoutlier.db.errors import SourceError
from pgoutlier.db.sql.identifiers import (
    MAX_IDENTIFIER_BYTES,
    Relation,
    check_source_name,
    default_source_name,
    display,
    identifier,
    ours,
    parse_identifier,
    parse_identifiers,
    parse_relation,
    split_identifiers,
)
from pgoutlier.db.sql.statements import as_text, compose
from tests.names import NAMES, ODD
from tests.servers import Postgres

ANYTHING = st.one_of(st.text(ODD), st.text(st.characters()), st.text('"(),.[] a'))


@pytest.fixture(scope="module")
def connection(postgres18: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres18.url("postgres"), autocommit=True) as opened:
        yield opened


with_a_server = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)


@with_a_server
@given(name=NAMES)
def test_a_composed_name_is_that_name(connection: psycopg.Connection[Any], name: str) -> None:
    cursor = connection.execute(compose("SELECT %s AS {name}", name=identifier(name)), (1,))
    assert cursor.description is not None
    assert cursor.description[0].name == name
    assert as_text(compose("{name}", name=identifier(name))) == sql.Identifier(name).as_string(None)


@with_a_server
@given(schema=NAMES, name=NAMES)
def test_a_displayed_name_means_the_same_to_us_and_to_postgresql(
    connection: psycopg.Connection[Any], schema: str, name: str
) -> None:
    shown = str(Relation(schema, name))
    assert parse_relation(shown) == Relation(schema, name)
    assert connection.execute("SELECT parse_ident(%s)", (shown,)).fetchone() == ([schema, name],)
    cursor = connection.execute(sql.SQL("SELECT 1 AS " + display(name)))  # type: ignore[arg-type]
    assert cursor.description is not None
    assert cursor.description[0].name == name


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_a_list_of_displayed_names_comes_back(names: list[str]) -> None:
    assert parse_identifiers(", ".join(map(display, names))) == names


@given(name=NAMES.filter(lambda name: '"' not in name))
def test_a_bare_name_is_taken_as_it_is_typed(name: str) -> None:
    assert parse_identifier(name) == name


@settings(max_examples=300)
@given(text=ANYTHING, separator=st.sampled_from(",."))
@example(text='"', separator=",")
@example(text="(]", separator=",")
@example(text="\ud800", separator=",")
def test_reading_names_raises_nothing_but_source_errors(text: str, separator: str) -> None:
    with suppress(SourceError):
        parts = split_identifiers(text, separator)
        assert all(part == part.strip() for part in parts)
    for read in (parse_identifier, parse_identifiers, parse_relation, check_source_name):
        with suppress(SourceError):
            read(text)


@given(text=ANYTHING)
def test_what_was_read_as_a_name_can_be_sent(text: str) -> None:
    with suppress(SourceError):
        name = parse_identifier(text)
        assert 0 < len(name.encode()) <= MAX_IDENTIFIER_BYTES
        assert "\x00" not in name


@given(schema=NAMES, name=NAMES)
def test_every_relation_gives_a_source_name_that_our_objects_can_have(schema: str, name: str) -> None:
    source = default_source_name(Relation(schema, name))
    assert check_source_name(source) == source
    for kind in ("shadow_scores", "enqueue_update"):
        assert len(as_text(compose("{o}", o=ours(kind, source))).split(".")[1]) <= MAX_IDENTIFIER_BYTES + 2


def test_every_reserved_word_is_quoted(postgres: Postgres) -> None:
    words = postgres.run(
        "psql",
        postgres.url("postgres"),
        "-Atc",
        "SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')",
    ).split()
    assert len(words) > 90
    assert [word for word in words if display(word) == word] == []
    assert display("amount") == "amount"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (' a , "b, c" ,d', ["a", '"b, c"', "d"]),
        ("hour(at),v[3]", ["hour(at)", "v[3]"]),
        ('hour("a,b"),c', ['hour("a,b")', "c"]),
        ('"a""b,c",d', ['"a""b,c"', "d"]),
        ("", [""]),
        ("a,", ["a", ""]),
    ],
)
def test_lists_are_split_outside_quotes_and_brackets(text: str, parts: list[str]) -> None:
    assert split_identifiers(text, ",") == parts


@pytest.mark.parametrize(
    "text", ['"a', "hour(a", "a]", '"a" "', 'x"y', '"a"b"', "", "a\x00b", "é" * 32, "\udcff"]
)
def test_what_cannot_be_a_name_is_refused(text: str) -> None:
    with pytest.raises(SourceError):
        parse_identifier(split_identifiers(text, ",")[0])
