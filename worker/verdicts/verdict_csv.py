"""Verdicts in a CSV file: a first line of column names, then one verdict a line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from pgoutlier.db.errors import VerdictError
from pgoutlier.db.verdicts import verdicts
from pgoutlier.db.verdicts.verdicts import Verdict

_HEADER = (
    "the first line names the columns: key,verdict or key,verdict,note, apart by a comma, semicolon or tab"
)
_DELIMITERS = ",;\t"


def read(lines: Iterable[bytes], name: str) -> Iterator[Verdict]:
    """The verdicts of a file, in its order, as it is read; keys and notes as they stand there. Empty lines are skipped.

    lines: of the file, each up to its line feed. name: of the file, for what is wrong. Raises VerdictError with the
    number of the line, counted from 1, on which the row begins that cannot be used.
    """
    rows = _rows(lines, name)
    header = [cell.strip().lower() for cell in next(rows, (1, []))[1]]
    if not {"key", "verdict"} <= set(header) <= {"key", "verdict", "note"} or len(header) != len(set(header)):
        raise _wrong(name, 1, _HEADER)
    for line, row in rows:
        if len(row) != len(header):
            raise _wrong(name, line, f"{len(row)} columns where the first line names {len(header)}")
        cells = dict(zip(header, row, strict=True))
        if not cells["key"]:
            raise _wrong(name, line, "there is no key")
        if "\x00" in cells["key"] + cells.get("note", ""):
            raise _wrong(name, line, "it holds a NUL character, which PostgreSQL cannot keep")
        try:
            verdict = verdicts.named(cells["verdict"])
        except VerdictError as error:
            raise _wrong(name, line, str(error).rstrip(".")) from None
        yield Verdict(key=cells["key"], verdict=verdict, note=cells.get("note") or None, line=line)


def _rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, Sequence[str]]]:
    """(number of its first line, cells) of each row that is not empty."""
    decoded = _decoded(lines, name)
    header = next(decoded, "")
    delimiter = max(_DELIMITERS, key=header.count)  # the first of them, where there is none
    reader = csv.reader(chain([header], decoded), strict=True, delimiter=delimiter)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            alone = "new-line character" in str(error)
            what = "a carriage return stands alone; end each line with a line feed" if alone else str(error)
            raise _wrong(name, first, what) from None
        if row:
            yield first, row


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            # Spreadsheets put a byte order mark before the first line.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise _wrong(name, number, "it is not text in UTF-8") from None


def _wrong(name: str, line: int, what: str) -> VerdictError:
    return VerdictError(f"Line {line} of {name} cannot be used: {what}. Nothing was changed.", line=line)
