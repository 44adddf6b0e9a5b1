"""The charts of rows and features: original and reconstruction, top features, drift. Each is one function."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from pgoutlier.detector.drift import PSI_LARGE, PSI_MODERATE
from pgoutlier.worker.report import draw
from pgoutlier.worker.report.data import Drift, Example, FeatureDrift, ReportData
from pgoutlier.worker.report.draw import ANOMALY, BAND, INK, MUTED, NORMAL, OTHER, PAPER, Chart, Names, number

MOST_BARS = 10


def example(row: Example, key: str) -> Chart:
    """One row and what the network made of it."""
    n_shown = min(MOST_BARS, len(row.names))
    most = np.argsort(-row.contributions, kind="stable")[:n_shown]

    def series(axes: Axes, _names: Names) -> None:
        samples = np.arange(1, len(row.original) + 1)
        axes.fill_between(samples, row.original, row.reconstruction, color=BAND, lw=0, label="residual")
        axes.plot(samples, row.original, color=NORMAL, label="original")
        axes.plot(samples, row.reconstruction, color=ANOMALY, ls="--", label="rebuilt")
        draw.scale(axes, "y", log=False)
        draw.scale(axes, "x", log=False)
        axes.set_xlabel("sample")
        draw.legend(axes)

    def bars(axes: Axes, names: Names) -> None:
        places = np.arange(n_shown)
        axes.barh(places - 0.19, row.original[most], height=0.34, color=NORMAL, label="original")
        axes.barh(
            places + 0.19,
            row.reconstruction[most],
            height=0.34,
            fc=PAPER,
            ec=ANOMALY,
            hatch="////",
            label="rebuilt",
        )
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set_yticks(places, [names.stand_in(row.names[i]) for i in most])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        draw.scale(axes, "x", log=False)
        axes.set_xlabel("preprocessed value")
        draw.legend(axes)

    caption = f"{row.what}: error {number(row.error)}."
    if not row.is_series:
        some = (
            f"The {n_shown} features that add most to it, of {len(row.names)}"
            if n_shown < len(row.names)
            else "All features"
        )
        caption += f" {some}, the first one most."
    svg = draw.svg(
        series if row.is_series else bars,
        description=f"Original and reconstruction. {caption}",
        height=draw.HEIGHT if row.is_series else _bars_height(n_shown, 0.33),
    )
    return Chart(f"example-{key}", f"{key.capitalize()} row: original and rebuilt", svg, caption)


def top_features(data: ReportData) -> Chart | None:
    """What made the flagged rows stand out."""
    shown = data.top_features[:MOST_BARS]
    if not shown:
        return None

    def plot(axes: Axes, names: Names) -> None:
        places = np.arange(len(shown))
        counts = [feature.n_rows for feature in shown]
        axes.barh(places, counts, height=0.6, color=NORMAL)
        for place, feature in enumerate(shown):
            draw.beside(axes, feature.n_rows, place, f"{feature.n_rows:,} (+{number(feature.contribution)})")
        axes.set_yticks(places, [names.stand_in(feature.name) for feature in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, max(counts) * 1.45)
        axes.grid(visible=False, axis="y")
        draw.scale(axes, "x", log=False, most_ticks=4)
        axes.set_xlabel("flagged rows")

    caption = (
        f"In how many of {data.n_flagged_looked_at:,} flagged rows the feature is among those that add most to the"
        " error; in brackets what it adds on average."
    )
    svg = draw.svg(plot, description=f"Top features. {caption}", height=_bars_height(len(shown), 0.24))
    return Chart("top-features", "Top features of the flagged rows", svg, caption)


def drift(found: Drift) -> Chart:
    """How far each feature has moved from the rows it was trained on."""
    bars = sorted(found.features, key=lambda bar: -bar.psi)[:MOST_BARS]
    if found.error is not None:
        bars = [FeatureDrift(name="reconstruction error", psi=found.error, limit=found.error_limit), *bars]

    def plot(axes: Axes, names: Names) -> None:
        places = np.arange(len(bars))
        values = np.array([bar.psi for bar in bars])
        large = np.array([_is_large(bar) for bar in bars])
        colours = np.select([large, values >= PSI_MODERATE], [ANOMALY, OTHER], NORMAL).tolist()
        axes.barh(places, values, height=0.6, color=colours)
        widest = max(float(values.max()), 1.2 * PSI_LARGE)
        for place, bar in enumerate(bars):
            # Behind the mark of the limit too, which it would cover.
            end = max(bar.psi, bar.limit or 0.0)
            draw.beside(axes, end, place, f"{bar.psi:.3f}" if bar.psi < 1 else number(bar.psi))
        lines = ((PSI_MODERATE, ":"), (PSI_LARGE, "--")) if found.measured is None else ()
        for limit, style in lines:
            axes.axvline(limit, color=INK, ls=style, lw=1.0, zorder=0.6, label=f"{limit:g}")
        limits = [(bar.limit, place) for place, bar in enumerate(bars) if bar.limit is not None]
        if limits:
            axes.plot(*zip(*limits, strict=True), ls="", marker="|", ms=12, color=INK, label="limit")
            widest = max(widest, *(limit for limit, _ in limits))
        axes.set_yticks(places, [names.stand_in(bar.name) for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, widest * 1.2)
        axes.grid(visible=False)
        draw.scale(axes, "x", log=False, most_ticks=4)
        axes.set_xlabel("population stability index")
        draw.legend(axes)

    n_large = sum(_is_large(feature) for feature in found.features)
    n_features = f"{n_large:,} feature{'s' if n_large != 1 else ''}"
    if found.measured is None:
        caption = (
            f"From the training rows to these. Below {PSI_MODERATE:g} (dotted) little has changed, above"
            f" {PSI_LARGE:g} (dashed) much: {n_features}."
        )
    else:
        caption = f"{found.measured} Beyond its limit: {n_features}."
    if found.by_chance is not None:
        caption += f" Without any drift it would be about {number(found.by_chance)}."
    if len(found.features) > MOST_BARS:
        caption += f" Shown are the {MOST_BARS} largest of {len(found.features):,} features."
    svg = draw.svg(plot, description=f"Drift. {caption}", height=_bars_height(len(bars), 0.24))
    return Chart("drift", "Drift against the training rows", svg, caption)


def _is_large(bar: FeatureDrift) -> bool:
    return bar.psi >= PSI_LARGE if bar.limit is None else bar.psi > bar.limit


def _bars_height(n_bars: int, each: float) -> float:
    return max(draw.HEIGHT, 0.75 + each * n_bars)
