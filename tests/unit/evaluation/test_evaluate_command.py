"""`pgoutlier evaluate` from its command line to its figures; the network is fitted for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pgoutlier.detector import recipe_named
from pgoutlier.worker import cli
from pgoutlier.worker.evaluation.run import Evaluation, evaluate
from pgoutlier.worker.evaluation.splits import Split
from pgoutlier.worker.evaluation.table import Columns, load

RECIPE = "ecg-dense-32-16-8"
PROMISED = {
    *("auroc", "average_precision", "precision_at_100", "accuracy", "precision", "recall", "f1", "best_f1"),
    *("recall_at_1pct_fpr", "prevalence", "threshold", "n_train", "n_test", "fit_seconds"),
}
FIGURES_OF_LABELS = {
    *("auroc", "average_precision", "precision_at_100", "best_f1", "best_f1_precision", "best_f1_recall"),
    *(
        "best_f1_threshold",
        "recall_at_1pct_fpr",
        "n_anomalies",
        "prevalence",
        "accuracy",
        "precision",
        "recall",
    ),
    *("f1", "true_positives", "false_positives", "false_negatives", "true_negatives"),
    *("normal_precision", "normal_recall", "normal_f1"),
}
KEYS = {
    *FIGURES_OF_LABELS,
    *("data", "recipe", "split", "test_size", "split_seed", "seed", "n_rows", "n_duplicates", "n_filtered"),
    *("n_incomplete", "n_features", "n_train", "n_train_anomalies", "n_test", "threshold", "flag_rate", "at"),
    *(
        "error_quantiles",
        "top_features",
        "epochs",
        "loss",
        "val_loss",
        "fit_seconds",
        "score_seconds",
        "history",
        "decided_by_few",
    ),
}

Run = Callable[..., tuple[int, str, str]]


def frame(n_rows: int = 600) -> pd.DataFrame:
    """Four features that follow one hidden one; 5 % of the rows, later ones too, do not. Then a duplicate and a gap."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(n_rows, 1))
    features = hidden * [1, -1, 2, 3] + 0.1 * generator.normal(size=(n_rows, 4))
    is_odd = np.arange(n_rows) % 20 == 7
    features[is_odd] += generator.normal(size=(is_odd.sum(), 4)) * 3
    rows = pd.DataFrame(features, columns=["a", "b", "c", "d"])
    rows["t"], rows["odd"] = np.arange(n_rows), is_odd.astype(int)
    gap = rows.iloc[[5]].assign(a=np.nan)
    return pd.concat([rows, rows.iloc[[3]], gap], ignore_index=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "rows.csv"
    frame().to_csv(path, index=False)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `pgoutlier evaluate` in this process and gives exit code, standard output and error."""

    def ran(*words: object, command: str = "evaluate") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pgoutlier", command, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return ran


def test_a_process_with_no_server_prints_one_line_of_every_figure(data: Path, tmp_path: Path) -> None:
    servers = tmp_path / "servers"
    nowhere = {
        "PGOUTLIER_DATABASE_URL": "postgresql://no.server.invalid/db",
        "PGOUTLIER_BROKER_URL": "redis://no.broker.invalid:1/0",
        "PGOUTLIER_DATA_DIR": str(servers),
    }
    options = [
        "--label",
        "odd",
        "--time",
        "t",
        "--split",
        "time",
        "--test-size",
        "0.4",
        "--at",
        "0",
        "--json",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pgoutlier.worker.cli",
            "evaluate",
            "--data",
            data,
            "--recipe",
            RECIPE,
            *options,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **nowhere},
    )
    assert done.returncode == 0, done.stderr
    assert not servers.exists()
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == KEYS >= PROMISED
    assert None not in [found[key] for key in FIGURES_OF_LABELS]
    assert (found["n_rows"], found["n_duplicates"], found["n_incomplete"]) == (602, 1, 1)
    # Of the 600 rows the latest 240 are tested, all of them, and the normal ones of the earliest are fitted on.
    assert (found["n_train"], found["n_train_anomalies"], found["n_test"]) == (342, 18, 240)
    assert found["n_anomalies"] == 12
    assert found["at"][0] == {
        "threshold": 0.0,
        "n_flagged": 240,
        "precision": 12 / 240,
        "recall": 1.0,
        "f1": pytest.approx(24 / 252),
    }
    assert len(found["history"]["seconds"]) == len(found["history"]["val_loss"]) == found["epochs"] == 20


def test_several_recipes_are_compared_on_one_split(data: Path, run: Run) -> None:
    options = f"--label odd --drop t --recipe {RECIPE} --recipe {RECIPE} --at 0.5"
    code, out, _ = run("--data", data, *options.split())
    assert code == 0
    assert "602 rows, 4 features; left out: 1 exact duplicates, 1 with NaN or infinity" in out
    assert "Split random, seed 21" in out
    auroc = next(line.split() for line in out.splitlines() if line.strip().startswith("AUROC"))
    assert auroc[1] == auroc[2]


def test_without_a_label_errors_and_features_are_shown_and_no_figures(data: Path, run: Run) -> None:
    code, out, _ = run("--data", data, "--drop", "t,odd", "--recipe", RECIPE, "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == KEYS
    assert {found[key] for key in FIGURES_OF_LABELS} == {None}
    assert list(found["error_quantiles"]) == ["q0.5", "q0.9", "q0.95", "q0.99", "q0.999"]
    assert 0 < found["flag_rate"] < 1
    assert {entry["feature"] for entry in found["top_features"]} <= {"a", "b", "c", "d"}


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluate.md").read_text()
    cells = re.findall(r"^\| ([^|]+) \| ", page.partition("## What is measured")[2], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(KEYS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--data nothing.csv --recipe default", "There is no file nothing.csv"),
        ("--data DATA --recipe nothing", "There is no recipe named 'nothing'"),
        ("--data DATA --recipe default --label nothing", "no column 'nothing' for --label"),
        ("--data DATA --recipe default --label t", "must hold 0 and 1 only"),
        ("--data DATA --recipe default --normal-value 2", "--normal-value 2"),
        ("--data DATA --recipe default --split sorted", "--split 'sorted'"),
        ("--data DATA --recipe default --test-size 1.5", "--test-size 1.5"),
        ("--data DATA --recipe default --where t", "--where 't'"),
        ("--data DATA --recipe default --where t<100", "needs 200"),
        ("--data DATA --recipe default --label odd --normal-value 1", "needs 200"),
        ("--data DATA --recipe default --label odd --where odd=0", "holds no anomalies"),
        ("--data DATA --recipe default --at nan", "--at must be"),
        ("--data DATA --recipe default --at much", "--at"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(
    data: Path, run: Run, options: str, says: str
) -> None:
    code, out, err = run(*options.replace("DATA", str(data)).split())
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("pgoutlier: ") == (says != "--at")


@pytest.fixture(scope="module")
def evaluation(data: Path) -> Evaluation:
    table = load(data, Columns(label="odd", time="t"))
    return evaluate(table, recipe_named(RECIPE), Split("random", 0.3, 3), seed=5)


def test_a_recipe_that_draws_nothing_from_calibration_rows_is_fitted_on_the_whole_training_part(
    evaluation: Evaluation,
) -> None:
    n_train = len(evaluation.training_features)
    assert n_train + evaluation.n_training_anomalies == 420
    assert evaluation.fit_metrics["n_fit"] == n_train
    assert evaluation.fit_metrics["n_calibration"] == len(evaluation.test_errors) == 180


def test_a_recipe_that_stops_by_its_calibration_rows_never_sees_the_test_rows(evaluation: Evaluation) -> None:
    stops_early = recipe_named("fraud-dense-14-7-4").model_copy(update={"epochs": 1})
    found = evaluate(evaluation.table, stops_early, evaluation.split)
    n_train = len(found.training_features)
    assert found.fit_metrics["n_fit"] == int(0.8 * n_train)
    assert found.fit_metrics["n_fit"] + found.fit_metrics["n_calibration"] == n_train


def test_the_figures_are_those_of_the_test_rows(evaluation: Evaluation) -> None:
    table = evaluation.table
    _, test = Split("random", 0.3, 3).parts(600)
    errors = evaluation.detector.score(table.features[test]).reconstruction_error
    assert table.is_anomaly is not None
    assert evaluation.ranking is not None
    assert evaluation.ranking.auroc == roc_auc_score(table.is_anomaly[test], errors)
    assert evaluation.ranking.average_precision == average_precision_score(table.is_anomaly[test], errors)
    assert evaluation.test_times is not None
    assert evaluation.test_times.tolist() == test.tolist()


def test_the_published_heartbeat_figures_are_met(data_directory: Path, run: Run) -> None:
    path = data_directory / "ecg5000.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    code, out, _ = run(
        *("--data", path, "--no-header", "--label", 140, "--normal-value", 1, "--recipe", RECIPE, "--json")
    )
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert found["n_test"] == 1_000
    published = {"accuracy": 0.943, "normal_precision": 0.992, "normal_recall": 0.905, "normal_f1": 0.947}
    assert {name: found[name] for name in published} == pytest.approx(published, abs=0.02)


def test_each_recipe_gets_its_report(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["--data", data, "--label", "odd", "--time", "t", "--json", "--report", out]
    code, text, _ = run(*words, "--recipe", RECIPE)
    assert code == 0
    assert f"{json.loads(text)['auroc']:.4f}" in out.read_text()
    out.unlink()
    code, _, _ = run(*words, "--recipe", RECIPE, "--recipe", "iforest-lstm-32-16")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"page-{RECIPE}.html",
        "page-iforest-lstm-32-16.html",
    }


def test_a_report_of_a_file_needs_no_server(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    code, text, _ = run("--data", data, "--label", "odd", "--recipe", RECIPE, "-o", out, command="report")
    assert (code, out.exists()) == (0, True)
    assert str(out) in text.replace("\n", "")
    assert "AUROC" in out.read_text()


def test_a_report_is_of_a_source_or_of_a_file(run: Run, data: Path) -> None:
    for words in ([], ["payments", "--data", data]):
        code, _, complaint = run(*words, command="report")
        assert code == 2
        assert "one of the two" in " ".join(complaint.split())


def test_a_report_that_cannot_be_written_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    code, _, complaint = run(
        "--data", data, "--recipe", RECIPE, "--report", tmp_path / "no" / "page.html", "--json"
    )
    assert code == 2
    assert "cannot be written" in complaint
