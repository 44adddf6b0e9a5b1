"""The simulated transactions: what the demo, other tests and the benchmarks rely on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pgoutlier.worker.demo.simulator import (
    ENTITY,
    FEATURES,
    FRAUD_SHARES,
    KEY,
    NORMAL,
    TIME,
    Simulation,
    simulate,
)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(n_rows=20_000, seed=7)


def test_the_same_seed_gives_the_same_rows(simulation: Simulation) -> None:
    again = simulate(n_rows=20_000, seed=7)
    pd.testing.assert_frame_equal(simulation.rows, again.rows)
    np.testing.assert_array_equal(simulation.fraud_kind, again.fraud_kind)


def test_another_seed_gives_other_rows(simulation: Simulation) -> None:
    assert not simulate(n_rows=20_000, seed=8).rows["amount"].equals(simulation.rows["amount"])


@pytest.mark.parametrize("n_rows", [500, 501, 3_333, 20_000])
def test_there_are_exactly_as_many_rows_as_asked_for(n_rows: int) -> None:
    made = simulate(n_rows=n_rows, seed=1)
    assert len(made.rows) == len(made.is_fraud) == len(made.fraud_kind) == n_rows
    assert np.isfinite(made.rows[list(FEATURES)].astype(float).to_numpy()).all()
    assert set(made.fraud_kind) == {NORMAL, *FRAUD_SHARES}


def test_of_a_hundred_thousand_rows_four_hundred_are_frauds() -> None:
    made = simulate(n_rows=100_000, seed=1)
    assert len(made.rows) == 100_000
    assert made.is_fraud.sum() == 400


def test_columns_and_types(simulation: Simulation) -> None:
    rows = simulation.rows
    assert list(rows.columns) == [TIME, ENTITY, "merchant_id", *FEATURES]
    assert KEY not in rows
    assert str(rows[TIME].dtype) == "datetime64[us, UTC]"
    assert not rows.isna().any().any()
    kinds = {name: rows[name].dtype.kind for name in FEATURES}
    assert {name for name, kind in kinds.items() if kind == "b"} == {"is_online", "is_foreign"}
    assert set(kinds.values()) == {"b", "i", "f"}
    assert ((rows["amount"] * 100).round() / 100 == rows["amount"]).all()
    assert (rows["amount"] > 0).all()
    assert rows["hour"].between(0, 24).all()


def test_no_two_rows_are_at_the_same_time(simulation: Simulation) -> None:
    assert simulation.rows[TIME].is_monotonic_increasing
    assert simulation.rows[TIME].is_unique


def test_frauds_are_as_frequent_as_asked_for(simulation: Simulation) -> None:
    assert simulation.is_fraud.mean() == pytest.approx(0.004, rel=0.05)
    assert simulate(n_rows=20_000, seed=1, fraud_share=0.02).is_fraud.mean() == pytest.approx(0.02, rel=0.05)
    np.testing.assert_array_equal(simulation.is_fraud, simulation.fraud_kind != NORMAL)


def test_derived_columns_use_the_customer_s_earlier_rows_only(simulation: Simulation) -> None:
    fraudulent = simulation.rows.loc[simulation.fraud_kind == "card_testing", ENTITY].iloc[0]
    rows = simulation.rows[simulation.rows[ENTITY] == fraudulent]
    times = rows[TIME].to_numpy()
    for place, (_, row) in enumerate(rows.iterrows()):
        age = (times[place] - times[:place]) / np.timedelta64(1, "s")
        assert row["transactions_last_24h"] == (age <= 86_400).sum()
        assert row["transactions_last_hour"] == (age <= 3_600).sum()
        if place:
            assert row["seconds_since_last"] == pytest.approx(max(1, age[-1]), abs=1e-3)


def test_each_kind_of_fraud_shows_where_it_should(simulation: Simulation) -> None:
    def median(kind: str, feature: str) -> float:
        return float(np.median(simulation.rows[feature].to_numpy(float)[simulation.fraud_kind == kind]))

    assert median("card_testing", "amount") < 3
    assert median("card_testing", "transactions_last_hour") >= 3
    assert median("stolen_card", "hour") < 5
    assert median("stolen_card", "amount_to_mean") > 3 * median(NORMAL, "amount_to_mean")
    assert median("account_takeover", "category_share") < median(NORMAL, "category_share") / 2
    assert median("account_takeover", "is_online") == 1
    assert median("amount_creep", "amount_to_mean") > 2 * median(NORMAL, "amount_to_mean")
    assert median("impossible_travel", "travel_speed_kmh") > 700


def test_frauds_are_neither_plain_nor_hopeless_to_see() -> None:
    made = simulate(n_rows=50_000, seed=3)
    features = made.rows[list(FEATURES)].astype(float).to_numpy()
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    precision = np.linalg.inv(np.cov(scaled[~made.is_fraud].T))
    distance = np.einsum("ij,jk,ik->i", scaled, precision, scaled)
    assert 0.93 < roc_auc_score(made.is_fraud, distance) < 0.995
    # No single column gives them away.
    assert all(0.03 < roc_auc_score(made.is_fraud, made.rows[name].astype(float)) < 0.97 for name in FEATURES)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="n_rows must be at least 500"):
        simulate(n_rows=10, seed=1)
    with pytest.raises(ValueError, match="fraud_share"):
        simulate(n_rows=1_000, seed=1, fraud_share=0.5)
