"""Depths in the tail: larger values are deeper, however far, and a row's error is its largest depth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.detector import InvalidRecipe, Recipe, fit, recipe_named
from pgoutlier.detector.tails import depths_of, fit_tails
from tests.unit.detector.strategies import UNHURRIED

COLUMNS = {
    "of both signs": lambda r: r.normal(size=3_000),
    "heavy": lambda r: r.pareto(1.1, size=3_000) + 1,
    "negative": lambda r: -r.exponential(size=3_000) - 5,
    "few values": lambda r: r.choice([0.0, 1.0, 2.0], p=[0.9, 0.09, 0.01], size=3_000),
    "constant": lambda r: np.full(3_000, 7.0),
    "nearly always zero": lambda r: np.where(r.random(3_000) < 0.001, 5.0, 0.0),
    "tiny": lambda r: r.random(3_000) * 1e-300,
    "huge": lambda r: r.random(3_000) * 1e300,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_larger_value_is_never_less_deep_and_all_depths_are_numbers(name: str) -> None:
    values = COLUMNS[name](np.random.default_rng(0))
    fitted = fit_tails(values[:, None])
    size = np.abs(values).max()
    asked = np.unique(np.concatenate([values, np.linspace(-3, 3, 999) * size, [-1e300, 1e300, 0.0]]))
    depths = depths_of(asked[:, None], fitted)[:, 0]
    assert np.isfinite(depths).all()
    assert depths[0] >= 0
    assert (np.diff(depths) >= -1e-9).all()


def test_a_depth_is_the_logarithm_of_how_rare_so_large_a_value_is() -> None:
    values = np.random.default_rng(1).exponential(size=100_000)
    asked = np.array([0.0, 1.0, 3.0, 9.0])
    depths = depths_of(asked[:, None], fit_tails(values[:, None]))[:, 0]
    np.testing.assert_allclose(depths[:3], asked[:3], rtol=0.02, atol=0.02)  # of P(X >= x) = exp(-x)
    assert depths[3] > 5


@UNHURRIED
@given(rows=st.lists(st.tuples(*[st.floats(-1e9, 1e9)] * 3), min_size=1, max_size=20))
def test_contributions_add_up_to_the_error_and_the_deepest_feature_has_most(
    rows: list[tuple[float, ...]],
) -> None:
    scores = TAILS.score(np.array(rows))
    errors = scores.reconstruction_error
    np.testing.assert_allclose(scores.contributions.sum(axis=1), errors, rtol=1e-5, atol=1e-9)
    depths = TAILS.preprocess(np.array(rows))
    np.testing.assert_allclose(errors, depths.max(axis=1), rtol=1e-6)
    deepest = scores.contributions[np.arange(len(rows)), depths.argmax(axis=1)]
    assert (deepest >= scores.contributions.max(axis=1) * (1 - 1e-6)).all()


TAILS = fit(
    recipe_named("tails"), np.random.default_rng(2).gamma(2.0, size=(1_000, 3)), ("a", "b", "c")
).detector


def test_the_same_rows_give_the_same_version() -> None:
    rows = np.random.default_rng(2).gamma(2.0, size=(1_000, 3))
    again = fit(recipe_named("tails"), rows, ("a", "b", "c")).detector
    assert all(np.array_equal(again.arrays[name], array) for name, array in TAILS.arrays.items())
    assert again.threshold == TAILS.threshold


@pytest.mark.parametrize(
    "fields",
    [
        {"preprocessing": []},
        {"error_metric": "mse"},
        {"layers": [{"units": 3}]},
        {"preprocessing": [{"step": "tails"}, {"step": "clip", "low": 0, "high": 1}]},
        {"preprocessing": [{"step": "standardise"}, {"step": "tails"}]},
        {"prototypes": 8},
    ],
)
def test_what_does_not_go_with_tails_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRecipe):
        Recipe.from_stored({**recipe_named("tails").model_dump(mode="json"), **fields})
