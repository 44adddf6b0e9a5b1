from __future__ import annotations

import numpy as np
import pytest

from pgoutlier.detector.residuals import LEVEL_CORE, fit_whitening, untrimmed

N_ROWS = 4_000


def rows_with(level_share: float, jitter: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(rows, who holds the level): four features, in the first of which a share of the rows is at 1, not 0."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(N_ROWS, 4))
    holds = np.zeros(N_ROWS, dtype=bool)
    holds[generator.permutation(N_ROWS)[: round(level_share * N_ROWS)]] = True
    rows[:, 0] = holds + jitter * generator.normal(size=N_ROWS)
    return rows, holds


@pytest.mark.parametrize("jitter", [0.0, 0.001])
def test_trimming_leaves_the_core_of_a_rare_level(jitter: float) -> None:
    rows, holds = rows_with(0.02, jitter)
    distances = np.square(rows / rows.std(axis=0)).sum(axis=1)
    assert not holds[untrimmed(distances, 0.1)].any()
    kept = untrimmed(distances, 0.1, rows)
    assert holds[kept].sum() >= 0.9 * LEVEL_CORE * holds.sum()
    assert distances[holds].max() > distances[kept][holds[kept]].max()
    assert (np.diff(kept) > 0).all()


def test_a_level_of_very_few_rows_is_trimmed() -> None:
    rows, holds = rows_with(0.003)
    distances = np.square(rows / rows.std(axis=0)).sum(axis=1)
    assert not holds[untrimmed(distances, 0.1, rows)].any()


def test_a_rare_level_keeps_its_variance_and_its_rows_a_moderate_distance() -> None:
    rows, holds = rows_with(0.02)
    distances = {}
    for name, features in (("plain", None), ("levels", rows)):
        location, whitening = fit_whitening(rows, 0.1, features=features)
        distances[name] = np.sqrt(np.square((rows - location) @ whitening).sum(axis=1))
    assert np.median(distances["plain"][holds]) > 50
    assert np.median(distances["levels"][holds]) < 10
    rest = ~holds
    np.testing.assert_allclose(distances["levels"][rest], distances["plain"][rest], atol=0.15)
