"""A database that version 0.1.0 left: upgraded in place it loses nothing, and goes on scoring.

tests/data/database_0_1_0.sql.gz is a dump of one, by the pg_dump of PostgreSQL 15: two sources (one with written
columns, earlier scores, notices, verdicts, a challenger that became champion and a quarantined row, one with keys of
text), a schedule of its own, and five rows that wait in a queue.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from pgoutlier.db import migrate
from pgoutlier.db.settings import Settings
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import request_of
from pgoutlier.detector import Recipe
from pgoutlier.worker.doctor.source_checks import of_source
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.servers import Postgres

DUMP = Path(__file__).parents[1] / "data" / "database_0_1_0.sql.gz"
KEPT = {
    "outlier.scores_payments": "key, reconstruction_error, scored_at, model_version, flagged, top_features, change_id",
    "outlier.scores_readings": "key, reconstruction_error, scored_at, model_version, flagged, top_features, change_id",
    "outlier.score_history_payments": "*",
    "outlier.shadow_scores_payments": "*",
    "outlier.verdicts": "source, key, verdict, note",
    "outlier.model_versions": "source_id, version, artifact, threshold, signature",
    "outlier.model_aliases": "source_id, alias, version",
    "outlier.alias_events": "source_id, alias, from_version, to_version, action, reason",
    "outlier.training_runs": "source_id, version, status",
    "outlier.quarantine": "source_id, key, reason, column_name",
    "outlier.schedules": "name, task, args, crontab",
    "outlier.queue_payments": "keys",
    "shop.payments": "*",
    "shop.readings": "*",
}


@pytest.fixture
def old(postgres: Postgres) -> Iterator[str]:
    """The URL of the restored database."""
    with postgres.database(template="template0") as url:
        postgres.run(
            "psql", url, "-v", "ON_ERROR_STOP=1", "-q", stdin=gzip.decompress(DUMP.read_bytes()).decode()
        )
        yield url


def contents(user: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: sorted(user.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)  # type: ignore[arg-type]
        for table, columns in KEPT.items()
    }


def test_a_database_of_0_1_0_loses_nothing_and_goes_on_scoring(old: str, tmp_path: Path) -> None:
    settings = Settings(database_url=old, broker_url="redis://nobody.invalid", data_dir=tmp_path)  # type: ignore[arg-type]
    runtime = make_runtime(settings)
    with psycopg.connect(old, autocommit=True) as user:
        before = contents(user)
        assert all(before.values())
        migrate.upgrade(runtime.engine)
        assert contents(user) == before
        _attach_again(runtime)
        assert contents(user) == before
        assert _complaints(runtime, runtime.engine) == []
        maintenance.prune_all(runtime)
        assert contents(user) == before
        _goes_on(user, runtime, before)
    runtime.engine.dispose()


def _attach_again(runtime: Runtime) -> None:
    for name in ("payments", "readings"):
        with runtime.engine.begin() as connection:
            source = sources.find(connection, name)
        again = attaching.attach(runtime, request_of(source.definition), Recipe.model_validate(source.recipe))
        assert not again.made


def _complaints(runtime: Runtime, engine: Engine) -> list[str]:
    with engine.begin() as connection:
        return [
            f"{finding.name}: {finding.found}"
            for source in sources.every(connection)
            for finding in of_source(connection, runtime, source)
            if not finding.ok
        ]


def _goes_on(
    user: psycopg.Connection[Any], runtime: Runtime, before: dict[str, list[tuple[Any, ...]]]
) -> None:
    """What waited, what is new and what changes is scored once; all else stays as it was."""
    user.execute(
        "INSERT INTO shop.payments SELECT i, '2026-03-01', 1, 20, 1 FROM generate_series(601, 610) i;"
        " INSERT INTO shop.readings SELECT 'n' || i, 'm1', '2026-03-01', sin(i), cos(i) FROM generate_series(1, 5) i;"
        " UPDATE shop.payments SET amount = 500000 WHERE id = 400"
    )
    for name in ("payments", "readings"):
        while draining.drain(runtime, name).n_batches:
            pass
    after = contents(user)
    for table, columns in (("outlier.scores_payments", 16), ("outlier.scores_readings", 5)):
        kept = [row for row in after[table] if row in before[table]]
        changed = 1 if table.endswith("payments") and 400 in {row[0] for row in before[table]} else 0
        assert len(kept) == len(before[table]) - changed
        assert len(after[table]) - len(kept) == columns
    assert after["outlier.queue_payments"] == []
    flag = "SELECT flagged, reconstruction_error > 100 FROM shop.payments WHERE id = 400"
    assert user.execute(flag).fetchone() == (True, True)
    assert user.execute("SELECT count(*) FROM outlier.notices WHERE key = '400'").fetchone() == (1,)
    assert training.train(runtime, "payments").version == 3
