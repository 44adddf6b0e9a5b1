"""The comparison with other detectors: its splits do not leak, its own peers compute what they say, ranks are fair."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri
from typer.testing import CliRunner

from benchmarks.detection import sets
from benchmarks.detection.__main__ import BEGIN, END, app
from benchmarks.detection.baselines import (
    pca_reconstruction,
    rank_normalisation,
    standardisation,
    trimmed_mahalanobis,
)
from benchmarks.detection.measure import Measured, measure, measure_all
from benchmarks.detection.methods import MADE_FOR, PEERS, Method, methods
from benchmarks.detection.sets import Split
from benchmarks.detection.tables import grids, markdown, mean_ranks
from pgoutlier import detector

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "peers.md"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def creditcard(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """100 rows in no order, V1 naming the row, every tenth a fraud; 20 of them stand twice in the file."""
    times = np.random.default_rng(1).permutation(100)
    table = pd.DataFrame({"Time": times, "V1": times, "Amount": 1.0, "Class": times % 10 == 0})
    table["Class"] = np.where(table["Class"], "'1'", "'0'")
    path = tmp_path_factory.mktemp("data") / "creditcard.csv.gz"
    pd.concat([table, table.head(20)]).to_csv(path, index=False)
    return sets.read_creditcard(path)


def toy_split(n_features: int = 4, n_fit: int = 400) -> Split:
    """Correlated normal rows, and anomalies that break the correlation but no feature's range."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(2, n_features))
    normal = rng.normal(size=(n_fit + 200, 2)) @ mix + 0.1 * rng.normal(size=(n_fit + 200, n_features))
    strange = rng.permuted(normal[:40], axis=0) + 2 * rng.normal(size=(40, n_features))
    return Split(
        set_name="cardio",
        seed=0,
        names=tuple(f"f{i}" for i in range(n_features)),
        fit_rows=normal[:n_fit],
        test_rows=np.concatenate([normal[n_fit:], strange]),
        is_anomaly=np.arange(240) >= 200,
    )


def measured(method: str, auroc: float | None, *, seed: int = 0, set_name: str = "cardio") -> Measured:
    return Measured(
        set_name=set_name,
        seed=seed,
        method=method,
        n_fit=10,
        n_test=20,
        n_anomalies=5,
        auroc=auroc,
        average_precision=auroc,
        precision_at_100=auroc,
        fit_seconds=1.0,
        score_seconds=0.1,
        error="it broke" if auroc is None else None,
    )


def test_exact_duplicates_are_dropped_and_rows_put_into_time_order(creditcard: pd.DataFrame) -> None:
    assert creditcard["Time"].tolist() == list(range(100))
    assert creditcard["Class"].sum() == 10


def test_the_time_ordered_split_fits_on_the_past_and_tests_on_all_later_rows(
    creditcard: pd.DataFrame,
) -> None:
    split = sets.time_ordered(creditcard)
    assert split.fit_rows[:, 0].tolist() == [t for t in range(70) if t % 10]
    assert split.test_rows[:, 0].tolist() == list(range(70, 100))
    assert split.is_anomaly.sum() == 3


def test_a_random_split_tests_on_no_row_it_fits_on(creditcard: pd.DataFrame) -> None:
    split = sets.random_rows(creditcard, seed=0)
    fitted, tested = set(split.fit_rows[:, 0]), set(split.test_rows[:, 0])
    assert len(tested) == 20
    assert not fitted & tested
    assert not any(t % 10 == 0 for t in fitted)
    assert (split.is_anomaly == (split.test_rows[:, 0] % 10 == 0)).all()


def test_an_ecg_split_has_normal_rows_to_fit_and_takes_the_label_off() -> None:
    values = np.column_stack([np.arange(50.0), np.zeros(50), np.arange(50) % 5 > 0])
    split = sets.ecg_split(values, seed=0)
    assert split.fit_rows.shape[1] == 2
    assert not set(split.fit_rows[:, 0]) & set(split.test_rows[:, 0])
    assert (split.fit_rows[:, 0] % 5 > 0).all()
    assert (split.is_anomaly == (split.test_rows[:, 0] % 5 == 0)).all()


def test_an_adbench_split_fits_on_normal_rows_and_tests_on_all_others() -> None:
    features, labels = np.arange(100.0)[:, None], np.arange(100) % 4 == 0
    split, again, other = (sets.normal_rows("cardio", features, labels, seed=seed) for seed in (0, 0, 1))
    assert len(split.fit_rows) == int(75 * 0.7)
    assert sorted([*split.fit_rows[:, 0], *split.test_rows[:, 0]]) == list(range(100))
    assert split.is_anomaly.sum() == 25
    assert (split.is_anomaly == (split.test_rows[:, 0] % 4 == 0)).all()
    assert (split.fit_rows == again.fit_rows).all()
    assert set(split.fit_rows[:, 0]) != set(other.fit_rows[:, 0])


def test_peers_do_not_see_time(creditcard: pd.DataFrame) -> None:
    split = sets.time_ordered(creditcard).without_time()
    assert split.names == ("V1", "Amount")
    assert split.fit_rows.shape[1] == split.test_rows.shape[1] == 2
    assert [name for name, method in methods().items() if method.with_time] == ["fraud-dense-14-7-4"]


def test_a_group_of_sets_is_taken_apart() -> None:
    assert sets.chosen(["ecg5000", "creditcard"]) == ("creditcard-time", "creditcard-random", "ecg5000")
    assert len(sets.chosen([])) == 14


def test_each_recipe_but_the_default_is_measured_on_its_own_data() -> None:
    assert set(detector.RECIPES) - {"default"} <= set(MADE_FOR)
    assert {name for used in MADE_FOR.values() for name in used} <= set(sets.SETS)


def test_ranks_become_normal_scores_whatever_the_scale() -> None:
    rows = RNG.normal(size=(999, 2))
    scores = rank_normalisation(rows)(rows)
    np.testing.assert_allclose(np.sort(scores[:, 0]), ndtri(np.arange(1, 1000) / 1000))
    np.testing.assert_allclose(rank_normalisation(np.exp(rows))(np.exp(rows)), scores)


def test_new_values_are_interpolated_between_ranks_and_end_at_the_outermost() -> None:
    transform = rank_normalisation(np.array([[0.0], [1.0], [1.0], [3.0]]))
    low, tied, high = ndtri(np.array([1, 2.5, 4]) / 5)
    expected = [low, (low + tied) / 2, tied, high, high]
    np.testing.assert_allclose(transform(np.array([[-9.0], [0.5], [1.0], [3.0], [9.0]]))[:, 0], expected)


def test_a_few_outliers_do_not_widen_the_trimmed_covariance() -> None:
    rows = RNG.normal(size=(2000, 3)) @ np.diag([1.0, 2.0, 5.0])
    clean = trimmed_mahalanobis(rows, trimmed_share=0.0)
    np.testing.assert_allclose(
        clean(rows) ** 2,
        (
            ((rows - rows.mean(axis=0)) @ np.linalg.inv(np.cov(rows.T, ddof=0))) * (rows - rows.mean(axis=0))
        ).sum(1),
        rtol=1e-4,
    )
    spoilt = np.concatenate([rows, np.full((15, 3), 300.0)])
    probe = np.full((1, 3), 300.0)
    assert trimmed_mahalanobis(spoilt)(probe) == pytest.approx(clean(probe), rel=0.15)
    assert trimmed_mahalanobis(spoilt, trimmed_share=0.0)(probe) < 0.2 * clean(probe)


def test_features_that_are_constant_or_determine_each_other_give_finite_distances() -> None:
    rows = RNG.normal(size=(300, 1)) @ np.ones((1, 3))
    rows[:, 2] = 7.0
    transform = standardisation(rows)
    assert np.isfinite(trimmed_mahalanobis(transform(rows))(transform(rows + 1))).all()


def test_pca_reconstruction_is_what_lies_outside_the_kept_components() -> None:
    rows = np.zeros((200, 3))
    rows[:, 0] = RNG.normal(size=200)
    rows[:, 1] = 0.01 * RNG.normal(size=200)
    score = pca_reconstruction(rows)
    beside = rows.mean(axis=0) + np.array([[50.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    np.testing.assert_allclose(score(beside), [0.0, 4.0], atol=0.01)


def test_a_process_of_its_own_gives_the_same_figures_also_after_a_failure() -> None:
    method, split = methods()["robust Mahalanobis"], toy_split()
    broken = replace(split, fit_rows=split.fit_rows[:0], test_rows=np.full_like(split.test_rows, np.nan))
    failed, apart = measure_all(method, [broken, split])
    assert failed.error is not None
    assert failed.auroc is None
    here = measure(method, split)
    assert apart.error is None
    assert (apart.auroc, apart.average_precision) == (here.auroc, here.average_precision)
    assert here.auroc is not None
    assert here.auroc > 0.95


def test_a_method_that_lacks_its_package_is_not_measured() -> None:
    lacking = replace(methods()["PyOD ECOD"], modules=("no_such_package.module",))
    (result,) = measure_all(lacking, [toy_split()])
    assert result.error == "the package no_such_package is not installed"


@pytest.mark.skipif(
    importlib.util.find_spec("pyod") is None, reason="PyOD is in .venv-peers only (make bench-detection)"
)
@pytest.mark.parametrize("method", [peer for peer in PEERS if peer.modules], ids=lambda method: method.name)
def test_each_peer_of_pyod_tells_clear_anomalies(method: Method) -> None:
    if package := method.missing_package():
        pytest.skip(f"{package} is not installed")
    split = toy_split()
    far = np.where(split.is_anomaly[:, None], split.test_rows + 30, split.test_rows)
    (result,) = measure_all(method, [replace(split, test_rows=far)])
    assert result.error is None
    assert result.auroc is not None
    assert result.auroc > 0.99


def test_equal_figures_share_the_mean_of_their_ranks_and_a_failure_is_last() -> None:
    results = [measured("a", 0.9), measured("b", 0.8), measured("c", 0.8), measured("d", 0.5)]
    results += [measured("a", None, seed=1), *(measured(name, 0.7, seed=1) for name in "bcd")]
    ranks = {name: rank["auroc_rank"] for name, rank in mean_ranks(results).items()}
    assert ranks == {"a": (1 + 4) / 2, "b": (2.5 + 2) / 2, "c": (2.5 + 2) / 2, "d": (4 + 2) / 2}


def test_a_method_that_was_never_measured_takes_part_in_no_ranks() -> None:
    results = [measured("a", 0.9), measured("b", 0.8), measured("absent", None)]
    assert list(mean_ranks(results)) == ["a", "b"]
    *_, ranks = grids(results)
    assert ranks.notes == ["absent was not measured."]


def test_the_best_figure_is_bold_and_a_failure_says_why() -> None:
    first, _ = grids(
        [measured("a", 0.9), measured("a", 0.8, seed=1), measured("b", 0.7), measured("b", None, seed=1)]
    )
    page = markdown(first)
    assert "| a | **0.8500** | **0.8500** | **0.850** | 1.00 | 0.10 |" in page
    assert "| b | - | - | - |" in page
    assert "b: not measured on 1 of 2 splits: it broke." in page


def write_cardio(folder: Path) -> None:
    (folder / "adbench").mkdir()
    split = toy_split()
    np.savez(
        folder / "adbench" / "6_cardio.npz",
        X=np.concatenate([split.fit_rows, split.test_rows]),
        y=np.concatenate([np.zeros(400, dtype=int), split.is_anomaly.astype(int)]),
    )


def test_the_command_prints_one_line_of_json_and_writes_the_tables_of_a_page(tmp_path: Path) -> None:
    write_cardio(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--data-dir", str(tmp_path), "--only", "cardio", "--methods", "robust Mahalanobis"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [r["seed"] for r in result["results"]] == [0, 1, 2]
    text = page.read_text()
    assert re.fullmatch(rf"before\n{BEGIN}\nMeasured .*{END}\nafter\n", text, re.DOTALL)
    assert "old" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "mnist"], "There is no set 'mnist'; choose from"),
        (["--methods", "magic"], "There is no method 'magic'; choose from"),
        (
            ["--methods", "default", "--data-dir", "/nowhere"],
            "There is no data file /nowhere/creditcard.csv.gz;",
        ),
        (["--methods", "default", "--markdown", "/nowhere.md"], "/nowhere.md has no lines"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_our_recipes_are_fitted_with_the_versions_of_the_main_lock() -> None:
    main, peers = (
        set(re.findall(r"^\S+==.*", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("lock.txt", "peers.txt")
    )
    assert main <= peers
    assert not any(line.startswith(("nvidia-", "cuda-", "triton=", "torch=")) for line in peers)


def test_every_method_and_its_settings_are_on_the_page() -> None:
    page = PAGE.read_text()
    assert BEGIN in page
    assert END in page
    for method in methods().values():
        assert f"| {method.name} | {method.settings} |" in page
