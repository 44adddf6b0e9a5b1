"""Scoring with the rows before: what a champion with a window asks of a batch, between claim and commit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError
from pgoutlier.db.scoring import features
from pgoutlier.db.scoring import windows as sequences
from pgoutlier.db.scoring.features import FeatureBatch
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.windows import SequenceRows
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sources.sources import Source
from pgoutlier.detector import Recipe, window_positions
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime


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
    return sequences.missing_index(connection, definition)


def read(
    runtime: Runtime, connection: Connection, source: Source, claim: Claim
) -> FeatureBatch | SequenceRows:
    """The claimed rows, with the rows before them if the champion wants those."""
    if source.definition.time_column is None:
        return features.read_claimed(connection, source.definition, claim.queue_ids)
    champion = registry.champion(connection, source, runtime.cache)
    return _read(connection, source, claim, 1 if champion is None else champion.detector.recipe.window)


def read_window(
    connection: Connection, source: Source, claim: Claim, recipe: Recipe
) -> FeatureBatch | SequenceRows:
    """The claimed rows of a source with a time column, with the rows before them that the recipe wants.

    Raises ModelError as `require_order` does.
    """
    require_order(recipe, source.definition)
    return _read(connection, source, claim, recipe.window)


def fitting(
    connection: Connection,
    source: Source,
    claim: Claim,
    rows: FeatureBatch | SequenceRows,
    recipe: Recipe,
) -> FeatureBatch | SequenceRows:
    """The claimed rows with the rows before them that this champion wants; read once more if they were read for
    a champion of another window. Raises ModelError as `require_order` does.
    """
    require_order(recipe, source.definition)
    return rows if recipe.window == _window(rows) else _read(connection, source, claim, recipe.window)


def prepare(
    connection: Connection, source: Source, claim: Claim, rows: FeatureBatch | SequenceRows, recipe: Recipe
) -> FeatureBatch:
    """`fitting` rows as this champion scores them; the rows behind them that it has to score again are queued."""
    if not isinstance(rows, SequenceRows):
        return rows
    sequences.queue_neighbours(connection, source.definition, claim.queue_ids, rows)
    return _with_windows(rows, recipe)


def for_challenger(
    connection: Connection, source: Source, claim: Claim, rows: FeatureBatch | SequenceRows, recipe: Recipe
) -> FeatureBatch:
    """The same rows with the windows of a challenger; nothing is queued for its sake.

    Reads once more if its windows are longer than the champion's: these have to be read for the champion alone, since
    rows that nobody but the challenger wants must not make its batch fail. Raises ModelError as `require_order` does.
    """
    require_order(recipe, source.definition)
    if recipe.window > _window(rows):
        rows = _read(connection, source, claim, recipe.window)
    return _with_windows(rows, recipe) if isinstance(rows, SequenceRows) else rows


def _window(rows: FeatureBatch | SequenceRows) -> int:
    return rows.window if isinstance(rows, SequenceRows) else 1


def _read(connection: Connection, source: Source, claim: Claim, window: int) -> FeatureBatch | SequenceRows:
    if window == 1:
        rows = features.read_claimed(connection, source.definition, claim.queue_ids)
        return rows if claim.change_id is None else _under(rows, claim.change_id)
    found = sequences.read_claimed(connection, source.definition, claim.queue_ids, window=window)
    return found if claim.change_id is None else replace(found, rows=_under(found.rows, claim.change_id))


def _under(rows: FeatureBatch, change_id: int) -> FeatureBatch:
    return replace(rows, change_ids=np.full(len(rows), change_id))


def _with_windows(found: SequenceRows, recipe: Recipe) -> FeatureBatch:
    """The claimed rows with their windows, which may be shorter than those that were read.

    A row that cannot be scored ends the history of those behind it.
    """
    sound = found.rows.sound(imputes=recipe.missing == "median")
    usable = found.rows.matrix[sound]
    positions = window_positions(len(usable), sequences.unbroken(found.runs, sound), recipe.window)
    batch = found.rows.take(found.claimed)
    if sound.all():
        return replace(batch, windows=usable[positions[found.claimed]])
    windows = np.zeros((len(batch), recipe.window, batch.matrix.shape[1]))
    windows[sound[found.claimed]] = usable[positions[found.claimed[sound]]]
    return replace(batch, windows=windows)
