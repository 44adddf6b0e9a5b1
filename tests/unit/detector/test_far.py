"""A few rows far out decide neither scale nor threshold, and are named; rows of heavy tails are no such rows."""

from __future__ import annotations

import numpy as np
import pytest

from pgoutlier.detector import RECIPES, FitResult, Recipe, fit, recipe_named
from pgoutlier.detector.far import MOST_LEFT_OUT, decided_by_few, far_rows
from tests.unit.detector.conftest import small_recipe

N_ROWS = 3_000
NAMES = ("amount", "other")
PROBES = np.array([[20.0, 5.0], [5_000.0, 5.0], [1e6, 5.0]])
DEFAULT = recipe_named("default")
SPREADS = 1_000.0


def amounts(n_rows: int = N_ROWS) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.column_stack(
        [np.exp(3 + generator.normal(size=n_rows) / 2), 5 + 2 * generator.normal(size=n_rows)]
    )


def with_placeholder(value: float, *places: int) -> np.ndarray:
    rows = amounts()
    rows[list(places), 0] = value
    return rows


def place(part: str) -> int:
    """A row that the recipe's split gives to this part."""
    order = np.random.default_rng(DEFAULT.seed).permutation(N_ROWS)
    return int(order[0] if part == "fit" else order[-1])


@pytest.fixture(scope="module")
def without() -> FitResult:
    return fit(DEFAULT, amounts(), NAMES)


def errors(fitted: FitResult) -> np.ndarray:
    return fitted.detector.score(PROBES).reconstruction_error


@pytest.mark.parametrize("part", ["fit", "calibration"])
@pytest.mark.parametrize("value", [1e5, 1e12, -1e12, 1e300])
def test_one_placeholder_changes_neither_errors_nor_threshold(
    value: float, part: str, without: FitResult
) -> None:
    fitted = fit(DEFAULT, with_placeholder(value, place(part)), NAMES)
    assert errors(fitted) == pytest.approx(errors(without), rel=0.25)
    assert fitted.detector.threshold == pytest.approx(without.detector.threshold, rel=0.25)
    assert list(fitted.far_rows) == [place(part)]
    (few,) = fitted.decided_by_few
    assert (few.feature, few.n_rows, few.n_left_out, few.farthest) == ("amount", 1, 1, value)
    assert "left out of this training" in few.sentence()


def test_a_placeholder_that_is_scored_is_far_out(without: FitResult) -> None:
    fitted = fit(DEFAULT, with_placeholder(1e12, 7), NAMES)
    (error,) = fitted.detector.score(with_placeholder(1e12, 7)[7:8]).reconstruction_error
    assert error > 1_000 * fitted.detector.threshold


def test_a_few_placeholders_of_several_features_are_left_out(without: FitResult) -> None:
    rows = with_placeholder(1e9, 1, 2)
    rows[3, 1] = -99_999_999
    fitted = fit(DEFAULT, rows, NAMES)
    assert list(fitted.far_rows) == [1, 2, 3]
    assert errors(fitted) == pytest.approx(errors(without), rel=0.25)
    assert {few.feature for few in fitted.decided_by_few} == set(NAMES)


def test_what_more_rows_hold_is_no_exception_and_is_warned_of() -> None:
    fitted = fit(small_recipe(far_spreads=SPREADS), with_placeholder(1e9, *range(20)), NAMES)
    assert not len(fitted.far_rows)
    (few,) = fitted.decided_by_few
    assert (few.feature, few.n_rows, few.n_left_out) == ("amount", 20, 0)
    assert "mend these values" in few.sentence()


@pytest.mark.parametrize("recipe", [small_recipe(), small_recipe(missing="median")])
def test_a_recipe_that_says_nothing_of_it_fits_on_all_rows_and_warns(recipe: Recipe) -> None:
    rows = with_placeholder(1e12, 5)
    fitted = fit(recipe, rows, NAMES)
    assert not len(fitted.far_rows)
    assert fitted.metrics["n_fit"] + fitted.metrics["n_calibration"] == N_ROWS
    assert [few.n_left_out for few in fitted.decided_by_few] == [0]


def test_what_the_caller_gives_stays_as_it_was() -> None:
    normal = np.ones(N_ROWS, dtype=bool)
    fitted = fit(small_recipe(far_spreads=SPREADS), with_placeholder(1e12, 5), NAMES, normal=normal)
    assert normal.all()
    assert list(fitted.far_rows) == [5]
    assert fitted.metrics["n_fit"] + fitted.metrics["n_calibration"] == N_ROWS - 1


def heavy_tails(n_rows: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    rare = np.where(generator.random(n_rows) < 5 / n_rows, 1.0, 0.0)
    refunds = np.where(generator.random(n_rows) < 0.002, generator.lognormal(3, 1, n_rows), 0.0)
    return {
        "log-normal": generator.lognormal(3, 2, n_rows),
        "Student's, three degrees": generator.standard_t(3, n_rows),
        "Pareto": generator.pareto(1.5, n_rows),
        "a rare flag": rare,
        "a sparse amount": refunds,
        "a constant": np.ones(n_rows),
        "a constant but for one row": np.where(np.arange(n_rows) == 3, 7.0, 1.0),
        "two values": np.arange(n_rows) % 2.0,
    }


@pytest.mark.parametrize("n_rows", [200, 3_000, 50_000])
@pytest.mark.parametrize("name", list(heavy_tails(10)))
def test_heavy_tails_rare_flags_and_sparse_columns_are_not_far(name: str, n_rows: int) -> None:
    assert not far_rows(heavy_tails(n_rows)[name][:, None], SPREADS).any()


def test_never_more_than_a_hundredth_of_the_rows_is_left_out() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(1_000, 40))
    rows[np.arange(40), np.arange(40)] = 1e6 * (1 + np.arange(40))
    far = far_rows(rows, SPREADS)
    assert far.sum() == 1_000 * MOST_LEFT_OUT
    assert list(np.flatnonzero(far)) == list(range(30, 40))


def test_values_that_are_no_numbers_are_not_far() -> None:
    rows = amounts()
    rows[0, 0], rows[1, 0], rows[2, 0] = np.nan, np.inf, 1e308
    far = far_rows(rows, SPREADS)
    assert list(np.flatnonzero(far)) == [2]
    (few,) = decided_by_few(rows, NAMES, left_out=far)
    assert np.isfinite(few.spread_ratio)


def test_a_row_far_out_counts_among_the_rows_that_an_alert_budget_is_drawn_from() -> None:
    recipe = small_recipe(far_spreads=SPREADS, threshold={"policy": "alert_budget", "flags_per_day": 5})
    fitted = fit(recipe, with_placeholder(1e12, 5), NAMES, rows_per_day=300)
    assert fitted.metrics["n_not_normal"] == 1
    assert fitted.metrics["calibration_flag_rate"] <= 5 / 300


def test_series_too_leaves_out_what_would_make_all_others_one_value() -> None:
    steps = np.sin(np.arange(20) / 3 + np.random.default_rng(0).random((500, 1)))
    spoilt = steps.copy()
    spoilt[3, 4] = 1e9
    names = [f"s{i}" for i in range(20)]
    shuffled = steps[:, ::-1].copy()
    fitted = fit(recipe_named("series"), spoilt, names).detector
    clean = fit(recipe_named("series"), steps, names).detector
    told = fitted.score(shuffled).reconstruction_error / fitted.threshold
    assert np.median(told) == pytest.approx(
        np.median(clean.score(shuffled).reconstruction_error / clean.threshold), rel=0.5
    )


# The hashes that the recipes had before there was far_spreads.
PUBLISHED = {
    "fraud-dense-14-7-4": "1ca588952145ed34379f8b06c31278d20faed330156bcec6f88e7202ae5969be",
    "fraud-dense-14-7": "dc08d280906acbd99042fe78bda5241d129d5ac16b57610e98b1c917ce0863d4",
    "ecg-dense-32-16-8": "9e99d87182392abe50afef0566a65ec077dcd963556b1bc16af5d3a0559d601d",
    "iforest-lstm-32-16": "4b0b32f209c5cb9cb7b7a1dbfc0e8cdc1ba67602292bf5088375cc4624a157fb",
}


def test_published_recipes_are_what_they_were() -> None:
    assert {name: RECIPES[name].recipe_hash for name in PUBLISHED} == PUBLISHED


def test_a_recipe_stored_before_leaves_nothing_out_and_keeps_its_hash() -> None:
    fields = DEFAULT.model_dump(mode="json")
    del fields["far_spreads"]
    stored = Recipe.from_stored(fields)
    assert stored.far_spreads is None
    assert stored.recipe_hash == "3537740ae89a2f72e47b4f6be99adc15d2da8dc9dc91df9efaf465a54a84e605"
    assert stored.model_dump(mode="json") == fields
