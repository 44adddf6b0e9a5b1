"""Keys of several columns as text, in whatever form somebody writes them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.definition import Feature, KeyColumn, SourceDefinition
from pgoutlier.db.sql.keys import Key

KEY = Key(("tenant", "id", "Code"), ("integer", "bigint", "text"))
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
VALUES = st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), TEXTS)


def source(key: Key = KEY) -> SourceDefinition:
    further = zip(key.columns[1:], key.types[1:], strict=True)
    return SourceDefinition.model_validate(
        {
            "name": "s",
            "relation_schema": "public",
            "relation_name": "s",
            "key_column": key.columns[0],
            "key_type": key.types[0],
            "further_key_columns": [KeyColumn.model_validate({"column": c, "type": t}) for c, t in further],
            "features": [Feature(column="x", kind="double")],
        }
    )


@given(VALUES)
def test_every_form_of_a_key_is_the_same_text(values: tuple[int, int, str]) -> None:
    text = KEY.of_values(values)
    assert json.loads(text) == list(values)
    forms: list[Any] = [
        json.dumps(values),
        json.dumps([str(value) for value in values]),
        json.dumps(dict(zip(KEY.columns, values, strict=True))),
    ]
    assert {KEY.canonical(form) for form in (*forms, text)} == {text}


@given(VALUES, VALUES)
def test_keys_are_told_apart_whether_they_are_words_lists_or_objects(
    first: tuple[int, int, str], second: tuple[int, int, str]
) -> None:
    by_name = dict(zip(KEY.columns, second, strict=True))
    words = typed_keys.together(source(), [*map(str, first), list(second), by_name])
    assert [KEY.canonical(word) for word in words] == [KEY.of_values(v) for v in (first, second, second)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7", r"write it as JSON: \[tenant, id, \"Code\"\]"),
        ("[1, 2]", "it has 3 columns"),
        ("[1, 2, null]", '"Code" is neither text nor a whole number'),
        ("[1.5, 2, 3]", "tenant: not a whole number"),
        ("[true, 2, 3]", "tenant is neither"),
        ("[2147483648, 2, 3]", "tenant: too large"),
        ('{"tenant": 1, "id": 2}', "it needs tenant, id, Code, no more and no less"),
        ('[1, 2, "\\u0000"]', '"Code": holds a NUL'),
        ("[" * 100_000, "write it as JSON"),
        ("NaN", "write it as JSON"),
        ("[NaN, 1, 1]", "not a whole number"),
    ],
)
def test_what_is_no_key_is_refused_with_the_column_that_is_wrong(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        typed_keys.read(source(), text)


@given(st.lists(VALUES, min_size=1, max_size=20))
def test_keys_are_sorted_as_their_columns_are(rows: list[tuple[int, int, str]]) -> None:
    longest = max(1, *(len(text.encode()) for *_, text in rows))
    keys = np.zeros(len(rows), KEY.wire_dtype(text_bytes=longest))
    for place, (tenant, number, text) in enumerate(rows):
        octets = text.encode()
        keys[place]["key_1"], keys[place]["key_2"] = tenant, number
        keys[place]["key_3"]["length"] = len(octets)
        keys[place]["key_3"]["bytes"][: len(octets)] = list(octets)
    assert KEY.to_texts(keys) == [KEY.of_values(row) for row in rows]
    order = np.argsort(KEY.sortable(keys), kind="stable")
    assert [rows[n] for n in order] == sorted(rows, key=lambda row: (row[0], row[1], row[2].encode()))
