"""Windows: each row together with the rows before it, of its own group, in time order.

A row with too few rows before it is filled up in front with the earliest row of its group. The same rule
holds when fitting, when scoring a matrix and when scoring rows of a database.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pgoutlier.detector.arrays import IntMatrix
from pgoutlier.detector.errors import WindowMismatch


def window_positions(n_rows: int, groups: ArrayLike | None, window: int) -> IntMatrix:
    """Row numbers of each row's window, the oldest first and the row itself last, (n_rows, window).

    groups: (n_rows,) whose row each is, of any sortable type; rows of one group are in time order, however
    they are mixed with others. None: all of one group. Raises WindowMismatch if there is not one for each row.
    """
    if groups is None:
        order, starts = np.arange(n_rows), np.zeros(n_rows, dtype=np.int64)
    else:
        labels = np.asarray(groups)
        if labels.shape != (n_rows,):
            raise WindowMismatch(
                f"groups must hold one label for each of the {n_rows} rows, not be of shape {labels.shape}."
            )
        _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(numbers, kind="stable")
        starts = np.repeat(np.cumsum(counts) - counts, counts)
    back = np.arange(window - 1, -1, -1)
    positions = np.empty((n_rows, window), dtype=np.int64)
    positions[order] = order[np.maximum(np.arange(n_rows)[:, None] - back, starts[:, None])]
    return positions
