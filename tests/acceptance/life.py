"""A shop whose payments are watched, and what a test of its whole life knows of it by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from tests.acceptance.stack import Stack
from tests.support import until

# Small, so that a training takes a second. Beat's own trainings are left to the schedules that the test sets.
SETTINGS = {
    "PGOUTLIER_TRAINING_ROWS": "1500",
    "PGOUTLIER_DRIFT_ROWS": "1000",
    "PGOUTLIER_RETRAIN_ON_DRIFT": "true",
    "PGOUTLIER_TRAINING_REPORTS": "false",
}
# One payment in 25 is a fraud: four hundred or so for a single pack.
PAYMENTS = """
INSERT INTO shop.payments (id, paid_at, customer, amount, items, online)
SELECT i, %(first_day)s + (i - %(first)s) * %(days)s * interval '1 day' / %(n)s, 1 + i %% 50,
       (CASE WHEN i %% 25 = 0 THEN 400 * exp(random_normal() / 4)
             ELSE packs * exp(2.5 + random_normal() / 3) END)::numeric(10, 2),
       CASE WHEN i %% 25 = 0 THEN 1 ELSE packs END * %(pieces)s, i %% 3 = 0
FROM (SELECT i, 1 + floor(-4 * ln(1 - random()))::integer AS packs
      FROM generate_series(%(first)s::bigint, %(last)s::bigint) i) s
"""


@dataclass
class Life:
    """The shop, and what the test knows of it by itself."""

    stack: Stack
    owner: psycopg.Connection[Any]
    today: datetime
    # In which days and weeks are counted.
    zone: str
    # As in tests.cookbook.SHOPS.
    key: str = "id"
    n_rows: int = 0
    verdicts: dict[int, str] = field(default_factory=dict)
    scored_by: Counter[int] = field(default_factory=Counter)
    # Keys of rows that version 1 has scored as the champion and version 2 as the challenger.
    by_challenger: list[int] = field(default_factory=list)
    moves: list[tuple[str, str, int | None, int | None]] = field(default_factory=list)

    def run(self, *words: str) -> str:
        """Standard output of a command that succeeds."""
        done = self.stack.command(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        cursor = self.owner.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *parameters: object) -> Any:
        return self.sql(statement, *parameters)[0][0]

    def pay(self, n: int, *, days_ago: float, days: float, pieces: int = 1) -> range:
        """n payments, from so many days ago on. Returns their keys."""
        first = self.n_rows + 1
        values = {"first": first, "last": self.n_rows + n, "n": n, "days": days, "pieces": pieces}
        self.owner.execute(PAYMENTS.encode(), {**values, "first_day": self.today - timedelta(days=days_ago)})
        self.n_rows += n
        return range(first, self.n_rows + 1)

    def pay_and_wait(self, n: int, *, by_version: int, days_ago: float, days: float, pieces: int) -> range:
        """The same; all of them scored by this version."""
        keys = self.pay(n, days_ago=days_ago, days=days, pieces=pieces)
        scored = (
            "SELECT count(*) FROM outlier.scored_payments WHERE id BETWEEN %s AND %s AND model_version = %s"
        )
        until(lambda: self.one(scored, keys[0], keys[-1], by_version) == n, f"{n} rows are scored")
        self.scored_by[by_version] += n
        return keys

    def flagged(self, keys: range) -> set[int]:
        return {
            key
            for (key,) in self.sql(
                "SELECT id FROM outlier.flagged_payments WHERE id BETWEEN %s AND %s",
                *(keys[0], keys[-1]),
            )
        }

    @property
    def key_as_text(self) -> str:
        """What has a row's key as one text in the views."""
        return "id::text" if self.key == "id" else "row_key"

    def words(self, keys: list[int]) -> list[str]:
        """The keys of payments, as a command takes them."""
        found = f"SELECT {self.key_as_text} FROM outlier.scored_payments WHERE id = ANY (%s) ORDER BY id"
        return [word for (word,) in self.sql(found, keys)]

    def trained(self, version: int) -> bool:
        """Whether the last training run has made this version."""
        return self.sql("SELECT status, version FROM outlier.training_runs ORDER BY id DESC LIMIT 1") == [
            ("succeeded", version)
        ]

    def champion(self) -> int:
        return int(self.one("SELECT version FROM outlier.model_aliases WHERE alias = 'champion'"))

    @contextmanager
    def as_analyst(self) -> Iterator[psycopg.Connection[Any]]:
        """A session of ana's; whatever it writes is taken back unless it commits."""
        with psycopg.connect(self.stack.kit.postgres.url) as connection:
            connection.execute("SET SESSION AUTHORIZATION ana")
            connection.execute(f"SET TIME ZONE '{self.zone}'".encode())
            connection.commit()
            yield connection
            connection.rollback()


def zone_where_it_is_noon() -> str:
    """What is said of today is then of one day, whenever the test runs."""
    return f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"


def is_fraud(key: int) -> bool:
    return key % 25 == 0
