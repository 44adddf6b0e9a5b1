"""What every command prints with: tables for people, one line of JSON for scripts, errors on standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

    from pgoutlier import detector
    from pgoutlier.db.tables import TopFeature

console = Console()
errors = Console(stderr=True)

# Notes and names are other people's: what would steer the terminal is spelled out.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in {9, 10}}


# Columns of numbers that one types again: nothing is put between their digits.
_IDENTITIES = {"id", "job", "key", "version", "champion", "challenger"}


def plain(value: Any) -> Any:
    """A value as JSON knows it: a dataclass as its fields by name, a time as text, what JSON has no number for too."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else _as_postgres_spells(value)
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return str(value)


def _as_postgres_spells(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _number(value: Decimal) -> Any:
    """As a number where that is the same one, else its digits as text: a double has some 16 of them."""
    number = float(value)
    if not math.isfinite(number):
        return str(value) if value.is_finite() else _as_postgres_spells(number)
    if Decimal(repr(number)) == value:
        return number
    return int(value) if value == value.to_integral_value() else str(value)


def print_json(data: Any) -> None:
    """One line of JSON on standard output, never wrapped or coloured."""
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair, which a json of the user's may hold, is no UTF-8; so written it is an escape of JSON's.
    console.file.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    console.file.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; None shows as a dash. Text is never read as markup, nor as control sequences of the terminal."""
    table = new_table(title, columns)
    for row in rows:
        values = (identity(v) if name in _IDENTITIES else v for name, v in zip(columns, row, strict=True))
        table.add_row(*(_cell(value) for value in values))
    console.print(table)


def new_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table in the one style, narrow enough for 80 columns where the content allows it."""
    table = Table(
        title=title or None,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def new_bar(figures: str) -> Progress:
    """A bar on standard error between the description of its task and these figures of it, gone when it is done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # most commands show none

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn(figures),
        TimeElapsedColumn(),
    )
    # Where there is no terminal, a bar would only leave an empty line.
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


@contextmanager
def epoch_bar(verb: str, what: str) -> Iterator[Callable[[detector.Progress], None]]:
    """A bar of epochs, loss and time to go on standard error, moved by what this gives."""
    with new_bar("epoch {task.completed}/{task.total}  {task.fields[note]}") as bar:
        task = bar.add_task(f"{verb} {what}", total=None, note="reading rows")

        def show(epoch: detector.Progress) -> None:
            note = f"loss {epoch.loss:.4f}  ETA {seconds_text(epoch.eta_seconds)}"
            bar.update(task, total=epoch.n_epochs, completed=epoch.epoch, note=note)

        yield show


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.strftime("%m-%d %H:%M:%S")
    return escape(str(value).translate(_CONTROLS))


def identity(value: object) -> object:
    """What says which row or whose it is, for a cell: a number as one types it, with nothing between its digits."""
    return str(value) if isinstance(value, int) else value


def top_features_text(top: list[TopFeature] | None, *, most: int = 3) -> str:
    """The top contributing features of a flagged row in one line: value, and contribution in brackets."""

    def text(entry: TopFeature) -> str:
        value = entry.get("value")
        shown = "" if value is None else f" = {value:.4g}"
        return f"{entry['feature']}{shown} ({float(entry['contribution']):.3g})"

    return ", ".join(text(entry) for entry in (top or [])[:most])


def seconds_text(seconds: float | None) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min, 2.5 h, 12 d."""
    if seconds is None:
        return "-"
    units = ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600), (float("inf"), "d", 86_400))
    for limit, unit, size in units:
        if seconds < limit:
            return f"{seconds / size:.{0 if seconds / size >= 10 else 1}f} {unit}"
    raise AssertionError("every number is below infinity")
