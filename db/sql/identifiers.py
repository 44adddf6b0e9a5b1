"""SQL names: reading what a user typed, and composing what we send. Quoting is always the driver's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from pgoutlier.db.errors import SourceError

SCHEMA = "outlier"
CHANNEL = "outlier_queue"
FLAGGED_CHANNEL = "outlier_flagged"
# Longest of our suffixes and prefixes ("shadow_scores_", "_flagged_at") must still fit in PostgreSQL's 63 bytes.
SOURCE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
MAX_IDENTIFIER_BYTES = 63
# Words that PostgreSQL 15 to 18 reserve (pg_get_keywords, categories R and T): as a name they need quotes.
_RESERVED_WORDS = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
collation column concurrently constraint create cross current_catalog current_date current_role
current_schema current_time current_timestamp current_user default deferrable desc distinct do else end
except false fetch for foreign freeze from full grant group having ilike in initially inner intersect into
is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on
only or order outer overlaps placing primary references returning right select session_user similar some
symmetric system_user table tablesample then to trailing true union unique user using variadic verbose when
where window with
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())


@dataclass(frozen=True)
class Relation:
    """A schema-qualified table or view of the user's."""

    schema: str
    name: str

    def sql(self) -> sql.Composable:
        return identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{display(self.schema)}.{display(self.name)}"


def display(identifier: str) -> str:
    """An identifier as a user would type it: bare where SQL allows, quoted where it must be."""
    if re.fullmatch(r"[a-z_][a-z0-9_$]*", identifier) and identifier not in _RESERVED:
        return identifier
    return '"' + identifier.replace('"', '""') + '"'


def as_argument(identifiers: Iterable[str]) -> str:
    """Identifiers as one argument of a command: a shell would take the quotes of SQL for its own."""
    return shlex.quote(",".join(map(display, identifiers)))


def split_identifiers(text: str, separator: str) -> list[str]:
    """Split at `separator` outside double quotes and brackets; parts keep their quotes and are stripped.

    Raises SourceError if a double quote or bracket is left open.
    """
    parts, current, quoted, depth = [], "", False, 0
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "([":
            depth += 1
        elif not quoted and character in ")]":
            depth -= 1
        if character == separator and not quoted and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if quoted or depth != 0:
        raise SourceError(f"A quote or bracket is not closed in {text!r}; close it.")
    return [*parts, current.strip()]


def parse_identifier(text: str) -> str:
    """One identifier: "quoted" is taken as it is (doubled quotes undone), anything else also as it is.

    An unquoted name is not folded to lower case: a user who types Class means the column Class.
    Raises SourceError if it is empty, too long, no UTF-8 or holds a NUL.
    """
    name = text
    if len(text) >= 2 and text.startswith('"') and text.endswith('"'):
        inner = text[1:-1]
        if '"' in inner.replace('""', ""):
            raise SourceError(f"Not an identifier: {text}; double the quotes inside it.")
        name = inner.replace('""', '"')
    elif '"' in text:
        raise SourceError(f"Not an identifier: {text}; put the whole name in double quotes.")
    if not name or "\x00" in name:
        raise SourceError(f"An identifier is empty or holds a NUL character: {text!r}.")
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise SourceError(f"The identifier {name!r} is not valid text in UTF-8.") from None
    if n_bytes > MAX_IDENTIFIER_BYTES:
        raise SourceError(
            f"The identifier {name!r} is longer than PostgreSQL's {MAX_IDENTIFIER_BYTES} bytes."
        )
    return name


def parse_relation(text: str) -> Relation:
    """`schema.table` or `table` (schema public), each part optionally in double quotes."""
    parts = split_identifiers(text, ".")
    if len(parts) > 2:
        raise SourceError(
            f"{text!r} has {len(parts)} parts; write schema.table, quoting names that hold dots."
        )
    names = [parse_identifier(part) for part in parts]
    return Relation(schema=names[0] if len(names) == 2 else "public", name=names[-1])


def parse_identifiers(text: str) -> list[str]:
    """A comma-separated list of identifiers; an empty text is an empty list."""
    return [parse_identifier(part) for part in split_identifiers(text, ",")] if text.strip() else []


def default_source_name(relation: Relation) -> str:
    """A source name made of the relation's: lower case, odd characters to underscores, 40 characters at most."""
    name = re.sub(r"[^a-z0-9_]+", "_", relation.name.lower()).strip("_") or "source"
    return (name if not name[0].isdigit() else f"_{name}")[:40]


def check_source_name(name: str) -> str:
    """The name itself. Raises SourceError unless it is lower-case letters, digits and underscores, 40 at most."""
    if not SOURCE_NAME.fullmatch(name):
        raise SourceError(
            f"{name!r} cannot name a source; use lower-case letters, digits and underscores, 40 at most."
        )
    return name


def ours(kind: str, source: str) -> sql.Composable:
    """One of our objects for a source, such as ours("scores", "transactions") -> outlier.scores_transactions."""
    return identifier(SCHEMA, f"{kind}_{source}")


def as_literal(value: Any) -> sql.Composable:
    """A constant for statements sent by `run` and `copy`, percent signs as in `identifier`."""
    return sql.SQL(sql.Literal(value).as_string(None).replace("%", "%%"))


def identifier(*parts: str) -> sql.Composable:
    """A quoted identifier for statements sent by `run` and `copy`.

    The driver reads every percent sign of a statement with parameters as a placeholder, also inside quoted
    names, so it is doubled here; `run` and `copy` always send parameters.
    """
    return sql.SQL(".").join(
        sql.SQL(sql.Identifier(part).as_string(None).replace("%", "%%")) for part in parts
    )
