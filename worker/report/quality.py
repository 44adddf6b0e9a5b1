"""The charts that need the truth: ROC, precision and recall, confusion matrix. Each is one function."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pgoutlier.worker.report import draw
from pgoutlier.worker.report.curves import Curves
from pgoutlier.worker.report.data import Bools, ReportData
from pgoutlier.worker.report.draw import ANOMALY, BAND, INK, LIMIT, MUTED, NORMAL, Chart, Names, number


def charts(data: ReportData, truth: Bools) -> list[Chart]:
    """All of them. truth: (n,) with both classes among them."""
    curves = Curves.of(data.errors, truth)
    return [
        precision_recall_by_threshold(data, curves),
        roc(data, truth, curves),
        precision_recall(data, truth, curves),
        confusion(data, truth),
    ]


def at_threshold(data: ReportData, truth: Bools) -> tuple[float | None, float, float]:
    """(precision or None if nothing is flagged, recall, share of normal rows flagged)."""
    hits = int((data.flagged & truth).sum())
    n_flagged = int(data.flagged.sum())
    n_normal = len(truth) - int(truth.sum())
    return hits / n_flagged if n_flagged else None, hits / int(truth.sum()), (n_flagged - hits) / n_normal


def roc(data: ReportData, truth: Bools, curves: Curves) -> Chart:
    """Recall against the share of normal rows that is flagged."""
    thin = curves.thinned()
    _, recall, false_positives = at_threshold(data, truth)

    def plot(axes: Axes, _names: Names) -> None:
        axes.fill_between([0.0, *thin.false_positives], 0, [0.0, *thin.recall], color=BAND, lw=0)
        axes.plot([0.0, *thin.false_positives], [0.0, *thin.recall], color=NORMAL, label="errors")
        axes.plot([0, 1], [0, 1], color=MUTED, ls=":", lw=1.2, label="chance")
        axes.plot(false_positives, recall, "D", color=LIMIT, ms=6, label="threshold", clip_on=False)
        _unit(axes, "false positive rate", "recall")

    caption = (
        f"AUROC {curves.auroc:.4f}; chance is 0.5. At the threshold {recall:.1%} of the anomalies are caught"
        f" and {false_positives:.2%} of the normal rows are flagged."
    )
    return Chart("roc", "ROC curve", draw.svg(plot, description=f"ROC curve. {caption}"), caption)


def precision_recall(data: ReportData, truth: Bools, curves: Curves) -> Chart:
    """Precision against recall."""
    thin = curves.thinned()
    precision, recall, _ = at_threshold(data, truth)
    prevalence = float(truth.mean())

    def plot(axes: Axes, _names: Names) -> None:
        axes.plot([0.0, *thin.recall], [thin.precision[0], *thin.precision], color=NORMAL, label="errors")
        axes.axhline(prevalence, color=MUTED, ls=":", lw=1.2, label="chance")
        if precision is not None:
            axes.plot(recall, precision, "D", color=LIMIT, ms=6, label="threshold", clip_on=False)
        _unit(axes, "recall", "precision")

    caption = f"Average precision {curves.average_precision:.4f}; chance is the share of anomalies, {prevalence:.4f}."
    title = "Precision and recall"
    return Chart("precision-recall", title, draw.svg(plot, description=f"{title}. {caption}"), caption)


def precision_recall_by_threshold(data: ReportData, curves: Curves) -> Chart:
    """What other thresholds would give."""
    thin = curves.thinned()
    precision, recall = curves.precision, curves.recall
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1))

    def plot(axes: Axes, _names: Names) -> None:
        axes.plot(thin.thresholds, thin.precision, color=NORMAL, label="precision")
        axes.plot(thin.thresholds, thin.recall, color=ANOMALY, ls="--", label="recall")
        axes.axvline(data.threshold, color=LIMIT, ls="-.", lw=1.4, label="threshold")
        draw.scale(axes, "x", log=draw.has_long_tail(data.errors))
        draw.scale(axes, "y", log=False)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"threshold ({data.error_metric})")
        draw.legend(axes)

    below = curves.thresholds[best + 1] if best + 1 < len(curves.thresholds) else 0.0
    caption = (
        f"A higher threshold flags fewer rows. The best F1, {f1[best]:.3f}, would be at about {number(float(below))}"
        f" (precision {precision[best]:.3f}, recall {recall[best]:.3f}); chosen with the truth known, so look at it"
        " as an upper bound."
    )
    title = "Precision and recall by threshold"
    return Chart("by-threshold", title, draw.svg(plot, description=f"{title}. {caption}"), caption)


def confusion(data: ReportData, truth: Bools) -> Chart:
    """Rows by truth and flag."""
    flagged = data.flagged
    cells = [[int((t & f).sum()) for f in (~flagged, flagged)] for t in (~truth, truth)]

    def plot(axes: Axes, _names: Names) -> None:
        for row, counts in enumerate(cells):
            for column, n in enumerate(counts):
                right = row == column
                share = n / max(1, sum(counts))
                box: dict[str, Any] = {
                    "fc": NORMAL if right else ANOMALY,
                    "alpha": 0.1 + 0.35 * share,
                    "ec": "none",
                }
                axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, **box))
                axes.text(column, row - 0.08, f"{n:,}", ha="center", va="center", size=17, color=INK)
                words = f"{'right' if right else 'wrong'}, {100 * share:.3g}%"
                axes.text(column, row + 0.24, words, ha="center", va="center")
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
        axes.set_xticks([0, 1], ["not flagged", "flagged"])
        axes.set_yticks([0, 1], ["normal", "anomaly"])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    precision, recall, _ = at_threshold(data, truth)
    (_, alarms), (missed, hits) = cells
    said = "Nothing is flagged" if precision is None else f"Precision {precision:.3f}, recall {recall:.3f}"
    caption = f"{said}: {hits:,} anomalies caught, {missed:,} missed, {alarms:,} false alarms. Shares are of the class."
    return Chart(
        "confusion", "Confusion matrix", draw.svg(plot, description=f"Confusion matrix. {caption}"), caption
    )


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    draw.scale(axes, "x", log=False)
    draw.scale(axes, "y", log=False)
    draw.legend(axes)
