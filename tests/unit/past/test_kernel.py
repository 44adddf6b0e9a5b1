"""Features over the rows before are what their documentation says, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.db.past import entries, kernel
from pgoutlier.db.past.kernel import Rows
from tests import brute_force

ENTRIES = (
    "count(10s) by card", "sum(amount, 10s) by card", "mean(amount, 10s) by card", "min(amount, 7s) by card",
    "max(amount, 7s) by card", "std(amount, 30s) by card", "z(amount, 30s) by card", "ratio(amount, 30s) by card",
    "distinct(shop, 20s) by card", "is_new(shop, 20s) by card", "since_last by card", "since_last(5s) by card",
    "lag(amount, 1) by card", "lag(amount, 3) by card", "diff(amount, 2) by card",
)  # fmt: skip
_amounts = st.none() | st.sampled_from([0.0, 1.0, -3.5, 1e-3, 1e9, 12.25, 100.0])
_rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), _amounts, st.none() | st.integers(0, 3)),
    min_size=1,
    max_size=60,
)


@pytest.mark.parametrize("text", ENTRIES)
@given(rows=_rows)
def test_a_feature_over_the_rows_before_is_what_one_row_at_a_time_gives(text, rows):
    frame = pd.DataFrame(rows, columns=["card", "time", "amount", "shop"]).astype(
        {"amount": float, "shop": float}
    )
    frame["key"] = np.random.default_rng(1).permutation(len(frame))
    entry = entries.parse(text)
    column = entry.column or "card"

    found = kernel_on(frame, [(entry.past, column)])[:, 0]

    expected = brute_force.compute(frame, entry.past, column)
    np.testing.assert_allclose(
        found, expected, rtol=1e-9, atol=1e-9 * frame["amount"].abs().fillna(1.0).max()
    )


def kernel_on(frame: pd.DataFrame, wanted):
    order = np.lexsort((frame["key"], frame["time"], frame["card"]))
    in_order = frame.iloc[order]
    rows = Rows(
        in_order["card"].to_numpy(np.int64),
        in_order["time"].to_numpy(np.float64),
        1,
        {"amount": in_order["amount"].to_numpy(np.float64)},
        {"shop": np.where(in_order["shop"].isna(), -1, in_order["shop"].fillna(0)).astype(np.int64)},
    )
    found = np.empty((len(frame), len(wanted)))
    found[order], _ = kernel.compute(wanted, rows, np.arange(len(frame)))
    return found


def test_rows_with_more_before_them_than_are_looked_at_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MOST_ROWS", 3)
    rows = Rows(np.zeros(8, np.int64), np.arange(8.0), 1)
    past = entries.parse("count(100s) by card").past
    found, is_cut_short = kernel.compute([(past, "card")], rows, np.arange(8))
    assert found[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert is_cut_short.tolist() == [False] * 4 + [True] * 4


_CHOICE = np.random.default_rng(7)
_STRETCHES = {
    "all alike": np.full(60, 0.1),
    "payments and their refunds": _CHOICE.choice([0.1, 0.2, -0.3, 19.99, -19.99], 60),
    "large, and hardly different": 1.7e9 + _CHOICE.normal(size=60),
    "a large one, then small ones": np.r_[1e9, _CHOICE.choice([0.1, 0.2, 12.25], 59)],
    "alike but for the first": np.r_[1e6, np.full(59, 0.1)],
    "both signs, of all sizes": _CHOICE.choice([1e9, -1e9, 0.01], 60),
    "at the end of the range": _CHOICE.normal(size=60) * 1e300,
    "infinite in places": _CHOICE.choice([1.0, 2.0, np.inf, np.nan], 60),
}


@pytest.mark.parametrize("values", _STRETCHES.values(), ids=_STRETCHES.keys())
def test_a_row_has_the_same_values_whatever_is_read_along_with_it(values):
    texts = (
        "sum(a, 7s)",
        "mean(a, 50s)",
        "std(a, 7s)",
        "std(a, 50s)",
        "z(a, 7s)",
        "ratio(a, 7s)",
        "lag(a, 3)",
    )
    wanted = [(entries.parse(text).past, "a") for text in texts]

    def read_along(n_others: int):
        n_rows = n_others + len(values)
        rows = Rows(
            np.repeat([0, 1], [n_others, len(values)]),
            np.arange(n_rows, dtype=np.float64),
            1,
            {"a": np.concatenate([np.arange(n_others) * 1.7, values])},
        )
        return kernel.compute(wanted, rows, np.arange(n_others, n_rows))[0]

    alone = read_along(0)
    for n_others in (1, 2, 3, 5, 7):
        np.testing.assert_allclose(read_along(n_others), alone, rtol=1e-9, atol=0)
