"""Features over the rows before: the same row has the same values on every path, and those of its documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgoutlier.db.past import entries
from pgoutlier.db.scoring import claimed_rows, queue
from pgoutlier.db.training import training_rows
from pgoutlier.worker.runtime import Runtime
from tests import brute_force
from tests.support import Connection, Table, attach_table, detach_table

FEATURES = (
    "amount", "count(2h) by card", "sum(amount, 1d) by card", "z(amount, 3d) by card", "distinct(shop, 2d) by card",
    "is_new(shop, 2d) by card", "since_last by card", "max(amount, 2h) by shop", "std(amount, 3d) by shop",
    "risk(shop, 1d, delay 1h)", "lag(amount, 2) by card", "diff(amount, 1)", "mean(amount, 1d)",
)  # fmt: skip
TIMES = {"timestamptz": "UTC", "timestamp": None, "date": None, "integer": None, "double precision": None}
KEYS = {"id": ("id", "bigint"), "of two": ("id, paid", "text"), "uuid": ("id", "uuid")}
_HOUR = 3600
# Around the hour that the clocks of Berlin go back.
_FIRST = pd.Timestamp("2025-10-25T20:00:00Z")
_row = st.tuples(
    st.none() | st.sampled_from(["a", "b", "Ä'%"]),
    st.none() | st.integers(0, 60),
    st.none() | st.sampled_from([0.0, 1.0, -3.5, 1e-3, 1e9, 12.25]),
    st.none() | st.integers(0, 3),
    st.none() | st.booleans(),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["fraud", "normal", "withdrawn"])), max_size=3),
)


@pytest.fixture(params=[("timestamptz", "id"), ("timestamp", "uuid"), ("date", "of two"), ("integer", "id"),
                        ("double precision", "uuid"), ("timestamptz", "of two")], ids="-".join)  # fmt: skip
def payments(request: pytest.FixtureRequest, user: Connection, runtime: Runtime) -> Any:
    time, key = request.param
    columns, kind = KEYS[key]
    user.execute("SET TimeZone = 'Europe/Berlin'")
    user.execute(
        f"CREATE TABLE payments (id {kind} NOT NULL, paid {time}, card text, amount numeric, shop integer,"  # type: ignore[arg-type]
        " chargeback boolean)"
    )
    if key == "of two":
        user.execute("ALTER TABLE payments ALTER paid SET NOT NULL")
    user.execute(f"ALTER TABLE payments ADD PRIMARY KEY ({columns})")  # type: ignore[arg-type]
    features = [
        f for f in FEATURES if not f.startswith("risk") or time not in ("integer", "double precision")
    ]
    table = attach_table(
        user, runtime, relation="payments", features=", ".join(features), time="paid", label="chargeback"
    )
    yield table, time, key
    detach_table(table)
    user.execute("DROP TABLE payments")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(_row, min_size=1, max_size=50),
    shuffled=st.randoms(use_true_random=False),
    most=st.sampled_from([2, 5, 10_000]),
)
def test_a_claimed_row_has_the_values_of_its_documentation(payments, monkeypatch, rows, shuffled, most):
    table, time, key = payments
    monkeypatch.setattr(entries, "MOST_ROWS", most)
    frame = _insert(table, time, key, rows, shuffled)
    definition = table.source.definition
    with table.runtime.engine.begin() as connection:
        claim = queue.claim(connection, definition, at_most=20_000, whole_batch_attempts=3)
        read = claimed_rows.read_claimed(connection, definition, claim)
        trained = training_rows.read(
            connection, table.source, newest=1_000, imputes=True, with_frauds_and_flagged=True
        )
    _compare(table, frame, read.keys, read.matrix)
    by_key = dict(zip(definition.key.to_texts(read.keys), read.matrix.tolist(), strict=True))
    assert sorted(map(str, trained.matrix.tolist())) == sorted(map(str, by_key.values()))


def _insert(table: Table, time: str, key: str, rows: list[Any], shuffled: Any) -> pd.DataFrame:
    """The rows under keys in a random order; the frame has them with times and keys as they are in the table."""
    numbers = list(range(len(rows)))
    shuffled.shuffle(numbers)
    table.user.execute("TRUNCATE payments, outlier.queue_payments, outlier.verdicts")
    found = []
    for number, (card, hours, amount, shop, label, verdicts) in zip(numbers, rows, strict=True):
        if key == "of two" and hours is None:
            hours = 0
        at: Any = None if hours is None else _FIRST + pd.Timedelta(minutes=20 * hours)
        if at is not None and time in ("integer", "double precision"):
            at = int(hours) * _HOUR // 3
        elif at is not None and time != "timestamptz":
            at = at.tz_localize(None) if time == "timestamp" else at.tz_localize(None).normalize()
        own = f"00000000-0000-0000-0000-{number:012d}" if key == "uuid" else f"{number:04d}"
        told = [(_FIRST + pd.Timedelta(minutes=20 * given), said) for given, said in sorted(verdicts)]
        found.append((own, at, card, amount, shop, label, told))
    with table.user.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO payments VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (own, at.to_pydatetime() if isinstance(at, pd.Timestamp) else at, *rest)
                for own, at, *rest, _ in found
            ],
        )
        key_text = table.source.definition.key.text_of_row("t").as_string(None).replace("%%", "%")
        cursor.executemany(
            "INSERT INTO outlier.verdicts (source, key, verdict, created_at)"  # type: ignore[arg-type]
            f" SELECT 'payments', {key_text}, %s, %s FROM payments t WHERE t.id::text = %s",
            [
                (said, given.to_pydatetime(), own if key != "id" else str(int(own)))
                for own, *_, told in found
                for given, said in told
            ],
        )
    naive = time not in ("timestamptz", "integer", "double precision")
    for row in found:
        row[-1][:] = [(given.tz_localize(None) if naive else given, said) for given, said in row[-1]]
    frame = pd.DataFrame(found, columns=["key", "time", "card", "amount", "shop", "label", "verdicts"])
    return frame.astype({"amount": float, "shop": float}).assign(label=frame["label"].eq(True))


def _compare(table: Table, frame: pd.DataFrame, keys: Any, matrix: Any) -> None:
    definition = table.source.definition
    order = {key: place for place, key in enumerate(_keys(definition, keys))}
    assert set(order) == set(frame["key"])
    found = matrix[[order[key] for key in frame["key"]]]
    size = frame["amount"].abs().fillna(1.0).max()
    for place, feature in definition.past_features:
        entry = entries.parse(feature.declaration)
        assert entry is not None
        expected = brute_force.compute(frame, entry.past, entry.column or "card")
        np.testing.assert_allclose(
            found[:, place], expected, rtol=1e-9, atol=1e-9 * size, err_msg=feature.declaration
        )


def _keys(definition: Any, keys: Any) -> list[str]:
    import json

    texts = definition.key.to_texts(keys)
    if definition.key.is_single:
        return [f"{int(text):04d}" if definition.key.types[0] == "bigint" else text for text in texts]
    return [json.loads(text)[0] for text in texts]
