"""Files of verdicts: what is read from them, and what is said of those that cannot be."""

from __future__ import annotations

import csv
import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.db.errors import VerdictError
from pgoutlier.db.verdicts.verdicts import VERDICTS, Verdict
from pgoutlier.worker.verdicts import verdict_csv

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
ROWS = st.lists(st.tuples(TEXTS.filter(bool), st.sampled_from(VERDICTS), TEXTS), max_size=8)


def read(content: bytes) -> list[Verdict]:
    return list(verdict_csv.read(io.BytesIO(content), "v.csv"))


csv.register_dialect("semicolon", "excel", delimiter=";")


@given(rows=ROWS, dialect=st.sampled_from(["excel", "unix", "excel-tab", "semicolon"]), mark=st.booleans())
def test_what_a_program_writes_is_read_as_it_was(
    rows: list[tuple[str, str, str]], dialect: str, mark: bool
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, dialect)
    writer.writerow(["key", "verdict", "note"])
    starts = []
    for row in rows:
        starts.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    found = read((b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode())
    assert [(v.key, v.verdict, v.note or "") for v in found] == rows
    assert [v.line for v in found] == starts


@given(content=st.one_of(st.binary(max_size=80), st.text('key,verdict\nfraud"\r0').map(str.encode)))
def test_any_bytes_are_read_or_refused_with_a_line_that_is_there(content: bytes) -> None:
    for body in (content, b"key,verdict\n" + content):
        with suppress(VerdictError):
            read(body)
            continue
        with pytest.raises(
            VerdictError, match=r"^Line \d+ of v\.csv cannot be used: .*Nothing was changed\.$"
        ) as e:
            read(body)
        assert 1 <= int(str(e.value.data["line"])) <= body.count(b"\n") + 1


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", 1, "the first line names the columns: key,verdict or key,verdict,note, apart by"),
        (b"5,fraud\n", 1, "the first line names the columns"),
        (b"key.verdict\n5.fraud\n", 1, "the first line names the columns"),
        (b"key,verdict,key\n", 1, "the first line names the columns"),
        (b"key,verdict,amount\n", 1, "the first line names the columns"),
        (b"key,verdict\n5\n", 2, "1 columns where the first line names 2"),
        (b"key,verdict\n5,fraud,because\n", 2, "3 columns where the first line names 2"),
        (b"key,verdict\n5,fraud\n\n6,bad\n", 4, "'bad' is no verdict; write fraud, normal or withdrawn"),
        (b"key,verdict\n,fraud\n", 2, "there is no key"),
        (b'key,verdict,note\n5,fraud,"two\nlines"\n6,,x\n', 4, "'' is no verdict"),
        (b"key,verdict\n5,fraud\n6\xff,fraud\n", 3, "it is not text in UTF-8"),
        (b"key,verdict\n5\x00,fraud\n", 2, "it holds a NUL character"),
        (b"key,verdict\r5,fraud\r", 1, "a carriage return stands alone"),
        (b'key,verdict\n5,fraud\n6,"fraud\n7,fraud\n', 3, "unexpected end of data"),
        (b"key,verdict\n" + b"5" * 200_000 + b",fraud\n", 2, "field larger than field limit"),
    ],
)
def test_the_line_that_is_wrong_is_named(content: bytes, line: int, says: str) -> None:
    with pytest.raises(VerdictError) as raised:
        read(content)
    assert raised.value.sentence.startswith(f"Line {line} of v.csv cannot be used: ")
    assert says in raised.value.sentence


def test_columns_come_in_any_order_and_words_in_any_case() -> None:
    assert read(b"Note, VERDICT ,Key\r\n,Fraud, 7\r\nfine,NORMAL ,8\r\n") == [
        Verdict(" 7", "fraud", None, 2),
        Verdict("8", "normal", "fine", 3),
    ]
