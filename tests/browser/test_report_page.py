"""The report in a real browser: as a desktop, a phone, by night and on paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from pgoutlier.worker.report.build import report_data_of
from pgoutlier.worker.report.data import ReportData
from pgoutlier.worker.report.page import page
from tests.support import make_detector, plain_recipe

LOOK = (Path(__file__).parent / "look.js").read_text()
HISTORY = {"loss": [1 / n for n in range(1, 31)], "val_loss": [0.3 + 1 / n for n in range(1, 31)]}
BASIC = [
    "class-counts", "amount", "loss", "errors-by-row", "error-histogram", "top-features", "example-normal",
    "example-anomalous", "drift",
]  # fmt: skip
BY_TRUTH = ["by-threshold", "roc", "precision-recall", "confusion"]


def labelled() -> ReportData:
    """Many rows, rare anomalies, and names as nasty as PostgreSQL allows."""
    names = [
        "amount",
        *(f"<script>alert('{i}')</script>" for i in range(6)),
        *('"quoted" & $x^2$ ' + "漢字" * i for i in range(7)),
    ]
    names += [
        "a_very_long_name_of_a_feature_that_goes_on_and_on_and_on_and_on",
        "\x07bell\nand line",
        "W" * 63,
    ]
    random = np.random.default_rng(1)
    rows = random.lognormal(size=(30_000, len(names)))
    labels = random.random(len(rows)) < 0.005
    rows[labels] += 3 * random.exponential(size=(labels.sum(), len(names)))
    detector = make_detector(names, threshold=60.0, recipe=plain_recipe())
    errors = detector.numpy_score(rows).reconstruction_error
    return report_data_of(
        detector, HISTORY, rows, errors=errors, title="</title><script>alert(1)</script>", labels=labels,
        training_features=rows[:5_000] * 1.2, kept_epoch=30, times=("2024-01-01", "2024-02-01"),
        facts=[("<b>", "<script>alert(2)</script>" * 3)],
    )  # fmt: skip


def series() -> ReportData:
    """Few rows of a series, with no truth, of tiny errors."""
    names = [f"beat[{i}]" for i in range(1, 141)]
    random = np.random.default_rng(2)
    rows = np.sin(np.linspace(0, 9, 140)) + random.normal(scale=0.1, size=(500, 140))
    detector = make_detector(names, threshold=0.05, recipe=plain_recipe(error_metric="mae"))
    errors = random.lognormal(-4, 0.5, size=500)
    return report_data_of(
        detector, HISTORY, rows, title="heartbeats", errors=errors, training_features=rows, kept_epoch=12
    )


def odd() -> ReportData:
    """Two features, every error the same, all rows flagged, thresholds far away."""
    rows = np.tile([1e12, -3e-9], (3, 1))
    detector = make_detector(["a", "b"], threshold=1e-300)
    return report_data_of(
        detector, {"loss": [1e9]}, rows, title="odd", labels=[False, True, True], errors=[7e11] * 3,
        training_features=rows,
    )  # fmt: skip


PAGES = {
    "labelled": (labelled, [*BASIC, *BY_TRUTH]),
    "series": (series, BASIC),
    "odd": (odd, [*BASIC, *BY_TRUTH]),
}


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, (data, _) in PAGES.items():
        (folder / f"{name}.html").write_text(page(data()))
    return {name: folder / f"{name}.html" for name in PAGES}


def opened(browser: Browser, path: Path, *, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and what the browser said or asked for while it was opened."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: said.append(f"request: {request.url}"))
    tab.goto(path.as_uri(), wait_until="load")
    return tab, [
        line for line in said if line != f"request: {path.as_uri()}" and "request: data:" not in line
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_overlaps_or_is_cut_and_the_browser_has_no_complaint(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab, said = opened(browser, pages[name], width=width, scheme=scheme)
    assert said == []
    assert tab.evaluate(LOOK) == []
    shown = tab.eval_on_selector_all("figure", "figures => figures.map(f => f.id)")
    assert sorted(shown) == sorted(PAGES[name][1])
    tab.context.close()


def test_light_and_dark_differ_and_paper_is_light(browser: Browser, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["series"], width=1280, scheme="dark")

    def card() -> str:
        return str(tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor"))

    assert card() == "rgb(25, 33, 43)"
    tab.emulate_media(media="print", color_scheme="dark")
    assert card() == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert tab.evaluate(LOOK.replace("pixels < 10", "pixels < 5")) == []
    pdf = tab.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") <= 5
    tab.context.close()


def test_the_checks_find_what_they_look_for(browser: Browser, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["series"], width=1280, scheme="light")
    tab.evaluate(
        """() => {
            const [first, second] = document.querySelectorAll('#loss text');
            second.setAttribute('x', first.getAttribute('x')); second.setAttribute('y', first.getAttribute('y'));
            second.setAttribute('transform', first.getAttribute('transform'));
            document.querySelector('#amount text').setAttribute('x', -20);
            document.querySelector('#drift p').style.color = 'silver';
            document.querySelector('#facts').style.minWidth = '2000px';
        }"""
    )
    found = " ".join(tab.evaluate(LOOK))
    for complaint in ("loss: 0 and 6 overlap", "amount: ", "is cut off", "is hard to read", "the page is"):
        assert complaint in found
    tab.context.close()
