"""Reports: kept with each training, live of the champion, and what happens where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from pgoutlier.db.errors import ModelError, SourceError
from pgoutlier.db.report import report_rows
from pgoutlier.db.training import training_rows
from pgoutlier.db.versions import version_rows
from pgoutlier.detector.drift import Reference
from pgoutlier.worker.cli.report import ReportError, write_page
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.report import of_source
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table, plain_recipe, quote

# Drawing takes a second each time, and the SQL is such that one PostgreSQL is like another.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]

HOSTILE = '<script>alert("a")</script>$x$'


@pytest.fixture
def shop(user: User, runtime: Runtime) -> Table:
    """400 labelled rows, and a feature with a hostile name; attached, with pictures wanted."""
    user.execute(
        f"CREATE TABLE shop (id bigint PRIMARY KEY, {quote(HOSTILE)} float8, amount int, at date, fraud text)"
    )
    add_rows(user, 1, 400)
    made = attach_table(
        user,
        runtime,
        recipe=plain_recipe(
            name="small",
            epochs=2,
            early_stopping=None,
            batch_size=64,
            threshold={"policy": "quantile", "contamination": 0.05},
        ),
        relation="shop",
        key="id",
        features=f"{quote(HOSTILE)},amount",
        time="at",
        label="fraud",
        backfill=True,
    )
    return made.with_settings(training_reports=True)


def add_rows(user: User, first: int, last: int) -> None:
    """Every 50th one is a fraud, far from the others."""
    user.execute(
        "INSERT INTO shop SELECT i, sin(i) + CASE WHEN i %% 50 = 0 THEN 40 ELSE 0 END, i %% 17,"
        " '2024-01-01'::date + i, CASE WHEN i %% 50 = 0 THEN 'yes' END FROM generate_series(%s::int, %s::int) i",
        (first, last),
    )


def score(table: Table) -> None:
    maintenance.sweep(table.runtime, table.source_name)
    table.drain_all()


def charts(page: str) -> list[str]:
    """The keys of the charts on a page."""
    return [part.split('"')[0] for part in page.split('<figure class="card" id="')[1:]]


def test_a_training_keeps_its_report_with_the_version(shop: Table) -> None:
    made = training.train(shop.runtime, "shop")
    page = of_source.kept_page(shop.runtime, "shop", made.version)
    assert charts(page) == [
        "class-counts", "amount", "loss", "errors-by-row", "error-histogram", "by-threshold", "roc",
        "precision-recall", "confusion", "top-features", "example-normal", "example-anomalous",
    ]  # fmt: skip
    assert "shop, version 1" in page
    assert "and after them 2 rows labelled fraud, the same share" in page
    assert "labelled fraud" in page, "rows that were left out are counted"
    shop.promote()
    assert of_source.kept_page(shop.runtime, "shop", made.version) == page, "another version leaves it alone"
    [stored] = shop.keys("SELECT drift_reference FROM outlier.model_versions WHERE version = 1")
    reference = Reference.model_validate(stored)
    assert reference.features.keys() == set(shop.source.definition.feature_names)
    assert reference.features["amount"].n_rows == 392
    shop.user.execute("DELETE FROM outlier.model_versions WHERE version = 1")
    assert shop.keys("SELECT count(*) FROM outlier.model_reports") == [0]


def test_a_report_that_cannot_be_kept_does_not_fail_the_training(shop: Table) -> None:
    shop.user.execute("DROP TABLE outlier.model_reports")
    with capture_logs() as logs:
        made = training.train(shop.runtime, "shop")
    assert (made.version, made.promoted) == (1, True)
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (warning["event"], warning["version"]) == ("report_failed", 1)
    assert shop.keys("SELECT status FROM outlier.training_runs") == ["succeeded"]


def test_the_live_page_shows_the_newest_rows_that_the_champion_scored(shop: Table) -> None:
    training.train(shop.with_settings(training_reports=False).runtime, "shop")
    score(shop)
    version, page = of_source.live_page(shop.runtime, "shop", newest=300)
    assert version == 1
    assert charts(page) == [
        "class-counts", "amount", "loss", "errors-by-row", "error-histogram", "by-threshold", "roc",
        "precision-recall", "confusion", "top-features", "example-normal", "example-anomalous", "drift",
    ]  # fmt: skip
    assert "300 rows that version 1 scored, of the newest 300, 2024-04-11 to 2025-02-04." in page
    assert "AUROC 1.0000" in page, "the frauds are far from the others"
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_live_page_shows_the_drift_that_was_measured_last(shop: Table) -> None:
    training.train(shop.with_settings(training_reports=False).runtime, "shop")
    add_rows(shop.user, 401, 1_000)
    shop.user.execute("UPDATE shop SET amount = amount * 3")
    score(shop)
    _, before = of_source.live_page(shop.runtime, "shop")
    assert "From the training rows to these." in before
    measured = measuring.measure(shop.runtime, "shop")
    assert measured.features[0].feature == "amount"
    [moment] = shop.keys(
        "SELECT to_char(measured_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM outlier.drift_reports"
    )
    n_beyond = sum(f.psi > f.limit for f in measured.features)
    _, page = of_source.live_page(shop.runtime, "shop")
    assert charts(page) == charts(before)
    features = f"{n_beyond} feature{'s' if n_beyond != 1 else ''}"
    assert f"Measured at {moment} UTC, of 1,000 rows. Beyond its limit: {features}." in page
    shop.promote()
    maintenance.sweep(shop.runtime, "shop")
    shop.user.execute("UPDATE shop SET amount = amount + 1")
    shop.drain_all()
    assert "Measured at" not in of_source.live_page(shop.runtime, "shop")[1], "it was another version's"


def test_what_is_not_there_is_said_in_a_sentence(shop: Table) -> None:
    with pytest.raises(SourceError, match="There is no source nowhere"):
        of_source.live_page(shop.runtime, "nowhere")
    with pytest.raises(ModelError, match="shop has no champion yet; train one: pgoutlier train shop"):
        of_source.live_page(shop.runtime, "shop")
    training.train(shop.with_settings(training_reports=False).runtime, "shop")
    with pytest.raises(
        ModelError, match=r"scored none of the newest 20,000 rows of shop yet; .* --version 1"
    ):
        of_source.live_page(shop.runtime, "shop")
    with pytest.raises(ModelError, match="No report was kept with version 1 of shop"):
        of_source.kept_page(shop.runtime, "shop", 1)
    job_control.reflag(shop.runtime, "shop", 7.5)
    with pytest.raises(ModelError, match=r"is version 1 with another threshold, .* report shop --version 1$"):
        of_source.kept_page(shop.runtime, "shop", 2)
    with pytest.raises(ModelError, match="shop has no model version 7; see: pgoutlier models list shop"):
        of_source.kept_page(shop.runtime, "shop", 7)


def test_the_command_writes_what_was_kept(shop: Table, environment: dict[str, str], tmp_path: Path) -> None:
    version = shop.promote()
    with shop.runtime.engine.begin() as connection:
        found = version_rows.version_id(connection, shop.source.id, version)
        assert found is not None
        report_rows.keep(connection, found, "<p>kept</p>")
    path = tmp_path / "page.html"
    command = [
        sys.executable,
        "-m",
        "pgoutlier.worker.cli",
        "report",
        "shop",
        "--version",
        "1",
        "--json",
        "-o",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"source": "shop", "version": 1, "path": str(path), "n_bytes": 11}
    assert path.read_text() == "<p>kept</p>"


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no" / "page.html", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ReportError, match=f"{reason}.*; name another --output"):
            write_page(path, "<p>")
    assert list(tmp_path.parent.glob(".*.part")) == []


def test_rows_and_errors_of_a_text_key_belong_together(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE words (word text PRIMARY KEY, size float8, many float8[])")
    user.execute(
        "INSERT INTO words SELECT 'wört ' || repeat('x', i % 9) || i, sin(i), ARRAY[cos(i), i % 5]"
        " FROM generate_series(1, 300) i"
    )
    table = attach_table(
        user, runtime, recipe=plain_recipe(epochs=1, early_stopping=None), backfill=True,
        relation="words", key="word", features="size,many[2]",
    )  # fmt: skip
    table.promote()
    score(table)
    with runtime.engine.begin() as connection:
        sample = report_rows.scored_sample(
            connection, table.source.definition, version=1, newest=200, imputes=False
        )
        labelled = training_rows.labelled_fraud(connection, table.source.definition, newest=200, most=10)
    errors = table.errors()
    keys = sorted(errors, key=lambda key: key.encode())[-200:]
    assert sample.errors.tolist() == [errors[key] for key in keys]
    assert (sample.labels, sample.first, sample.last, labelled.shape) == (None, keys[0], keys[-1], (0, 3))
