"""What can go wrong in this package: every error says in one sentence what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pgoutlier.detector.arrays import IntVector


class DetectorError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownRecipe(DetectorError):
    """No recipe has this name."""

    def __init__(self, *, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"There is no recipe named {name!r}; choose one of: {', '.join(self.known)}.")


class InvalidRecipe(DetectorError):
    """The recipe's text or its fields break a rule, or it does not fit the features at hand."""


class InvalidDetector(DetectorError):
    """The arrays are not those that the recipe and the features call for."""


class TrainingDataError(DetectorError):
    """These rows cannot be fitted on."""


class TensorFlowMissing(DetectorError):
    """This environment has no TensorFlow, which fits networks and is not needed for anything else."""

    def __init__(self) -> None:
        super().__init__(
            "TensorFlow, which trains, is not installed here; train where it is (requirements/runtime.txt, or the"
            " image's target training), or leave it to a train worker: pgoutlier train SOURCE --queue"
        )


class MetricsError(DetectorError):
    """No figures can be drawn from these errors and this truth."""


class FeatureMismatch(DetectorError):
    """The matrix has other columns than the detector was fitted on."""

    def __init__(self, *, expected: int, got: int | None) -> None:
        self.expected = expected
        self.got = got
        found = "no second axis" if got is None else f"{got} columns"
        super().__init__(
            f"The detector was fitted on {expected} features and the matrix has {found}; "
            "pass (n_rows, n_features) with the columns in the order of the detector's feature_names."
        )


class WindowMismatch(DetectorError):
    """Windows of another length than the recipe's, or groups that are not one for each row."""


class NonFiniteFeatures(DetectorError):
    """Some rows hold NaN or infinity and the recipe says to quarantine them.

    rows: (n_bad,) int64, ascending row indices into the matrix.
    columns: (n_bad,) int64, the first bad column of each of these rows.
    """

    def __init__(self, *, rows: IntVector, columns: IntVector, feature_names: Sequence[str]) -> None:
        self.rows = rows
        self.columns = columns
        names = sorted({feature_names[column] for column in columns[:100]})
        first = ", ".join(str(row) for row in rows[:5])
        more = ", ..." if len(rows) > 5 else ""
        super().__init__(
            f"{len(rows)} rows hold NaN or infinity (rows {first}{more}; features {', '.join(names)}); "
            "leave them out, or use a recipe whose missing policy is 'median'."
        )

    @classmethod
    def of(cls, finite: np.ndarray, feature_names: Sequence[str]) -> NonFiniteFeatures:
        """From the (n_rows, n_features) mask of finite entries; at least one entry is False."""
        rows = np.flatnonzero(~finite.all(axis=1)).astype(np.int64)
        columns = np.argmin(finite[rows], axis=1).astype(np.int64)
        return cls(rows=rows, columns=columns, feature_names=feature_names)
