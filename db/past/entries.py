"""How a feature over the rows before is written: `sum(amount, 7d) by customer_id`.

A row sees the rows with an earlier (time, key), of the same value of `by`, or without `by` of the whole table: never
itself, never a later one. A window is the time before the row, its far end included. Where the function takes a column,
rows before that hold NULL in it are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pgoutlier.db.errors import SourceError
from pgoutlier.db.sql.identifiers import display, parse_identifier, split_identifiers

Function = Literal[
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "std",
    "z",
    "ratio",
    "distinct",
    "is_new",
    "since_last",
    "lag",
    "diff",
    "risk",
]
MOST_PAST_FEATURES = 200
LONGEST_WINDOW_SECONDS = 400 * 86_400
# since_last tells apart no gaps that are longer, unless a window is given.
_LONGEST_GAP = "30d"
MOST_STEPS = 1_000
# Of an entity with more rows in the window than these, the newest ones before the row are looked at.
MOST_ROWS = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Of each function: the arguments that it takes, what it is, and what it is when there is nothing before the row.
FORMS: dict[str, tuple[str, str, str]] = {
    "count": ("(WINDOW)", "how many rows", "0"),
    "sum": ("(COLUMN, WINDOW)", "sum of their values", "0"),
    "mean": ("(COLUMN, WINDOW)", "mean of their values", "this row's value"),
    "min": ("(COLUMN, WINDOW)", "smallest of their values", "this row's value"),
    "max": ("(COLUMN, WINDOW)", "largest of their values", "this row's value"),
    "std": ("(COLUMN, WINDOW)", "sample standard deviation of their values", "0, with one value too"),
    "z": (
        "(COLUMN, WINDOW)",
        "(x - m) / sqrt((n s² + m²) / (n + 1)), of this row's value x, and of their number n, mean m and population"
        " standard deviation s: with few rows before a spread as large as the mean is taken for granted",
        "0",
    ),
    "ratio": ("(COLUMN, WINDOW)", "this row's value by their mean", "1, with a mean of 0 too"),
    "distinct": ("(COLUMN, WINDOW)", "how many different values they have", "0"),
    "is_new": (
        "(COLUMN, WINDOW)",
        "1 if none of them has this row's value, else 0; NULL counts as a value",
        "1",
    ),
    "since_last": (
        "[(WINDOW)]",
        "seconds since the row before, at most the window, which is 30d",
        "the window",
    ),
    "lag": ("(COLUMN, ROWS)", "value of the row so many rows before", "this row's value"),
    "diff": ("(COLUMN, ROWS)", "this row's value less that", "0"),
    "risk": (
        "(COLUMN, WINDOW[, delay WINDOW])",
        "(f + 20 p) / (n + 20), of the number n of rows with this row's value of the column that lie in the window"
        " before the delay, of those f that verdicts given by then, else the label column, say are fraud, and of the"
        " share p of frauds among the rows so counted in training; a label counts from the delay on",
        "p",
    ),
}
OF_NUMBERS = frozenset({"sum", "mean", "min", "max", "std", "z", "ratio", "lag", "diff"})
OF_ANY_VALUE = frozenset({"distinct", "is_new"})
_BY_STEPS = frozenset({"lag", "diff"})

# Brackets in double quotes are part of a name.
_ARGUMENTS = r"""(?:[^"()]|"[^"]*"|\([^"()]*\))*"""
_ENTRY = re.compile(
    rf"(?P<function>[a-z_]+)\s*(?:\((?P<arguments>{_ARGUMENTS})\))?(?:\s+by\s+(?P<by>.+))?", re.DOTALL
)
_WINDOW = r"[1-9][0-9]{0,8}[smhd]"


class Past(BaseModel):
    """What of the rows before a feature is. window, delay: such as 24h, as they were typed; empty, and steps 0, where
    the function has none. delay: how old rows are at the least, of risk alone.

    by: the column whose value tells the entities apart; None: the whole table is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: Function
    by: str | None = None
    window: str = Field("", pattern=rf"^({_WINDOW})?$")
    steps: int = Field(0, ge=0, le=MOST_STEPS)
    delay: str = Field("", pattern=rf"^({_WINDOW})?$")
    # Whether the time column holds numbers, which are taken for seconds.
    in_numbers: bool = False

    @cached_property
    def window_seconds(self) -> int:
        return _seconds(self.window)

    @cached_property
    def delay_seconds(self) -> int:
        return _seconds(self.delay)

    @property
    def takes_number(self) -> bool:
        return self.function in OF_NUMBERS

    @property
    def needs_own_value(self) -> bool:
        """Whether a row that holds NULL in the column it takes has no such feature."""
        return self.takes_number and self.function not in ("sum", "std")

    @property
    def takes_any_value(self) -> bool:
        return self.function in OF_ANY_VALUE

    @property
    def rows_before(self) -> int:
        """How many rows before it looks at, however old they are."""
        return 1 if self.function == "since_last" else self.steps

    @property
    def reach_seconds(self) -> int:
        """How far back it looks, wherever the rows are; 0 where it counts rows."""
        return 0 if self.function == "since_last" else self.window_seconds + self.delay_seconds

    def shown(self, column: str) -> str:
        """As it is declared to attach. column: the one that it takes, shown or known to models so."""
        if self.function == "risk":
            delay = f", delay {self.delay}" if self.delay else ""
            return f"risk({display(self.by or '')}, {self.window}{delay})"
        arguments = [column] if self.takes_number or self.takes_any_value else []
        if self.steps:
            arguments.append(str(self.steps))
        elif self.function != "since_last" or self.window != _LONGEST_GAP:
            arguments.append(self.window)
        said = f"{self.function}({', '.join(arguments)})" if arguments else self.function
        return said if self.by is None else f"{said} by {display(self.by)}"


@dataclass(frozen=True)
class Entry:
    """An entry of --features that is one of these. column: the one that the function takes, if any."""

    past: Past
    column: str | None


def parse(text: str) -> Entry | None:
    """None if the text is no call of one of the functions. Raises SourceError if it is one, and wrong."""
    match = _ENTRY.fullmatch(text.strip())
    if match is None or match["function"] not in FORMS:
        return None
    function, arguments = match["function"], match["arguments"]
    if arguments is None and function != "since_last":
        return None
    given = split_identifiers(arguments, ",") if arguments is not None and arguments.strip() else []
    by = None if match["by"] is None else parse_identifier(match["by"].strip())
    if function == "risk":
        return Entry(_risk(text, given, by), None)
    takes_column = function in OF_NUMBERS | OF_ANY_VALUE
    least, most = (2, 2) if takes_column else (0 if function == "since_last" else 1, 1)
    if not least <= len(given) <= most:
        raise SourceError(f"{text!r} is not written as {_form(function)}.")
    column = parse_identifier(given[0]) if takes_column else None
    if function in _BY_STEPS:
        return Entry(_past(function, by, steps=_steps(given[-1], text, function)), column)
    window = _window(given[-1], text, function) if given else _LONGEST_GAP
    return Entry(_past(function, by, window=window), column)


def _past(function: str, by: str | None, **others: str | int) -> Past:
    return Past.model_validate({"function": function, "by": by, **others})


def _risk(text: str, given: list[str], by: str | None) -> Past:
    delay = re.fullmatch(r"delay\s+(.+)", given[2], re.DOTALL) if len(given) == 3 else None
    if by is not None or len(given) not in (2, 3) or (len(given) == 3 and delay is None):
        raise SourceError(f"{text!r} is not written as {_form('risk')}.")
    windows = {"window": _window(given[1], text, "risk")}
    if delay is not None:
        windows["delay"] = _window(delay[1], text, "risk")
    return _past("risk", parse_identifier(given[0]), **windows)


def _form(function: str) -> str:
    return f"{function}{FORMS[function][0]}{'' if function == 'risk' else ' [by COLUMN]'}"


def _window(text: str, entry: str, function: str) -> str:
    """A window such as 24h or 30d. Raises SourceError if it is none, or longer than 400 days."""
    if not re.fullmatch(_WINDOW, text, re.ASCII):
        raise SourceError(
            f"The window {text!r} of {entry!r} is not a number of s, m, h or d, as in 24h; write {_form(function)}."
        )
    if _seconds(text) > LONGEST_WINDOW_SECONDS:
        raise SourceError(f"The window {text} of {entry!r} is longer than 400d.")
    return text


def _seconds(window: str) -> int:
    return int(window[:-1]) * _UNITS[window[-1]] if window else 0


def _steps(text: str, entry: str, function: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= MOST_STEPS:
        raise SourceError(
            f"{text!r} in {entry!r} is not a number of rows from 1 to {MOST_STEPS:,}; write {_form(function)}."
        )
    return int(text)


def entities(features: Sequence[Past]) -> list[str | None]:
    """The columns that tell entities apart, each once, in the order of the features."""
    return list(dict.fromkeys(past.by for past in features))
