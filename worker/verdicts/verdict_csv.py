"""Verdicts in a CSV file: a first line of column names, then one verdict a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from pgoutlier.db.errors import VerdictError
from pgoutlier.db.verdicts import verdicts
from pgoutlier.db.verdicts.verdicts import Verdict

_HEADER = (
    "the first line names the columns: key,verdict or key,verdict,note, apart by a comma, semicolon or tab; in place of"
    " key may stand the columns of a key of several"
)
_DELIMITERS = ",;\t"
_OURS = ("key", "verdict", "note")


def read(lines: Iterable[bytes], name: str) -> Iterator[Verdict]:
    """The verdicts of a file, in its order, as it is read; keys and notes as they stand there. Empty lines are skipped.

    lines: of the file, each up to its line feed. name: of the file, for what is wrong. Raises VerdictError with the
    number of the line, counted from 1, on which the row begins that cannot be used.
    """
    rows = _rows(lines, name)
    first = [cell.strip() for cell in next(rows, (1, []))[1]]
    header = [cell.lower() if cell.lower() in _OURS else cell for cell in first]
    of_key = [cell for cell in header if cell not in _OURS]
    if "verdict" not in header or ("key" in header) == bool(of_key) or len(header) != len(set(header)):
        raise _wrong(name, 1, _HEADER)
    for line, row in rows:
        if len(row) != len(header):
            raise _wrong(name, line, f"{len(row)} columns where the first line names {len(header)}")
        cells = dict(zip(header, row, strict=True))
        key = json.dumps({column: cells[column] for column in of_key}) if of_key else cells["key"]
        if not key:
            raise _wrong(name, line, "there is no key")
        if any("\x00" in cell for cell in row):
            raise _wrong(name, line, "it holds a NUL character, which PostgreSQL cannot keep")
        try:
            verdict = verdicts.named(cells["verdict"])
        except VerdictError as error:
            raise _wrong(name, line, str(error).rstrip(".")) from None
        yield Verdict(key=key, verdict=verdict, note=cells.get("note") or None, line=line)


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
