"""The charts that need no truth: rows, training, errors. Each is one function."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pgoutlier.worker.report import draw
from pgoutlier.worker.report.data import Bools, Floats, ReportData
from pgoutlier.worker.report.draw import (
    ANOMALY,
    BAND,
    LIMIT,
    MUTED,
    NORMAL,
    OTHER,
    PAPER,
    Chart,
    Names,
    number,
)

_BINS = 40
# More rows than this are drawn as the smallest, middle and largest error of each of so many stretches.
_MOST_POINTS, _STRETCHES = 800, 150
_MOST_MARKED = 300


def class_counts(data: ReportData) -> Chart:
    """How many rows there are of each class, or what became of them."""
    bars, title, caption = _counted(data)
    total = sum(n for _, n in bars)

    def plot(axes: Axes, names: Names) -> None:
        places = np.arange(len(bars))
        colours = [ANOMALY if i and not data.counts else NORMAL for i in places]
        axes.barh(places, [n for _, n in bars], height=0.34, color=colours)
        for place, (name, n) in zip(places, bars, strict=True):
            axes.text(0, place - 0.24, names.stand_in(name), va="bottom", weight="bold")
            axes.text(
                1,
                place - 0.24,
                f"{n:,} ({draw.share(n, total)})",
                va="bottom",
                ha="right",
                transform=axes.get_yaxis_transform(),
            )
        axes.set_ylim(len(bars) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        draw.scale(axes, "x", log=False)
        axes.set_xlabel("rows")

    said = ", ".join(f"{name}: {n:,}" for name, n in bars)
    return Chart("class-counts", title, draw.svg(plot, description=f"{title}. {said}."), caption)


def _counted(data: ReportData) -> tuple[list[tuple[str, int]], str, str]:
    """(name and number of each bar, title, caption)."""
    if data.counts:
        caption = "The network is fitted on the first; the second set the threshold. Others are left out, by reason."
        return list(data.counts), "Rows by what they were used for", caption
    by_truth = data.truth is not None
    second = int((data.flagged if data.truth is None else data.truth).sum())
    names = ("normal", "anomaly") if by_truth else ("not flagged", "flagged")
    bars = list(zip(names, (len(data.errors) - second, second), strict=True))
    rate = f"One row in {round(len(data.errors) / second):,}" if second else "No row"
    return (
        bars,
        f"Rows by {'class' if by_truth else 'flag'}",
        f"{rate} is {'an anomaly' if by_truth else 'flagged'}.",
    )


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
    caption = f"Each class adds up to 100%. The median is {medians}.{zeros}"
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
        draw.scale(axes, "y", log=draw.is_wide(every, 10))
        axes.xaxis.set_major_locator(draw.whole_numbers())
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        draw.legend(axes)

    kept = f" The weights of epoch {data.kept_epoch} are kept." if data.kept_epoch else ""
    ends = f"training {number(trained[-1])}"
    ends += f", validation {number(validated[-1])}" if len(validated) else ""
    caption = (
        f"After {len(epochs)} epochs: {ends}.{kept} Where validation rises while training falls,"
        " the network learns by heart."
    )
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
                look: dict[str, Any] = {"mec": ANOMALY, "ms": 5.5, "ls": "", "mew": 1.2, **looks[what]}
                axes.plot(rows[index], data.errors[index], label=what, **look)
        axes.axhline(data.threshold, color=LIMIT, ls="--", label="threshold")
        draw.scale(axes, "y", log=draw.has_long_tail(data.errors))
        draw.scale(axes, "x", log=False)
        axes.set_xlim(1 - 0.01 * len(rows), 1.01 * len(rows))
        axes.set_xlabel("row, in order")
        axes.set_ylabel(f"error ({data.error_metric})")
        draw.legend(axes, columns=4 if data.truth is None else 3)

    caption = f"{int(data.flagged.sum()):,} of {len(rows):,} rows are above the threshold of {number(data.threshold)}."
    if data.truth is not None:
        caption += (
            " Anomalies and alarms: "
            + ", ".join(f"{int(m.sum()):,} {what}" for what, m in marked.items())
            + "."
        )
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
        _histogram(axes, data.errors, groups, log=draw.has_long_tail(data.errors), also=data.threshold)
        axes.axvline(data.threshold, color=LIMIT, ls="--", label="threshold")
        axes.set_xlabel(f"error ({data.error_metric})")
        draw.legend(axes)

    medians = ", ".join(f"{number(float(np.median(data.errors[m])))} ({what})" for what, m in groups.items())
    caption = f"Each class adds up to 100%. Median error: {medians}; threshold: {number(data.threshold)}."
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
    looks: list[dict[str, Any]] = [{"fc": BAND, "ec": NORMAL}, {"fc": "none", "ec": ANOMALY, "hatch": "////"}]
    for (what, mask), look in zip(groups.items(), looks, strict=False):
        if mask.any():
            shares = 100 * np.histogram(np.clip(values[mask], edges[0], edges[-1]), edges)[0] / mask.sum()
            axes.stairs(shares, edges, fill=True, lw=1.2, label=what, **look)
    draw.scale(axes, "x", log=log)
    draw.scale(axes, "y", log=False, most_ticks=4)
    axes.set_ylabel("% of the class" if len(groups) > 1 else "% of rows")
