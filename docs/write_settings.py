"""Writes docs/settings.md from db.settings.Settings; `make docs` runs it, a test compares."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pgoutlier.db.settings import PREFIX, Settings

PAGE = Path(__file__).parent / "settings.md"
_HEAD = """\
# Settings

Every process reads them once, when it starts: from the environment, and from a file `.env` in the folder it is
started in, where the environment says nothing. An empty value counts as unset. What cannot be used is named in one
sentence, without its value, and the exit code is 2. Durations are seconds.

The intervals of beat are where its schedules begin; a [schedule](operations.md#schedules) that was edited keeps to
what it was given.

This page is written from the code by `make docs`.

| variable | default | bounds | meaning |
|---|---|---|---|
"""
_DATA_DIR_DEFAULT = "root: `/var/lib/pgoutlier`; others: `pgoutlier` in the user's data folder"


def page() -> str:
    """The whole text of docs/settings.md."""
    rows = (_row(name, field) for name, field in Settings.model_fields.items())
    return _HEAD + "".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    bounds = _bounds(field)
    return f"| `{PREFIX}{name.upper()}` | {_default(name, field)} | {bounds} | {field.description} |\n"


def _default(name: str, field: FieldInfo) -> str:
    if name == "data_dir":
        return _DATA_DIR_DEFAULT
    if field.default is None or field.default is PydanticUndefined:
        return "unset"
    return f"`{field.default}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": "above", "ge": "from", "le": "to"}
    found = [
        f"{word} {getattr(limit, attribute):,}"
        for limit in field.metadata
        for attribute, word in signs.items()
        if getattr(limit, attribute, None) is not None
    ]
    return " ".join(found)


if __name__ == "__main__":
    PAGE.write_text(page())
