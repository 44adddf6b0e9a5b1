"""How well the default recipe detects, on public data; skipped where the data are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pgoutlier.detector import exceeds, fit, recipe_named
from pgoutlier.worker.demo.simulator import FEATURES, simulate


@pytest.fixture(scope="module")
def creditcard(data_directory: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(features V1..V28 and Amount, is fraud, names) in time order, exact duplicates dropped."""
    path = data_directory / "creditcard.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    frame = pd.read_csv(path, engine="pyarrow").drop_duplicates().sort_values("Time", kind="stable")
    is_fraud = frame["Class"].astype(str).str.strip("'\"").astype(int).to_numpy() == 1
    features = frame.drop(columns=["Time", "Class"])
    return features.to_numpy(np.float64), is_fraud, list(features.columns)


def test_the_default_recipe_finds_the_frauds_of_the_last_days(
    creditcard: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    features, is_fraud, names = creditcard
    first = int(len(features) * 0.7)
    result = fit(recipe_named("default"), features[:first], names, normal=~is_fraud[:first])
    errors = result.detector.score(features[first:]).reconstruction_error
    later = is_fraud[first:]
    assert later.sum() > 100
    assert roc_auc_score(later, errors) >= 0.95
    assert average_precision_score(later, errors) >= 0.74
    normal_flag_rate = exceeds(errors[~later], result.detector.threshold).mean()
    assert normal_flag_rate < 0.005


def test_the_default_recipe_works_with_the_frauds_left_in_unlabelled(
    creditcard: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    features, is_fraud, names = creditcard
    # Not from the first row on, which would take twice as long.
    start, first = int(len(features) * 0.4), int(len(features) * 0.7)
    result = fit(recipe_named("default"), features[start:first], names)
    errors = result.detector.score(features[first:]).reconstruction_error
    assert roc_auc_score(is_fraud[first:], errors) >= 0.945
    assert average_precision_score(is_fraud[first:], errors) >= 0.72


def simulated(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve features driven by three hidden ones, and 1 % of rows that break two of these relations."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(5).normal(size=(3, 12))
    features = np.tanh(generator.normal(size=(n_rows, 3)) @ mixing) + 0.1 * generator.normal(
        size=(n_rows, 12)
    )
    is_odd = generator.random(n_rows) < 0.01
    features[np.ix_(is_odd, [2, 7])] *= -1.5
    return features * np.geomspace(0.01, 1000, 12), is_odd


def test_the_default_recipe_finds_broken_relations_in_a_small_simulated_table() -> None:
    features, _ = simulated(20_000, seed=0)
    detector = fit(recipe_named("default"), features, [f"x{i}" for i in range(12)]).detector
    later, is_odd_later = simulated(20_000, seed=1)
    assert roc_auc_score(is_odd_later, detector.score(later).reconstruction_error) > 0.9


def with_a_rare_flag(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight features, the first a flag that 1.5 % of the rows have, and 0.3 % of rows with three others far out."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n_rows, 8))
    features[:, 0] = generator.random(n_rows) < 0.015
    is_odd = generator.random(n_rows) < 0.003
    features[np.ix_(is_odd, [2, 4, 6])] += 4.0 * generator.choice([-1, 1], (is_odd.sum(), 3))
    return features, is_odd


def test_a_rare_flag_is_not_taken_for_the_worst_anomaly() -> None:
    features, _ = with_a_rare_flag(20_000, seed=0)
    detector = fit(recipe_named("default"), features, [f"x{i}" for i in range(8)]).detector
    later, is_odd = with_a_rare_flag(20_000, seed=1)
    errors = detector.score(later).reconstruction_error
    flagged = later[:, 0] == 1
    assert np.median(errors[is_odd & ~flagged]) > np.median(errors[flagged & ~is_odd])
    assert exceeds(errors, detector.threshold)[flagged & ~is_odd].mean() < 0.1
    assert exceeds(errors, detector.threshold).mean() < 0.005


def test_the_default_recipe_finds_the_frauds_of_the_simulator_unlabelled() -> None:
    simulation = simulate(n_rows=50_000, seed=3)
    features, is_fraud = simulation.rows[list(FEATURES)].to_numpy(np.float64), simulation.is_fraud
    first = 40_000
    detector = fit(recipe_named("default"), features[:first], FEATURES).detector
    errors, later = detector.score(features[first:]).reconstruction_error, is_fraud[first:]
    assert average_precision_score(later, errors) >= 0.6
    flagged = exceeds(errors, detector.threshold)
    assert later[flagged].mean() >= 0.7
    assert flagged[later].mean() >= 0.25


@pytest.mark.parametrize("n_rows", [1_000, 5_000])
def test_the_feature_that_is_a_thousand_deviations_out_dominates_with_few_rows(n_rows: int) -> None:
    features = np.random.default_rng(0).normal(size=(n_rows, 5)) * np.geomspace(0.01, 100, 5)
    detector = fit(recipe_named("default"), features, [f"x{i}" for i in range(5)]).detector
    rows = features[:5] + np.diag(1_000 * np.geomspace(0.01, 100, 5))
    scores = detector.score(rows)
    assert (scores.reconstruction_error > 100 * detector.threshold).all()
    assert (np.diag(scores.contributions) > 0.5 * scores.reconstruction_error).all()
