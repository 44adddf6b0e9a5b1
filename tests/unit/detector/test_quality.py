"""How well the default recipe detects, on public data; skipped where the data are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from detector import exceeds, fit, recipe_named


@pytest.fixture(scope="module")
def creditcard(data_directory: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(features V1..V28 and Amount, is fraud, names) in time order, exact duplicates dropped."""
    path = data_directory / "creditcard.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    frame = pd.read_csv(path).drop_duplicates().sort_values("Time", kind="stable")
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
    assert roc_auc_score(later, errors) >= 0.955
    assert average_precision_score(later, errors) >= 0.75
    assert result.metrics["seconds"] < 60
    normal_flag_rate = exceeds(errors[~later], result.detector.threshold).mean()
    assert normal_flag_rate < 0.005


def test_the_default_recipe_works_with_the_frauds_left_in_unlabelled(
    creditcard: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    features, is_fraud, names = creditcard
    first = int(len(features) * 0.7)
    result = fit(recipe_named("default"), features[:first], names)
    errors = result.detector.score(features[first:]).reconstruction_error
    assert roc_auc_score(is_fraud[first:], errors) >= 0.95
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
