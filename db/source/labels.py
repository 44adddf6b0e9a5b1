"""What is known of a row: the verdict that an analyst gave it, else what its label column says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.statements import compose, records, run

# How a label column says fraud, in any case, with spaces around it or without, and 1 with as many zeros as one likes;
# anything else says that the row is none. NULL says nothing.
FRAUD_LABELS = ("1", "t", "true", "y", "yes", "fraud", "anomaly")
_FRAUD = re.compile(rf"^\s*(\+?0*1(\.0*)?|{'|'.join(FRAUD_LABELS[1:])})\s*$")
_MOST_LABELLED = 1_000_000
_MOST_VALUES = 10
FRAUD, NORMAL, UNKNOWN = 1, 0, -1


def is_fraud(column: sql.Composable) -> sql.Composable:
    """SQL for whether the label in `column`, of any type, says fraud; NULL where it is NULL."""
    return compose("(lower({column}::text) ~ {fraud})", column=column, fraud=sql.Literal(_FRAUD.pattern))


def says_fraud(label: str) -> bool:
    """The same of a text."""
    return _FRAUD.match(label.lower()) is not None


@dataclass(frozen=True)
class LabelValue:
    """A value of a label column, as text, what it says of a row (None where it is NULL), and of how many rows."""

    value: str | None
    is_fraud: bool | None
    n: int


def values(connection: Connection, source: SourceDefinition) -> list[LabelValue]:
    """The values of the label column in the first million rows: those that say fraud, the most frequent of the others.

    None where the source has no label column.
    """
    if source.label_column is None:
        return []
    label = identifier(source.label_column)
    return records(
        connection,
        LabelValue,
        compose(
            "SELECT v.value, v.is_fraud, v.n FROM (SELECT l.value, {is_fraud} AS is_fraud, count(*) AS n"
            " FROM (SELECT {label}::text AS value FROM {relation} LIMIT {most}) l GROUP BY 1) v"
            " ORDER BY v.is_fraud DESC NULLS LAST, v.n DESC, v.value LIMIT {most_values}",
            is_fraud=is_fraud(sql.SQL("l.value")),
            label=label,
            relation=source.relation.sql(),
            most=sql.Literal(_MOST_LABELLED),
            most_values=sql.Literal(_MOST_VALUES),
        ),
    )


def by_column(source: SourceDefinition, table: str) -> sql.Composable:
    """SQL for what the label column of `table` says, NULL where the source has none."""
    if source.label_column is None:
        return sql.SQL("NULL::boolean")
    return is_fraud(compose("{t}.{label}", t=identifier(table), label=identifier(source.label_column)))


def verdicts(source: SourceDefinition) -> sql.Composable:
    """SQL of the source's current verdicts: key as text, verdict."""
    return compose(
        "(SELECT c.key, c.verdict FROM outlier.current_verdicts c WHERE c.source = {source})",
        source=sql.Literal(source.name),
    )


def same_key(
    source: SourceDefinition, verdict_key: sql.Composable, table: str, *, ours: bool = False
) -> sql.Composable:
    """SQL for whether a verdict's key, which is text, is that of a row of the user's in `table`, or of one of ours."""
    key = source.key
    if key.is_single and key.has_text:  # whatever collation the user's column has
        column = key.ours(table) if ours else key.theirs(table)
        return compose('{text} = ({key})::text COLLATE "C"', text=verdict_key, key=column)
    return key.is_text(table, verdict_key) if ours else key.is_text_of(table, verdict_key)


def with_verdicts(
    source: SourceDefinition, table: str, *, ours: bool = False, only: bool = False
) -> sql.Composable:
    """SQL that joins to rows of the user's in `table`, or to rows of ours, their verdict, as v.verdict; for questions
    about many rows. only: rows without one are left out."""
    return compose(
        "{left} JOIN {verdicts} v ON {same}",
        left=sql.SQL("" if only else " LEFT"),
        verdicts=verdicts(source),
        same=same_key(source, sql.SQL("v.key"), table, ours=ours),
    )


def known(source: SourceDefinition, label: sql.Composable) -> sql.Composable:
    """SQL for whether a row is fraud, NULL where nobody knows: a verdict (v.verdict) wins over the label."""
    if source.label_column is None:  # PostgreSQL sees that only rows with a verdict are known
        return sql.SQL("(v.verdict = 'fraud')")
    return compose("coalesce(v.verdict = 'fraud', {label})", label=label)


def verdict_of_row(source: SourceDefinition, table: str) -> sql.Composable:
    """SQL for fraud, normal or NULL by one index probe, for a view that mostly shows few rows of `table`.

    Where the column is not asked for, the probe is not made.
    """
    explicit = compose(
        # Compared as text, so that the index on (source, key, id) gives the last one.
        "(SELECT nullif(v.verdict, 'withdrawn') FROM outlier.verdicts v WHERE v.source = {source}"
        ' AND v.key = {key} COLLATE "C" ORDER BY v.id DESC LIMIT 1)',
        source=sql.Literal(source.name),
        key=source.key.text_of_row(table),
    )
    if source.label_column is None:
        return explicit
    return compose(
        "coalesce({explicit}, CASE {label} WHEN true THEN 'fraud' WHEN false THEN 'normal' END)",
        explicit=explicit,
        label=by_column(source, table),
    )


def of_keys(connection: Connection, source: SourceDefinition, keys: key_types.Keys) -> npt.NDArray[np.int8]:
    """FRAUD, NORMAL or UNKNOWN of each row, (n,), in the order of the keys.

    keys: (n,) in wire form, as `db.scoring.features` reads them. A key whose row is gone still has its verdict.
    """
    rows = run(
        connection,
        compose(
            "SELECT {known} FROM {keys} LEFT JOIN {relation} t ON {same}{verdicts} ORDER BY k.place",
            known=known(source, by_column(source, "t")),
            keys=source.key.given("k", sql.SQL("%(keys)s"), numbered=True),
            relation=source.relation.sql(),
            same=source.key.is_of("t", "k"),
            verdicts=with_verdicts(source, "k", ours=True),
        ),
        {"keys": source.key.to_parameters(keys)},
    ).fetchall()
    return np.array([UNKNOWN if fraud is None else int(fraud) for (fraud,) in rows], dtype=np.int8)
