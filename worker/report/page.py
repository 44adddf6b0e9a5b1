"""The report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pgoutlier.worker.report import charts, draw, features, quality
from pgoutlier.worker.report.curves import Curves
from pgoutlier.worker.report.data import ReportData
from pgoutlier.worker.report.draw import Chart, number


def page(data: ReportData) -> str:
    """The page. Whatever text the data holds is escaped. There has to be at least one row."""
    return _template().render(
        data=data,
        title=draw.shortened(data.title, 80),
        made_at=f"{data.made_at:%Y-%m-%d %H:%M %Z}".strip(),
        figures=_figures(data),
        charts=charts_of(data),
        facts=[(name, draw.shortened(value, 120)) for name, value in data.facts],
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pgoutlier.worker.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def charts_of(data: ReportData) -> list[Chart]:
    """Every chart that the data has something for, in the order of the page."""
    truth = data.truth
    keys = ("normal", "anomalous")
    made = [
        charts.class_counts(data),
        charts.amount_histogram(data),
        charts.loss(data),
        charts.errors_by_row(data),
        charts.error_histogram(data),
        *(quality.charts(data, truth) if truth is not None else []),
        features.top_features(data),
        *(features.example(row, key) for row, key in zip(data.examples, keys, strict=False)),
        features.drift(data.drift) if data.drift and data.drift.features else None,
    ]
    return [chart for chart in made if chart is not None]


def _figures(data: ReportData) -> list[tuple[str, str]]:
    """The figures at the top: name and value."""
    flagged = data.flagged
    shown = [
        ("rows", f"{len(data.errors):,}"),
        ("flagged", f"{int(flagged.sum()):,} ({draw.share(int(flagged.sum()), len(flagged))})"),
    ]
    truth = data.truth
    if truth is not None:
        curves = Curves.of(data.errors, truth)
        precision, recall, _ = quality.at_threshold(data, truth)
        return [
            *shown,
            ("AUROC", f"{curves.auroc:.4f}"),
            ("average precision", f"{curves.average_precision:.4f}"),
            ("precision", "-" if precision is None else f"{precision:.3f}"),
            ("recall", f"{recall:.3f}"),
        ]
    return [
        *shown,
        ("threshold", number(data.threshold)),
        ("median error", number(float(np.median(data.errors)))),
        ("largest error", number(float(data.errors.max()))),
    ]
