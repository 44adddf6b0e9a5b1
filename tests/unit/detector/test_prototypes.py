from __future__ import annotations

import numpy as np

from detector import fit
from detector.prototypes import fit_prototypes, fit_scale, from_nearest
from tests.unit.detector.conftest import small_recipe


def two_groups(n_rows: int, *, seed: int) -> np.ndarray:
    """Half of the rows about (-10, -10, ...), half about (10, 10, ...)."""
    generator = np.random.default_rng(seed)
    return generator.choice([-10.0, 10.0], (n_rows, 1)) + generator.normal(size=(n_rows, 4))


def test_a_row_is_measured_from_the_nearest_prototype() -> None:
    prototypes = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = np.array([[1.0, 2.0], [9.0, -1.0], [-3.0, 8.0]])
    np.testing.assert_array_equal(from_nearest(rows, prototypes), [[1, 2], [-1, -1], [-3, -2]])


def test_prototypes_lie_where_the_rows_are() -> None:
    rows = two_groups(2_000, seed=0)
    prototypes = fit_prototypes(rows, 16, seed=0)
    assert prototypes.shape == (16, 4)
    assert (np.abs(prototypes.mean(axis=1)) > 8).all()
    np.testing.assert_array_equal(prototypes, fit_prototypes(rows, 16, seed=0))
    assert not np.array_equal(prototypes, fit_prototypes(rows, 16, seed=1))


def test_few_rows_have_few_prototypes_which_are_repeated() -> None:
    prototypes = fit_prototypes(two_groups(20, seed=0), 16, seed=0)
    assert prototypes.shape == (16, 4)
    assert len(np.unique(prototypes, axis=0)) <= 4


def test_a_scale_is_positive_even_where_rows_are_their_prototypes() -> None:
    differences = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        fit_scale([differences, differences[1:], differences[:1]]), [5 / 3, 1.0, 5.0], rtol=1e-12
    )


def test_a_row_between_two_groups_is_an_anomaly_only_with_prototypes() -> None:
    rows, between = two_groups(2_000, seed=0), np.full((1, 4), 1.0)
    names = [f"f{i}" for i in range(4)]
    for prototypes, is_found in ((0, False), (16, True)):
        recipe = small_recipe(error_metric="mahalanobis", prototypes=prototypes)
        detector = fit(recipe, rows, names).detector
        error = detector.score(between).reconstruction_error[0]
        assert (error > np.median(detector.score(rows).reconstruction_error) * 2) == is_found
