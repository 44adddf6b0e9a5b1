from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pgoutlier.detector import Recipe, fit, metrics, recipe_named
from pgoutlier.detector.prototypes import fit_prototypes, fit_scale, from_nearest
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


def test_a_row_far_from_all_others_is_no_prototype() -> None:
    rows = np.vstack([two_groups(2_000, seed=0), np.full((1, 4), 1_000.0)])
    assert np.abs(fit_prototypes(rows, 64, seed=0)).max() < 100


def quantiser(**changes: object) -> Recipe:
    return small_recipe(layers=(), prototypes=16, epochs=1, early_stopping=None, **changes)


def test_without_layers_the_nearest_prototype_is_the_reconstruction() -> None:
    rows, names = two_groups(2_000, seed=0), [f"f{i}" for i in range(4)]
    fitted = fit(quantiser(), rows, names)
    detector = fitted.detector
    values = detector.preprocess(rows)
    np.testing.assert_allclose(
        values - detector.reconstruct(rows),
        from_nearest(values.astype(np.float64), detector.arrays["prototypes.rows"]),
        atol=1e-5,
    )
    assert len(fitted.history["loss"]) == len(fitted.history["val_loss"]) == 1
    between = detector.score(np.full((1, 4), 1.0)).reconstruction_error[0]
    assert between > np.quantile(detector.score(rows).reconstruction_error, 0.99)


@pytest.mark.parametrize("n_rows", [7, 4096])
@pytest.mark.parametrize("error_metric", ["mse", "mae"])
def test_a_quantiser_scores_as_its_numpy_twin_does(error_metric: str, n_rows: int) -> None:
    rows, names = two_groups(5_000, seed=0), [f"f{i}" for i in range(4)]
    detector = fit(quantiser(error_metric=error_metric), rows, names).detector
    scores, twin = detector.score(rows[:n_rows]), detector.numpy_score(rows[:n_rows])
    np.testing.assert_allclose(scores.reconstruction_error, twin.reconstruction_error, rtol=1e-9)
    np.testing.assert_allclose(scores.contributions.sum(axis=1), scores.reconstruction_error, rtol=1e-5)


def test_the_recipe_for_series_finds_abnormal_heartbeats(data_directory: Path) -> None:
    beats = np.loadtxt(data_directory / "ecg5000.csv.gz", delimiter=",")
    normal = beats[:, -1] == 1
    figures = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(beats))
        training, test = order[:4_000], order[4_000:]
        names = [str(i) for i in range(140)]
        rows = beats[training][normal[training], :-1]
        detector = fit(recipe_named("series"), rows, names, seed=seed).detector
        errors = detector.score(beats[test, :-1]).reconstruction_error
        found = metrics.ranking(~normal[test], errors)
        figures.append(
            (found.auroc, metrics.confusion_at(~normal[test], errors, detector.threshold).accuracy)
        )
    auroc, accuracy = np.mean(figures, axis=0)
    assert auroc > 0.99
    assert accuracy > 0.97


def test_beyond_the_cap_the_distance_from_the_nearest_prototype_counts_no_more() -> None:
    rows = two_groups(400, seed=2)
    names = [f"f{i}" for i in range(rows.shape[1])]
    fields: dict[str, object] = {"error_metric": "mahalanobis", "prototypes": 8, "prototype_weight": 0.5}
    uncapped, capped = (
        fit(small_recipe(**fields, prototype_cap=cap), rows, names).detector for cap in (None, 2.0)
    )
    far = rows[:5] + np.array([[1], [3], [10], [100], [1000]])
    alone = fit(small_recipe(error_metric="mahalanobis"), rows, names).detector
    without = alone.score(far).reconstruction_error / capped.arrays["prototypes.scale"][0]
    added = capped.score(far).reconstruction_error - without
    full = uncapped.score(far).reconstruction_error - without
    np.testing.assert_allclose(added, np.minimum(full, 0.5 * 2.0), rtol=1e-6, atol=1e-9)
    assert added.max() == pytest.approx(1.0)
    assert full.max() > 10
