"""Scoring with the rows before: what a champion with a window asks of a batch, between claim and commit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError
from pgoutlier.db.scoring import claimed_rows, windows
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import ClaimedRows
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.detector import Recipe, window_positions
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import failures


def require_order(recipe: Recipe, definition: SourceDefinition) -> None:
    """Raises ModelError if the recipe scores rows with those before them, and nothing says which these are."""
    if recipe.window > 1 and definition.time_column is None:
        raise ModelError(
            f"Recipe {recipe.name} scores each row together with the {recipe.window - 1} rows before it, and"
            f" {definition.name} has no time column to order them by; attach it with --time COLUMN (and --entity"
            " COLUMN, if it holds rows of several cards, customers or machines)."
        )


def index_advice(connection: Connection, definition: SourceDefinition, recipes: list[Recipe]) -> str | None:
    """The CREATE INDEX that scoring by one of these recipes needs and the table lacks, or None."""
    if definition.time_column is None or all(recipe.window == 1 for recipe in recipes):
        return None
    return windows.missing_index(connection, definition)


def read(runtime: Runtime, connection: Connection, source: Source, claim: Claim) -> ClaimedRows:
    """The claimed rows, with the rows before them if the champion wants those; carefully, see `read_for`, when they are
    tried together for the last time."""
    careful = failures.is_last_whole_try(runtime, claim)
    if source.definition.time_column is None:
        return claimed_rows.read_claimed(connection, source.definition, claim, careful=careful)
    champion = registry.champion(connection, source, runtime.cache)
    window = 1 if champion is None else champion.detector.recipe.window
    return _read(connection, source, claim, window, careful=careful)


def read_for(
    connection: Connection, source: Source, claim: Claim, recipe: Recipe, *, careful: bool
) -> ClaimedRows:
    """The claimed rows, with the rows before them that the recipe wants. Raises ModelError as `require_order` does.

    careful: read around rows that cannot be read, see db.scoring.unreadable.
    """
    require_order(recipe, source.definition)
    return _read(connection, source, claim, recipe.window, careful=careful)


def fitting(
    connection: Connection,
    source: Source,
    claim: Claim,
    rows: ClaimedRows,
    recipe: Recipe,
    *,
    careful: bool,
) -> ClaimedRows:
    """The claimed rows with the rows before them that this champion wants; read once more, as `read_for` does, if they
    were read for a champion of another window.
    """
    if recipe.window == rows.window:
        return rows
    return read_for(connection, source, claim, recipe, careful=careful)


def _read(connection: Connection, source: Source, claim: Claim, window: int, *, careful: bool) -> ClaimedRows:
    if window == 1:
        return claimed_rows.read_claimed(connection, source.definition, claim, careful=careful)
    return windows.read_claimed(connection, source.definition, claim, window=window, careful=careful)


def inputs(rows: ClaimedRows, recipe: Recipe, sound: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """What a detector of this recipe scores of the sound rows: (n_sound, d), or (n_sound, recipe.window, d).

    sound (n,): bool; as `rows.sound` says for the recipe. The windows may be shorter than those that were read. A row
    that cannot be scored ends the history of those behind it.
    """
    if recipe.window == 1:
        return rows.matrix if sound.all() else rows.matrix[sound]
    history = rows.history
    if history is None or history.window < recipe.window:
        raise AssertionError("the rows were read without the rows before them that the recipe wants")
    usable = history.rows.sound(imputes=recipe.missing == "median")
    matrix = history.rows.matrix if usable.all() else history.rows.matrix[usable]
    positions = window_positions(len(matrix), windows.unbroken(history.runs, usable), recipe.window)
    place_among_usable = np.cumsum(usable) - 1
    found: npt.NDArray[np.float64] = matrix[positions[place_among_usable[history.places[sound]]]]
    return found
