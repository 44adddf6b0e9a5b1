"""Rows found by keys of several columns: whichever way, those of the claimed keys, each with the change that asked."""

from __future__ import annotations

import pytest

from pgoutlier.db.scoring import claimed_rows, queue
from pgoutlier.worker.runtime import Runtime
from tests.support import Connection, attach_table

# The i-th key by the way that the statistics of such a table suggest.
KEYS = {
    "each, without statistics": ("(i / 2)::bigint, i % 2", False),
    "by the one column that is nearly unique": ("(i / 2)::bigint, i % 2", True),
    "in groups, of few": ("(i % 2)::bigint, i / 2", True),
}


@pytest.mark.parametrize(("key_of_i", "analyzed"), KEYS.values(), ids=KEYS)
def test_a_row_is_read_once_for_each_change_of_its_own(
    user: Connection, runtime: Runtime, key_of_i: str, analyzed: bool
) -> None:
    user.execute("CREATE TABLE t (a bigint, b integer, x float8, PRIMARY KEY (a, b))")
    insert = f"INSERT INTO t SELECT {key_of_i}, i FROM generate_series(0, 799) i"
    user.execute(insert)  # type: ignore[arg-type]
    if analyzed:
        user.execute("ANALYZE t")
    source = attach_table(user, runtime, relation="t", features="x").source.definition
    for n in (2, 3, 5):
        user.execute("UPDATE t SET x = -x WHERE abs(x)::integer %% %s = 0", (n,))
    user.execute("DELETE FROM t WHERE abs(x) >= 790")
    user.execute("UPDATE outlier.queue_t SET change_id = 10 * id")
    asked = user.execute(
        "SELECT t.x, q.change_id FROM outlier.queue_t q, unnest(q.keys_1, q.keys_2) k (a, b) JOIN t USING (a, b)"
    ).fetchall()
    with runtime.engine.begin() as connection:
        claim = queue.claim(connection, source, at_most=20_000, whole_batch_attempts=3)
        rows = claimed_rows.read_claimed(connection, source, claim)
    assert len(asked) > 800
    assert sorted(zip(rows.matrix[:, 0].tolist(), rows.change_ids.tolist(), strict=True)) == sorted(asked)
