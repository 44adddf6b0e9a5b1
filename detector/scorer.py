"""Scoring rows in an ONNX Runtime session over the graph of `detector.graph`.

ONNX Runtime and the package that builds its graphs are imported with the first scorer, not with this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector import reference
from pgoutlier.detector.arrays import Arrays, Float32Matrix, Float64Matrix, Float64Vector, IntMatrix
from pgoutlier.detector.graph import FEATURES, build_graph
from pgoutlier.detector.recipes import Recipe

# So many rows at once keep what is computed of them in the processor's cache, and the cost of a call small.
BLOCK_ROWS = 1024


class Scorer:
    """Errors of rows and, if it explains, contributions. Safe to call from several threads."""

    __slots__ = ("_all_kept", "_explains", "_kept", "_n_features", "_run", "_window")

    def __init__(
        self, recipe: Recipe, feature_names: Sequence[str], arrays: Arrays, *, explains: bool
    ) -> None:
        kept = recipe.kept_columns(feature_names)
        self._explains = explains
        self._kept = np.array(kept)
        self._n_features = len(feature_names)
        self._all_kept = len(kept) == len(feature_names)
        self._window = recipe.window
        self._run = _session(build_graph(recipe, kept, arrays, explains=explains)).run

    def __call__(
        self, matrix: Float64Matrix, positions: IntMatrix | None
    ) -> tuple[Float64Vector, Float32Matrix | None]:
        """Errors (n_rows,), and contributions (n_rows, n_features) if this scorer explains.

        matrix: (n_rows, n_features) float64, checked, or (n_rows, window, n_features); positions: the row numbers
        of each row's window where the recipe has one and the matrix is of rows.
        """
        if not self._all_kept:
            matrix = np.take(matrix, self._kept, axis=-1)
        n_rows = len(matrix)
        if 0 < n_rows <= BLOCK_ROWS and self._all_kept:
            found = self._run(None, {FEATURES: self._block(matrix, positions, slice(None))})
            return found[0], found[1] if self._explains else None
        errors = np.empty(n_rows)
        contributions = np.zeros((n_rows, self._n_features), dtype=np.float32) if self._explains else None
        for start in range(0, n_rows, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            found = self._run(None, {FEATURES: self._block(matrix, positions, rows)})
            errors[rows] = found[0]
            if contributions is not None and self._all_kept:
                contributions[rows] = found[1]
            elif contributions is not None:
                contributions[rows, self._kept] = found[1]
        return errors, contributions

    def _block(self, matrix: Float64Matrix, positions: IntMatrix | None, rows: slice) -> NDArray[np.float64]:
        """The rows as the graph takes them."""
        if self._window == 1:
            return matrix[rows]
        if positions is not None:
            return matrix[positions[rows].T]
        return np.ascontiguousarray(matrix[rows].swapaxes(0, 1))


class TailScorer:
    """The same of a recipe with the step "tails": NumPy is as quick there, and nothing has to be imported."""

    __slots__ = ("_arrays", "_names", "_recipe")

    def __init__(self, recipe: Recipe, feature_names: Sequence[str], arrays: Arrays) -> None:
        self._recipe, self._names, self._arrays = recipe, feature_names, arrays

    def __call__(
        self, matrix: Float64Matrix, positions: IntMatrix | None
    ) -> tuple[Float64Vector, Float32Matrix | None]:
        """As of `Scorer`."""
        errors, contributions = reference.score(self._recipe, self._names, self._arrays, matrix)
        return errors, contributions.astype(np.float32)


def load_onnx_runtime() -> None:
    """Import ONNX Runtime now, so that the first score does not wait for it."""
    import onnx  # noqa: F401
    import onnxruntime

    # It sends nothing on Linux anyway.
    onnxruntime.disable_telemetry_events()


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Work is shared out among the worker's own threads. Said in numbers, nothing is pinned to processors, which fails
    # where a process may not use them all.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Without the arena every block's memory is asked for anew, which takes as long as half the scoring; with it
    # memory is bounded by the largest block.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = True
    options.log_severity_level = 3
    load_onnx_runtime()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
