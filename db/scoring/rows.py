"""What is read of a source's rows, as arrays: any rows, and those of a claim, with the rows before them or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.keys import Key

# What is wrong with a row that PostgreSQL refused to read, see db.scoring.unreadable.
UNREADABLE = np.iinfo(np.int32).min


@dataclass(frozen=True)
class FeatureRows:
    """n rows of a source as read.

    keys (n,): wire form, see db.sql.keys.
    matrix (n, d): float64 in the source's units; NaN where the value was NULL.
    problems (n,): int32; 0, or the 1-based feature slot that was NULL (positive) or of wrong length (negative), or
    UNREADABLE. refusals: PostgreSQL's sentence on unreadable rows, these and perhaps others, by key as text.
    n_cut_short: rows, when they were read, with more before them in a window than are looked at.
    """

    keys: key_types.Keys
    matrix: npt.NDArray[np.float64]
    problems: npt.NDArray[np.int32]
    refusals: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    n_cut_short: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: npt.NDArray[Any]) -> FeatureRows:
        """The rows picked by a mask or by positions."""
        return FeatureRows(self.keys[rows], self.matrix[rows], self.problems[rows], refusals=self.refusals)

    @staticmethod
    def together(parts: Sequence[FeatureRows]) -> FeatureRows:
        """The rows of all parts, one or more, of one source."""
        return FeatureRows(
            # NumPy would turn wire order into the machine's.
            np.concatenate([part.keys for part in parts], dtype=parts[0].keys.dtype),
            np.concatenate([part.matrix for part in parts]),
            np.concatenate([part.problems for part in parts]),
            n_cut_short=sum(part.n_cut_short for part in parts),
        )

    def sound(self, *, imputes: bool) -> npt.NDArray[np.bool_]:
        """Which rows can be scored, (n,). imputes: the recipe fills gaps."""
        if imputes:
            return self.problems >= 0
        complete: npt.NDArray[np.bool_] = np.isfinite(self.matrix).all(axis=1) & (self.problems == 0)
        return complete


@dataclass(frozen=True)
class History:
    """Claimed rows and the rows of their windows, m in all, in order of time within each run.

    rows (m,): claimed ones, and those that are there only for the sake of later ones.
    claimed (m,): bool; which are claimed.
    runs (m,): int64; rows of one run are of one entity, with none left out between them.
    places (n,): int64; where each of the n rows whose history this is stands among the m.
    window: how many rows there are to a window at most, the row itself included; 2 or more.
    """

    rows: FeatureRows
    claimed: npt.NDArray[np.bool_]
    runs: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    window: int


@dataclass(frozen=True)
class ClaimedRows(FeatureRows):
    """The rows of a claim, in no particular order; a key whose score was asked for twice may be there twice.

    change_ids (n,): int64; id of the change that each row's score is written under, see db.scoring.queue.
    history: the rows before them, where they are scored together, see db.scoring.windows.
    """

    change_ids: npt.NDArray[np.int64]
    history: History | None = None

    @property
    def window(self) -> int:
        """How many rows there are to a window, 1 where each row is scored by itself."""
        return 1 if self.history is None else self.history.window

    def take(self, rows: npt.NDArray[Any]) -> ClaimedRows:
        """The rows picked by a mask or by positions."""
        history = self.history
        return ClaimedRows(
            self.keys[rows],
            self.matrix[rows],
            self.problems[rows],
            self.change_ids[rows],
            None if history is None else replace(history, places=history.places[rows]),
            refusals=self.refusals,
        )

    def latest_by_key(self, key: Key) -> ClaimedRows:
        """One row a key, in the order of `db.sql.keys.Key.sortable`: the one of the latest change."""
        keys = key.sortable(self.keys)
        if (keys[:-1] < keys[1:]).all():
            return self
        order = np.lexsort((self.change_ids, keys))
        keys = keys[order]
        return self.take(order[np.append(keys[:-1] != keys[1:], True)])
