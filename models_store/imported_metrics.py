"""Metrics of a version that came as a file: what the program reads of them is what it would have written itself."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt

from pgoutlier.db.tables import LONGEST_NOTE, JsonObject

_MOST_NAMES = 200
_MOST_EPOCHS = 100_000
# Of what another version of the program may have written beside it.
_MOST_CHARACTERS = 65_536
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.%-]{0,99}")
_NUMBERS = re.compile(r"kept_epoch|seconds|epochs|seed|n_.+|.+_(rate|recall|precision)|.+_error_q.+")


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError("no number that can be kept")
    return value


Number = Annotated[Any, AfterValidator(_number)]
Figures = Annotated[dict[str, Number | None], Field(max_length=_MOST_NAMES)]


class _Gate(BaseModel):
    """What the gate decided, and the figures on held-out rows, which are there together or not at all."""

    model_config = ConfigDict(extra="allow")

    promotion: Annotated[str, Field(max_length=100)]
    promoted: StrictBool
    reason: Annotated[str, Field(max_length=LONGEST_NOTE)]


class _HeldOut(_Gate):
    n_held_out: StrictInt
    n_fraud: StrictInt
    budget: StrictInt
    new: Figures | None
    champion: Figures | None
    baseline: Figures | None


class _Metrics(BaseModel):
    model_config = ConfigDict(extra="allow")

    history: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=100)],
                Annotated[list[Number], Field(max_length=_MOST_EPOCHS)],
            ],
            Field(max_length=20),
        ]
        | None
    ) = None
    gate: _HeldOut | _Gate | None = None


def checked(metrics: JsonObject) -> JsonObject:
    """The metrics themselves. Raises ValueError unless few, plainly named, and numbers where numbers are read."""
    if len(metrics) > _MOST_NAMES or not all(map(_NAME.fullmatch, metrics)):
        raise ValueError("names")
    found = _Metrics.model_validate(metrics)
    if isinstance(metrics.get("gate"), dict) and "n_held_out" in metrics["gate"]:
        _HeldOut.model_validate(metrics["gate"])
    others = found.model_extra or {}
    for name, value in others.items():
        if _NUMBERS.fullmatch(name):
            _number(value)
    if len(json.dumps(others)) > _MOST_CHARACTERS or len(json.dumps(metrics.get("gate"))) > _MOST_CHARACTERS:
        raise ValueError("size")
    return metrics
