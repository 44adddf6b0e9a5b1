"""The report's arithmetic, and that no data makes it fail, grow without bound or run code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pgoutlier.worker.report import draw
from pgoutlier.worker.report.build import is_series, report_data_of
from pgoutlier.worker.report.charts import errors_by_row
from pgoutlier.worker.report.curves import Curves
from pgoutlier.worker.report.data import Amount, Drift, FeatureDrift, FlaggedFeature, ReportData
from pgoutlier.worker.report.page import page
from tests.support import make_detector, plain_recipe

HISTORY = {"loss": [2.0, 1.0], "val_loss": [2.5, 1.5]}


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def plain_data(errors: Any = (1.0, 2.0, 9.0), **changes: Any) -> ReportData:
    data = ReportData(
        title="payments",
        rows_are="Some rows",
        recipe_name="default",
        error_metric="mse",
        made_at=datetime(2024, 5, 6, tzinfo=UTC),
        errors=np.asarray(errors, dtype=np.float64),
        threshold=5.0,
    )
    return replace(data, **changes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
def test_the_curves_agree_with_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    errors = np.array([float(error) for error, _ in rows])
    labels = np.array([label for _, label in rows])
    if labels.all() or not labels.any():
        return
    curves = Curves.of(errors, labels)
    assert curves.auroc == pytest.approx(roc_auc_score(labels, errors))
    assert curves.average_precision == pytest.approx(average_precision_score(labels, errors))
    at = list(curves.thresholds).index(errors[0])
    assert curves.hits[at] == (labels & (errors >= errors[0])).sum()
    assert curves.alarms[at] == (~labels & (errors >= errors[0])).sum()


def test_thinned_curves_keep_their_ends_and_their_shape() -> None:
    random = np.random.default_rng(0)
    labels = random.random(50_000) < 0.01
    curves = Curves.of(random.normal(size=50_000) + 2 * labels, labels)
    thin = curves.thinned()
    assert len(thin.thresholds) <= 402
    assert (thin.thresholds[0], thin.thresholds[-1]) == (curves.thresholds[0], curves.thresholds[-1])
    assert thin.auroc == pytest.approx(curves.auroc, abs=0.002)


HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$\\frac{1}{0}$"


@settings(max_examples=4, deadline=None)
@example(HOSTILE)
@given(st.text(min_size=1, max_size=64).filter(lambda name: "\x00" not in name))
def test_any_name_is_text_and_nothing_else(name: str) -> None:
    data = plain_data(
        title=name,
        recipe_name=name,
        times=(name, name),
        amount=Amount(name=name, values=np.arange(3.0)),
        top_features=(FlaggedFeature(name=name, n_rows=1, contribution=2.0),),
        facts=((name, name),),
    )
    found = Elements(page(data))
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe"}
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
    if name is HOSTILE:
        assert HOSTILE in found.text


def test_the_page_asks_for_nothing() -> None:
    found = Elements(page(plain_data(history=HISTORY)))
    links = [
        value for _, attributes in found.tags for key, value in attributes.items() if key in {"href", "src"}
    ]
    assert links
    assert all(value is not None and value.startswith(("#", "data:")) for value in links)
    [policy] = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_chart_says_in_words_what_it_shows() -> None:
    found = Elements(page(plain_data(history=HISTORY, labels=np.array([False, True, True]))))
    drawn = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(drawn) == 8
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in drawn)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(plain_data([0.0]), id="one row"),
        pytest.param(plain_data([3.0] * 9), id="all errors equal"),
        pytest.param(plain_data([0.0, 0.0, 1e300]), id="zeros and a huge one"),
        pytest.param(plain_data([1.0, 2.0], labels=np.array([True, True])), id="one class only"),
        pytest.param(plain_data([1.0, 9.0], labels=np.array([True, False])), id="nothing caught"),
        pytest.param(plain_data([1.0, 2.0], labels=np.array([True, False])), id="nothing flagged"),
        pytest.param(plain_data(amount=Amount(name="a", values=np.full(3, np.nan))), id="no amount known"),
        pytest.param(plain_data(amount=Amount(name="a", values=np.array([0, 0, 1e9]))), id="amounts of zero"),
        pytest.param(plain_data(amount=Amount(name="a", values=-np.arange(3.0))), id="negative amounts"),
        pytest.param(plain_data(history={"loss": [0.0]}), id="one epoch"),
        pytest.param(plain_data(counts=(("fitted on", 0), ("flagged", 0))), id="nothing counted"),
        pytest.param(
            plain_data(drift=Drift(features=(FeatureDrift(name="a", psi=0.0),), error=9.9, by_chance=0.0)),
            id="drift of the error alone",
        ),
        pytest.param(
            plain_data(
                drift=Drift(
                    features=(
                        FeatureDrift(name="a", psi=0.5, limit=3.0),
                        FeatureDrift(name="b", psi=9, limit=0.25),
                    ),
                    error=0.1,
                    error_limit=0.25,
                    by_chance=None,
                    measured="Measured today.",
                )
            ),
            id="drift as it was measured",
        ),
    ],
)
def test_odd_data_make_a_page_all_the_same(data: ReportData) -> None:
    assert "<svg" in page(data)


def test_as_many_rows_as_you_like_make_a_small_page() -> None:
    random = np.random.default_rng(0)
    errors = random.lognormal(size=280_000)
    labels = errors > 12
    made = page(plain_data(errors, labels=labels ^ (random.random(len(errors)) < 0.01)))
    assert len(made) < 500_000


def test_thinning_is_said_and_leaves_the_worst_row() -> None:
    errors = np.ones(100_000)
    errors[::50] = 7.0
    errors[33_331] = 1_234.0
    chart = errors_by_row(plain_data(errors))
    assert "2,001 of 100,000 rows are above the threshold of 5." in chart.caption
    assert "Marked, evenly chosen: 300 of 2,001 flagged." in chart.caption
    assert "each of 150 stretches" in chart.caption


def test_threads_draw_the_same_as_one() -> None:
    data = plain_data(np.random.default_rng(0).lognormal(size=500), history=HISTORY)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda _: page(data), range(2)))
    assert set(drawn) == {page(data)}


def test_the_examples_are_the_middle_rows_of_their_class() -> None:
    detector = make_detector(["a", "b", "c"], recipe=plain_recipe(), threshold=4.5)
    rows = np.random.default_rng(0).normal(size=(9, 3))
    data = report_data_of(detector, HISTORY, rows, title="t", errors=np.arange(9.0))
    assert [row.error for row in data.examples] == [2.0, 7.0]
    assert data.examples[0].original == pytest.approx(detector.preprocess(rows)[2])
    assert data.examples[1].reconstruction == pytest.approx(detector.reconstruct(rows)[7])
    assert [feature.n_rows for feature in data.top_features] == [4, 4, 4]


@pytest.mark.parametrize(
    ("names", "walk", "expected"),
    [
        pytest.param([str(i) for i in range(140)], True, True, id="a series without a header"),
        pytest.param([f"beat[{i}]" for i in range(1, 31)], True, True, id="an array"),
        pytest.param([f"V{i}" for i in range(1, 29)], False, False, id="principal components"),
        pytest.param([*(f"V{i}" for i in range(1, 29)), "Amount"], True, False, id="names that differ"),
        pytest.param(["1", "2", "3"], True, False, id="a few columns"),
    ],
)
def test_a_series_is_told_by_its_names_and_neighbours(names: list[str], walk: bool, expected: bool) -> None:
    steps = np.random.default_rng(0).normal(size=(200, len(names)))
    steps[0] = 0
    assert is_series(names, np.cumsum(steps, axis=1) if walk else steps) is expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.002, "0.002"), (-15, "-15"), (1200, "1,200"), (25_000, "25k"), (1.25e6, "1.25M"),
     (3e-7, "3e-7"), (-2.5e-12, "-2.5e-12"), (1e9, "1e9"), (4.2e21, "4.2e21")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert draw.number(value) == text


@given(st.text(max_size=80))
def test_shortened_names_fit_and_can_be_printed(name: str) -> None:
    text = draw.shortened(name)
    assert len(text) <= 20
    assert text.isprintable()


def test_a_name_of_a_million_characters_is_cut_before_anything_else_is_done_with_it() -> None:
    """Else this test does not end."""
    text = draw.shortened("\u0301\n" * 500_000)
    assert len(text) <= 20
