"""The charts that need no truth: rows, training, errors, examples, features. Each is one function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from detector.drift import PSI_LARGE, PSI_MODERATE
from worker.report import draw
from worker.report.data import Bools, Drift, Example, Floats, ReportData
from worker.report.draw import ANOMALY, BAND, INK, LIMIT, MUTED, NORMAL, OTHER, PAPER, Names, number

MOST_BARS = 10
_BINS = 40
# More rows than this are drawn as the smallest, middle and largest error of each of so many stretches.
_MOST_POINTS, _STRETCHES = 800, 150
_MOST_MARKED = 300


@dataclass(frozen=True)
class Chart:
    """key names it in the page; caption says in words what there is to see."""

    key: str
    title: str
    svg: Markup
    caption: str


def class_counts(data: ReportData) -> Chart:
    """How many rows there are of each class, or of what became of them."""
    total = len(data.errors)
    if data.counts:
        bars, title = list(data.counts), "Rows by what they were used for"
        total = sum(n for _, n in bars)
    elif data.truth is not None:
        n = int(data.truth.sum())
        bars, title = [("normal", total - n), ("anomaly", n)], "Rows by class"
    else:
        n = int(data.flagged.sum())
        bars, title = [("not flagged", total - n), ("flagged", n)], "Rows by flag"

    def plot(axes: Axes, names: Names) -> None:
        places = np.arange(len(bars))
        colours = [ANOMALY if i and not data.counts else NORMAL for i in places]
        axes.barh(places, [n for _, n in bars], height=0.34, color=colours)
        for place, (name, n) in zip(places, bars, strict=True):
            axes.text(0, place - 0.24, names.stand_in(name), va="bottom", weight="bold")
            axes.text(
                1,
                place - 0.24,
                f"{n:,} ({share(n, total)})",
                va="bottom",
                ha="right",
                transform=axes.get_yaxis_transform(),
            )
        axes.set_ylim(len(bars) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        draw.scale(axes.xaxis, log=False)
        axes.set_xlabel("rows")

    said = ", ".join(f"{name}: {n:,} ({share(n, total)})" for name, n in bars)
    return Chart("class-counts", title, draw.svg(plot, description=f"{title}. {said}."), f"{said}.")


def amount_histogram(data: ReportData) -> Chart | None:
    """One telling feature by class."""
    if data.amount is None:
        return None
    values = data.amount.values
    name = draw.shortened(data.amount.name, 40)
    known = np.isfinite(values)
    values, groups = values[known], _groups(data, known)
    if not len(values):
        return None
    floor = 0.0
    n_zero = 0
    if values.min() >= 0 and (values > 0).any() and draw.is_wide(values[values > 0], 20):
        floor = float(values[values > 0].min())
        n_zero = int((values == 0).sum())
        values = np.maximum(values, floor)
    zeros = f" Rows with 0 ({n_zero:,}) are in the first bin." if n_zero else ""

    def plot(axes: Axes, names: Names) -> None:
        _histogram(axes, values, groups)
        draw.legend(axes)
        axes.set_xlabel(names.stand_in(data.amount.name) if data.amount else "")

    medians = " and ".join(
        f"{number(float(np.median(values[rows])))} for {what}" for what, rows in groups.items() if rows.any()
    )
    caption = f"Each class adds up to 100 %. The median is {medians}.{zeros}"
    title = f"Feature {name} by {'class' if data.truth is not None else 'flag'}"
    return Chart("amount", title, draw.svg(plot, description=f"Histogram of {title}. {caption}"), caption)


def loss(data: ReportData) -> Chart | None:
    """Training and validation loss by epoch."""
    trained, validated = (np.array(data.history.get(key, ())) for key in ("loss", "val_loss"))
    if not len(trained):
        return None
    epochs = np.arange(1, len(trained) + 1)
    every = np.concatenate([trained, validated])

    def plot(axes: Axes, _names: Names) -> None:
        marker = "." if len(epochs) <= 30 else ""
        axes.plot(epochs, trained, color=NORMAL, marker=marker, label="training")
        if len(validated):
            axes.plot(epochs, validated, color=ANOMALY, ls="--", marker=marker, label="validation")
        if data.kept_epoch:
            axes.axvline(data.kept_epoch, color=MUTED, ls=":", lw=1.2, label="kept epoch")
        draw.scale(axes.yaxis, log=draw.is_wide(every, 10))
        axes.xaxis.set_major_locator(draw.whole_numbers())
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        draw.legend(axes)

    kept = f" The weights of epoch {data.kept_epoch} are kept." if data.kept_epoch else ""
    ends = f"training {number(trained[-1])}"
    ends += f", validation {number(validated[-1])}" if len(validated) else ""
    caption = f"After {len(epochs)} epochs: {ends}.{kept} Where validation rises while training falls, it learns by heart."
    return Chart("loss", "Loss", draw.svg(plot, description=f"Loss by epoch. {caption}"), caption)


def errors_by_row(data: ReportData) -> Chart:
    """Every row's error in order, against the threshold."""
    marked = _marked(data)
    quiet = ~np.any(list(marked.values()), axis=0)
    rows = np.arange(1, len(data.errors) + 1)
    thinned = int(quiet.sum()) > _MOST_POINTS
    drawn = {what: _spread(data.errors, rows_of, _MOST_MARKED) for what, rows_of in marked.items()}
    looks = {
        "flagged": {"marker": "^", "mfc": ANOMALY},
        "caught": {"marker": "^", "mfc": ANOMALY},
        "missed": {"marker": "v", "mfc": PAPER},
        "false alarm": {"marker": "x", "mec": OTHER},
    }

    def plot(axes: Axes, _names: Names) -> None:
        if thinned:
            _envelope(axes, rows[quiet], data.errors[quiet])
        else:
            axes.plot(rows[quiet], data.errors[quiet], ".", ms=3.5, color=NORMAL, label=_quiet_name(data))
        for what, index in drawn.items():
            if len(index):
                look = {"mec": ANOMALY, "ms": 5.5, "ls": "", "mew": 1.2, **looks[what]}
                axes.plot(rows[index], data.errors[index], label=what, **look)
        axes.axhline(data.threshold, color=LIMIT, ls="--", label="threshold")
        draw.scale(axes.yaxis, log=log_errors(data))
        draw.scale(axes.xaxis, log=False)
        axes.set_xlim(1 - 0.01 * len(rows), 1.01 * len(rows))
        axes.set_xlabel("row, in order")
        axes.set_ylabel(f"error ({data.error_metric})")
        draw.legend(axes, columns=3)

    caption = f"{int(data.flagged.sum()):,} of {len(rows):,} rows are above the threshold of {number(data.threshold)}."
    if data.truth is not None:
        caption += " " + ", ".join(f"{what}: {int(m.sum()):,}" for what, m in marked.items()) + "."
    if thinned:
        caption += (
            f" The band is the smallest to the largest error of {_quiet_name(data)} rows in each of"
            f" {_STRETCHES} stretches, the line the median."
        )
    left_out = [
        f"{len(i):,} of {int(marked[what].sum()):,} {what}"
        for what, i in drawn.items()
        if len(i) < marked[what].sum()
    ]
    if left_out:
        caption += f" Marked, evenly chosen: {', '.join(left_out)}."
    return Chart(
        "errors-by-row",
        "Reconstruction error by row",
        draw.svg(plot, description=f"Error of each row. {caption}"),
        caption,
    )


def error_histogram(data: ReportData) -> Chart:
    """How the errors are spread, by class where that is known."""
    groups = (
        _groups(data, np.ones(len(data.errors), dtype=bool))
        if data.truth is not None
        else {"all rows": np.ones(len(data.errors), dtype=bool)}
    )

    def plot(axes: Axes, _names: Names) -> None:
        _histogram(axes, data.errors, groups, log=log_errors(data), also=data.threshold)
        axes.axvline(data.threshold, color=LIMIT, ls="--", label="threshold")
        axes.set_xlabel(f"error ({data.error_metric})")
        draw.legend(axes)

    medians = ", ".join(f"{number(float(np.median(data.errors[m])))} ({what})" for what, m in groups.items())
    caption = f"Each class adds up to 100 %. Median error: {medians}; threshold: {number(data.threshold)}."
    if data.truth is None:
        caption = (
            f"Median error: {number(float(np.median(data.errors)))}; threshold: {number(data.threshold)}."
        )
    return Chart(
        "error-histogram",
        "Reconstruction errors",
        draw.svg(plot, description=f"Histogram of errors. {caption}"),
        caption,
    )


def example(row: Example, key: str) -> Chart:
    """One row and what the network made of it."""
    n_shown = min(MOST_BARS, len(row.names))
    most = np.argsort(-row.contributions, kind="stable")[:n_shown]

    def series(axes: Axes, _names: Names) -> None:
        samples = np.arange(1, len(row.original) + 1)
        axes.fill_between(samples, row.original, row.reconstruction, color=BAND, lw=0, label="residual")
        axes.plot(samples, row.original, color=NORMAL, label="original")
        axes.plot(samples, row.reconstruction, color=ANOMALY, ls="--", label="rebuilt")
        draw.scale(axes.yaxis, log=False)
        draw.scale(axes.xaxis, log=False)
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
        draw.scale(axes.xaxis, log=False)
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
        for place, feature in zip(places, shown, strict=True):
            draw.beside(axes, feature.n_rows, place, f"{feature.n_rows:,} (+{number(feature.contribution)})")
        axes.set_yticks(places, [names.stand_in(feature.name) for feature in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, max(counts) * 1.45)
        axes.grid(visible=False, axis="y")
        draw.scale(axes.xaxis, log=False, most_ticks=4)
        axes.set_xlabel("flagged rows")

    caption = (
        f"In how many of {data.n_flagged_looked_at:,} flagged rows the feature is among those that add most to the"
        " error; in brackets what it adds on average."
    )
    svg = draw.svg(plot, description=f"Top features. {caption}", height=_bars_height(len(shown), 0.24))
    return Chart("top-features", "Top features of the flagged rows", svg, caption)


def drift(found: Drift) -> Chart:
    """How far each feature has moved from the rows it was trained on."""
    bars = sorted(((feature.name, feature.psi) for feature in found.features), key=lambda bar: -bar[1])[
        :MOST_BARS
    ]
    n_errors = 0
    if found.error is not None:
        bars, n_errors = [("reconstruction error", found.error), *bars], 1

    def plot(axes: Axes, names: Names) -> None:
        places = np.arange(len(bars))
        values = np.array([value for _, value in bars])
        colours = np.select([values >= PSI_LARGE, values >= PSI_MODERATE], [ANOMALY, OTHER], NORMAL).tolist()
        axes.barh(places, values, height=0.6, color=colours)
        widest = max(float(values.max()), 1.2 * PSI_LARGE)
        for place, value in zip(places, values, strict=True):
            draw.beside(axes, float(value), place, number(round(float(value), 3)))
        for limit, style in ((PSI_MODERATE, ":"), (PSI_LARGE, "--")):
            axes.axvline(limit, color=INK, ls=style, lw=1.0, zorder=0.6, label=f"{limit:g}")
        axes.set_yticks(places, [names.stand_in(name) for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, widest * 1.2)
        axes.grid(visible=False)
        draw.scale(axes.xaxis, log=False, most_ticks=4)
        axes.set_xlabel("population stability index")
        draw.legend(axes)

    n_large = sum(value >= PSI_LARGE for _, value in bars[n_errors:])
    caption = (
        f"From the training rows to these. Below {PSI_MODERATE:g} (dotted) little has changed, above {PSI_LARGE:g} (dashed) much:"
        f" {n_large:,} feature{'s' if n_large != 1 else ''}. Without any drift it would be about {number(found.by_chance)}."
    )
    if len(found.features) > MOST_BARS:
        caption += f" Shown are the {MOST_BARS} largest of {len(found.features):,} features."
    svg = draw.svg(plot, description=f"Drift. {caption}", height=_bars_height(len(bars), 0.24))
    return Chart("drift", "Drift against the training rows", svg, caption)


def share(n: int, total: int) -> str:
    share = 100 * n / max(1, total)
    return f"{share:.3g} %" if share < 99 or n == total else f"{share:.2f} %"


def _bars_height(n_bars: int, each: float) -> float:
    return max(draw.HEIGHT, 0.75 + each * n_bars)


def log_errors(data: ReportData) -> bool:
    return draw.is_wide(data.errors[data.errors > 0], 10) and bool((data.errors > 0).mean() > 0.99)


def _quiet_name(data: ReportData) -> str:
    return "normal" if data.truth is not None else "not flagged"


def _groups(data: ReportData, rows: Bools) -> dict[str, Bools]:
    """The classes among the rows: by truth, else by flag."""
    split = data.truth if data.truth is not None else data.flagged
    words = ("normal", "anomaly") if data.truth is not None else ("not flagged", "flagged")
    return {words[0]: ~split[rows], words[1]: split[rows]}


def _marked(data: ReportData) -> dict[str, Bools]:
    if data.truth is None:
        return {"flagged": data.flagged}
    return {
        "caught": data.flagged & data.truth,
        "missed": ~data.flagged & data.truth,
        "false alarm": data.flagged & ~data.truth,
    }


def _spread(errors: Floats, mask: Bools, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """At most so many positions of the mask, evenly chosen, the largest error always among them."""
    index = np.flatnonzero(mask)
    if len(index) <= most:
        return index
    chosen = index[np.linspace(0, len(index) - 1, most - 1).astype(int)]
    return np.union1d(chosen, index[[np.argmax(errors[index])]])


def _envelope(axes: Axes, rows: np.ndarray[tuple[int], np.dtype[np.int64]], errors: Floats) -> None:
    stretches = np.array_split(np.arange(len(rows)), _STRETCHES)
    middle = [rows[s].mean() for s in stretches]
    low, median, high = np.array([np.quantile(errors[s], (0, 0.5, 1)) for s in stretches]).T
    axes.fill_between(middle, low, high, color=BAND, lw=0, label="range")
    axes.plot(middle, median, color=NORMAL, lw=1.4, label="median")


def _histogram(
    axes: Axes,
    values: Floats,
    groups: dict[str, Bools],
    *,
    log: bool | None = None,
    also: float | None = None,
) -> None:
    """Shares of each group (masks over values) in common bins; the second group is an outline with hatching."""
    log = draw.is_wide(values, 20) if log is None else log
    if log:
        values = np.maximum(values, values[values > 0].min())
    ends = np.append(values, also if also is not None and (not log or also > 0) else values[:1])
    low, high = float(ends.min()), float(ends.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
        log = False
    edges = np.geomspace(low, high, _BINS + 1) if log else np.linspace(low, high, _BINS + 1)
    looks = [{"fc": BAND, "ec": NORMAL}, {"fc": "none", "ec": ANOMALY, "hatch": "////"}]
    for (what, mask), look in zip(groups.items(), looks, strict=False):
        if mask.any():
            shares = 100 * np.histogram(np.clip(values[mask], edges[0], edges[-1]), edges)[0] / mask.sum()
            axes.stairs(shares, edges, fill=True, lw=1.2, label=what, **look)
    draw.scale(axes.xaxis, log=log)
    draw.scale(axes.yaxis, log=False, most_ticks=4)
    axes.set_ylabel("% of the class" if len(groups) > 1 else "% of rows")
