"""A table of machines' readings in order of time, and what a champion of it that looks back gives each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg

from pgoutlier.detector import Detector
from pgoutlier.detector.recipes import Recurrent
from pgoutlier.worker.runtime import Runtime
from tests.support import Table, attach_table, make_detector, plain_recipe

User = psycopg.Connection[Any]

WINDOW = 3
# Random weights squeeze what they see; these keep every row of a window telling in the score.
SEQUENCE_RECIPE = plain_recipe(
    name="sequence",
    layers=(),
    recurrent=Recurrent(window=WINDOW, encoder=(4,), decoder=(4,), activation="linear"),
)
READINGS = """
CREATE TABLE readings (id bigint PRIMARY KEY, machine text, taken_at timestamptz, a float8, b float8);
CREATE INDEX readings_order ON readings (machine, taken_at, id)
"""


def attach_readings(user: User, runtime: Runtime) -> Table:
    table = attach_table(
        user,
        runtime,
        relation="readings",
        key="id",
        features="a,b",
        time="taken_at",
        entity="machine",
        recipe=SEQUENCE_RECIPE,
    )
    table.promote(make_detector(("a", "b"), recipe=SEQUENCE_RECIPE))
    return table


def insert(table: Table, *rows: tuple[int, str | None, float | None], user: User | None = None) -> None:
    """Rows of (id, machine, seconds); the features follow from the id."""
    insert_readings(user or table.user, *rows)


def insert_readings(user: User, *rows: tuple[int, str | None, float | None]) -> None:
    user.execute(
        "INSERT INTO readings SELECT i, m, timestamptz '2026-01-01' + make_interval(secs => s), sin(i), cos(i * 0.7)"
        " FROM unnest(%s::bigint[], %s::text[], %s::float8[]) r (i, m, s)",
        tuple(map(list, zip(*rows, strict=True))),
    )


def offline(table: Table, *, detector: Detector | None = None) -> dict[int, float]:
    """What the detector gives for the whole table, read in order and scored at once."""
    found = table.rows("SELECT id, machine, a, b FROM readings ORDER BY taken_at, id")
    scores = (detector or make_detector(("a", "b"), recipe=SEQUENCE_RECIPE)).numpy_score(
        np.array([row[2:] for row in found]), groups=np.array([row[1] for row in found])
    )
    return dict(zip([row[0] for row in found], scores.reconstruction_error.tolist(), strict=True))
