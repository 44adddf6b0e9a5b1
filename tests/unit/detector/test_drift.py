"""The population stability index and what a version keeps to measure it by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgoutlier.detector.drift import (
    Binned,
    Reference,
    binned,
    counts,
    psi,
    psi_by_chance,
    psi_limit,
    psi_of_counts,
    rates_differ,
)

ANY_FLOATS = st.lists(st.floats(width=64), min_size=1, max_size=60)


def test_the_index_is_the_published_sum() -> None:
    reference = Binned(edges=(1.0,), shares=(0.25, 0.75, 0.0), n_rows=1_000_000)
    values = np.repeat([0.5, 1.5], 500_000)
    assert psi(reference, values) == pytest.approx(0.25 * np.log(2) - 0.25 * np.log(0.5 / 0.75), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(ANY_FLOATS, ANY_FLOATS)
def test_it_is_a_finite_number_not_below_zero_and_survives_json(
    before: list[float], after: list[float]
) -> None:
    reference = binned(before)
    assert sum(reference.shares) == pytest.approx(1)
    assert psi(reference, before) == pytest.approx(0, abs=1e-12)
    assert 0 <= psi(reference, after) < np.inf
    assert Binned.model_validate_json(reference.model_dump_json()) == reference


def test_rows_of_the_same_spread_give_about_what_chance_gives() -> None:
    random = np.random.default_rng(0)
    reference = binned(random.normal(size=2_000))
    found = [psi(reference, random.normal(size=500)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(psi_by_chance(reference, 500), rel=0.25)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(np.arange(1000.0), np.arange(1000.0) + 300, id="moved"),
        pytest.param(
            np.arange(1000) % 100 == 0, np.arange(1000) % 10 == 0, id="a rare level that got frequent"
        ),
        pytest.param(np.full(1000, 7.0), np.full(1000, 7.1), id="a constant that moved up"),
        pytest.param(np.full(1000, 7.0), np.full(1000, 6.9), id="a constant that moved down"),
        pytest.param(np.arange(1000.0), np.where(np.arange(1000) % 3, np.arange(1000), np.nan), id="gaps"),
    ],
)
def test_drift_is_seen(before: np.ndarray, after: np.ndarray) -> None:
    reference = binned(before.astype(float))
    assert psi(reference, before.astype(float)) < 0.01
    assert psi(reference, after.astype(float)) > 0.2


def test_a_reference_names_every_feature() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 2))
    reference = Reference.of(rows, ["a", "b"], rows[:, 0])
    assert reference.features == {"a": binned(rows[:, 0]), "b": binned(rows[:, 1])}
    assert reference.error == binned(rows[:, 0])
    assert Reference.model_validate_json(reference.model_dump_json()) == reference


def test_shares_that_do_not_fit_the_edges_are_refused() -> None:
    for edges, shares in (((1.0,), (1.0, 0.0)), ((2.0, 1.0), (0.5, 0.5, 0.0, 0.0))):
        with pytest.raises(ValueError, match=r"two more shares|ascend"):
            Binned(edges=edges, shares=shares, n_rows=1)


def test_counts_of_blocks_add_up_to_those_of_all_rows() -> None:
    random = np.random.default_rng(1)
    reference = binned(random.normal(size=2_000))
    values = np.concatenate([random.normal(0.3, 1, 900), [np.nan, np.inf, -np.inf]])
    blocks = sum(counts(reference, block) for block in np.array_split(values, 7))
    np.testing.assert_array_equal(blocks, counts(reference, values))
    assert psi_of_counts(reference, blocks) == psi(reference, values)


@pytest.mark.parametrize("n_rows", [500, 20_000])
@pytest.mark.parametrize("levels", [0, 3])
def test_rows_of_the_same_spread_are_beyond_the_limit_no_more_often_than_allowed(
    n_rows: int, levels: int
) -> None:
    """20,000 reports of rows that have not drifted; the reference is itself a sample."""
    allowed = 1e-3
    random = np.random.default_rng(2)

    def drawn(n: int) -> np.ndarray:
        values = random.normal(size=n)
        return np.round(values * levels) if levels else values

    # The true shares come from a sample that is much larger than the references.
    truth = np.sort(drawn(2_000_000))
    beyond = 0
    for _ in range(400):
        reference = binned(drawn(20_000))
        below = np.searchsorted(truth, reference.edges, side="right") / len(truth)
        shares = np.diff(np.concatenate([[0.0], below, [1.0, 1.0]]))
        limit = psi_limit(reference, n_rows, allowed)
        for found in random.multinomial(n_rows, shares, size=50):
            beyond += psi_of_counts(reference, found) > limit
    assert beyond <= 2 * allowed * 20_000


def test_equal_rates_hardly_ever_differ_and_unequal_ones_do() -> None:
    random = np.random.default_rng(3)
    equal = [rates_differ(*random.binomial(5_000, 0.004, 1), 5_000, 20, 5_000) for _ in range(300)]
    assert np.mean(np.array(equal) < 1e-3) < 2e-2
    assert rates_differ(60, 5_000, 20, 5_000) < 1e-5
    assert rates_differ(2, 5_000, 20, 5_000) < 1e-3
    assert rates_differ(20, 5_000, 20, 5_000) > 0.4
