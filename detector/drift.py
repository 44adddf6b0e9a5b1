"""Drift: how far the rows of today have moved from those a version was trained on, a number a feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pgoutlier.detector.arrays import Float64Vector

N_BINS = 10
# The usual reading: below the first nothing has changed, above the second the model should be looked at
# (Siddiqi, Credit Risk Scorecards, Wiley 2006).
PSI_MODERATE, PSI_LARGE = 0.1, 0.25


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Binned(_Part):
    """How values are spread: the share of them in each bin.

    edges: ascending; bin i holds the values above edges[i - 1] and not above edges[i], the first and the last
    of them are open. shares: one a bin, then that of missing values (NaN); they add up to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    n_rows: int = Field(ge=1, lt=2**63)

    @model_validator(mode="after")
    def _fits(self) -> Binned:
        if len(self.shares) != len(self.edges) + 2:
            raise ValueError("there must be two more shares than edges")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must ascend")
        if any(not 0 <= share <= 1 for share in self.shares):
            raise ValueError("shares must lie between 0 and 1")
        return self


class Reference(_Part):
    """What a version keeps of its training rows, to tell drift by. error: of rows it was not fitted on."""

    features: dict[str, Binned]
    error: Binned

    @classmethod
    def of(cls, features: ArrayLike, names: Sequence[str], errors: ArrayLike) -> Reference:
        """features: (n_rows, n_features), columns as in names; errors: (m,). At least one row and one error."""
        matrix = np.asarray(features, dtype=np.float64)
        columns = zip(names, matrix.T, strict=True)
        return cls(features={name: binned(column) for name, column in columns}, error=binned(errors))


def binned(values: ArrayLike, n_bins: int = N_BINS) -> Binned:
    """The spread of values (n,) over bins that each hold about the same share of them.

    A value that many rows have gets a bin of its own, so there may be fewer bins; what lies outside of all
    values seen here falls into a bin of its own where the outermost one holds a single value.
    """
    column = np.asarray(values, dtype=np.float64)
    known = np.sort(column[np.isfinite(column)])
    edges: NDArray[Any] = np.empty(0)
    if len(known):
        edges = np.unique(np.quantile(known, np.arange(1, n_bins) / n_bins, method="lower"))
        if edges[0] == known[0]:
            with np.errstate(over="ignore"):
                below = known[0] - 1e-9 * max(1.0, abs(known[0]))
            edges = np.unique([max(below, -np.finfo(np.float64).max), *edges])
    return Binned(
        edges=tuple(float(edge) for edge in edges),
        shares=tuple(float(share) for share in _counts(edges, column) / len(column)),
        n_rows=len(column),
    )


def psi(reference: Binned, values: ArrayLike) -> float:
    """The population stability index of values (n,) against the reference: 0 where both are spread alike.

    sum over bins of (a - e) * ln(a / e), with e the share of the reference and a that of the values: Siddiqi,
    Credit Risk Scorecards, Wiley 2006; the same as the divergence of Jeffreys, An invariant form for the prior
    probability in estimation problems, Proc. R. Soc. A 186 (1946) 453-461. Each count has half a row added,
    so that an empty bin does not make it infinite. At least one value.
    """
    return psi_of_counts(reference, counts(reference, values))


def counts(reference: Binned, values: ArrayLike) -> Float64Vector:
    """How many of the values (n,) fall into each bin of the reference, and at last how many are missing.

    Counts of several blocks of rows add up, so that no more than one block need be in memory.
    """
    return _counts(np.array(reference.edges), np.asarray(values, dtype=np.float64))


def psi_of_counts(reference: Binned, n_in_bins: Float64Vector) -> float:
    """`psi` of values that were counted before."""
    expected = _smooth(np.array(reference.shares) * reference.n_rows)
    actual = _smooth(n_in_bins)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def psi_by_chance(reference: Binned, n_rows: int) -> float:
    """About what the index is for n_rows rows of the very same spread, on average.

    (B - 1) * (1 / n + 1 / m), B the bins that are used: Yurdakul, Statistical Properties of Population
    Stability Index, Western Michigan University 2018.
    """
    used = sum(share > 0 for share in reference.shares)
    return (used - 1) * (1 / n_rows + 1 / reference.n_rows)


def psi_limit(reference: Binned, n_rows: int, probability: float) -> float:
    """What the index of n_rows rows of the very same spread exceeds with no more than about this probability.

    Over 1 / n + 1 / m the index is about a chi-squared number of one degree of freedom less than there are bins:
    Yurdakul, Statistical Properties of Population Stability Index, Western Michigan University 2018. Bins that
    hold none of the reference's rows count, for the values may have some there.
    """
    # Not scipy.stats, which takes a second to import; and here, so that commands without drift import neither.
    from scipy.special import chdtri

    quantile = chdtri(len(reference.shares) - 1, probability)
    return float(quantile * (1 / n_rows + 1 / reference.n_rows))


def rates_differ(n_hits: int, n_rows: int, expected_hits: int, expected_rows: int) -> float:
    """The probability that two samples of one and the same rate differ at least so much, the way these two do.

    Given all hits together, those of the first sample are binomial: Przyborowski and Wilenski, Homogeneity of
    results in testing samples from Poisson series, Biometrika 31 (1940) 313-323. Both numbers of rows are positive.
    """
    from scipy.special import bdtr, bdtrc

    share = n_rows / (n_rows + expected_rows)
    n_all = n_hits + expected_hits
    return float(min(bdtrc(n_hits - 1, n_all, share), bdtr(n_hits, n_all, share)))


def _counts(edges: NDArray[Any], column: Float64Vector) -> Float64Vector:
    """Values in each bin, and at last the missing ones. Infinities fall into the outermost bins."""
    bins = np.where(np.isnan(column), len(edges) + 1, np.searchsorted(edges, column, side="left"))
    return np.bincount(bins, minlength=len(edges) + 2).astype(np.float64)


def _smooth(counts: Float64Vector) -> Float64Vector:
    smoothed: Float64Vector = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return smoothed
