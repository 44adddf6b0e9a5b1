"""What an evaluation found: everything --json prints, and the same in words for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgoutlier import detector
from pgoutlier.detector.far import FarValues
from pgoutlier.detector.metrics import Confusion, Ranking
from pgoutlier.worker.console import seconds_text
from pgoutlier.worker.evaluation.run import Evaluation
from pgoutlier.worker.evaluation.splits import Split
from pgoutlier.worker.evaluation.table import Table, describe_left_out

if TYPE_CHECKING:
    from pgoutlier.db.tables import TopFeature

_RANKING_FIGURES = (
    "auroc",
    "average_precision",
    "precision_at_100",
    "best_f1",
    "best_f1_precision",
    "best_f1_recall",
    "best_f1_threshold",
    "recall_at_1pct_fpr",
)
_CONFUSION_FIGURES = (
    "true_positives",
    "false_positives",
    "false_negatives",
    "true_negatives",
    "accuracy",
    "precision",
    "recall",
    "f1",
)
_RATES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class AtThreshold:
    """What flagging above a threshold gives on the test rows. flags: None without a label."""

    threshold: float
    n_flagged: int
    flags: Confusion | None

    @classmethod
    def of(cls, evaluation: Evaluation, threshold: float) -> AtThreshold:
        n_flagged = int(detector.exceeds(evaluation.test_errors, threshold).sum())
        return cls(threshold, n_flagged, evaluation.confusion_at(threshold))


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything measured by an evaluation, without its rows. ranking: None without a label.

    chosen: at the recipe's threshold; at: at those asked for. left_out: rows by why they are no part of it.
    epochs, loss, val_loss, history and decided_by_few: of the fit, see `Evaluation`.
    """

    data: str
    recipe: str
    split: Split
    seed: int
    n_read: int
    left_out: Mapping[str, int]
    n_features: int
    n_train: int
    n_train_anomalies: int
    n_test: int
    ranking: Ranking | None
    chosen: AtThreshold
    at: tuple[AtThreshold, ...]
    error_quantiles: Mapping[str, float]
    top_features: Sequence[TopFeature]
    epochs: float
    loss: float
    val_loss: float
    fit_seconds: float
    score_seconds: float
    history: Mapping[str, Sequence[float]]
    decided_by_few: Sequence[FarValues]

    @classmethod
    def of(cls, evaluation: Evaluation, *, at: Sequence[float] = ()) -> Figures:
        """at: more thresholds than the recipe's own."""
        table, fit_metrics = evaluation.table, evaluation.fit_metrics
        return cls(
            data=table.name,
            recipe=evaluation.recipe.name,
            split=evaluation.split,
            seed=evaluation.seed,
            n_read=table.n_read,
            left_out=table.left_out,
            n_features=len(table.feature_names),
            n_train=len(evaluation.training_features),
            n_train_anomalies=evaluation.n_training_anomalies,
            n_test=len(evaluation.test_errors),
            ranking=evaluation.ranking,
            chosen=AtThreshold.of(evaluation, evaluation.detector.threshold),
            at=tuple(AtThreshold.of(evaluation, threshold) for threshold in at),
            error_quantiles=evaluation.error_quantiles,
            top_features=evaluation.top_features,
            epochs=fit_metrics["epochs"],
            loss=fit_metrics["loss"],
            val_loss=fit_metrics["val_loss"],
            fit_seconds=evaluation.fit_seconds,
            score_seconds=evaluation.score_seconds,
            history=evaluation.history,
            decided_by_few=evaluation.decided_by_few,
        )

    @property
    def flag_rate(self) -> float:
        """Share of the test rows that are flagged at the recipe's threshold."""
        return self.chosen.n_flagged / self.n_test

    @property
    def normal(self) -> Confusion | None:
        """At the recipe's threshold, with the normal rows as the positive class."""
        return None if self.chosen.flags is None else self.chosen.flags.of_normal


def as_json(found: Figures) -> dict[str, Any]:
    """Everything measured, as JSON knows it; figures that need a label are None without one."""
    return {
        "data": found.data,
        "recipe": found.recipe,
        "split": found.split.order,
        "test_size": found.split.test_size,
        "split_seed": found.split.seed,
        "seed": found.seed,
        "n_rows": found.n_read,
        **{f"n_{reason}": n for reason, n in found.left_out.items()},
        "n_features": found.n_features,
        "n_train": found.n_train,
        "n_train_anomalies": found.n_train_anomalies,
        "n_test": found.n_test,
        **_named(found.ranking, ("n_anomalies", "prevalence", *_RANKING_FIGURES)),
        "threshold": found.chosen.threshold,
        **_named(found.chosen.flags, _CONFUSION_FIGURES),
        **{f"normal_{name}": n for name, n in _named(found.normal, _RATES).items()},
        "flag_rate": found.flag_rate,
        "at": [
            {"threshold": at.threshold, "n_flagged": at.n_flagged, **_named(at.flags, _RATES)}
            for at in found.at
        ],
        "error_quantiles": found.error_quantiles,
        "top_features": found.top_features,
        "epochs": found.epochs,
        "loss": found.loss,
        "val_loss": found.val_loss,
        "fit_seconds": found.fit_seconds,
        "score_seconds": found.score_seconds,
        "history": found.history,
        "decided_by_few": found.decided_by_few,
    }


def _named(of: Ranking | Confusion | None, names: Sequence[str]) -> dict[str, float | None]:
    """These figures by name, each None where there are none."""
    return {name: getattr(of, name, None) for name in names}


def describe_table(table: Table) -> str:
    """A sentence on the rows that were read and left out."""
    left_out = {reason: n for reason, n in table.left_out.items() if n or reason == "duplicates"}
    return (
        f"{table.name}: {table.n_read:,} rows, {len(table.feature_names)} features; "
        f"left out: {describe_left_out(left_out)}."
    )


def describe_parts(evaluation: Evaluation) -> str:
    """A sentence on what was fitted on and what was tested."""
    n_test, n_train = len(evaluation.test_errors), len(evaluation.training_features)
    how = f"random, seed {evaluation.split.seed}"
    if evaluation.split.order == "time":
        how = "by time" if evaluation.table.times is not None else "by time, taking the file's order for it"
    if evaluation.test_is_anomaly is None:
        return f"Split {how}: fitted on {n_train:,} rows, tested on {n_test:,}."
    return (
        f"Split {how}: fitted on {n_train:,} normal rows ({evaluation.n_training_anomalies:,} anomalies beside them "
        f"left out), tested on {n_test:,} rows, {int(evaluation.test_is_anomaly.sum()):,} of them anomalies."
    )


def table_rows(found: Sequence[Figures]) -> list[list[str]]:
    """A name and then one text a recipe in each row. The figures are of one table, so all have a label or none."""
    rows = []
    first = found[0]
    labelled = first.ranking is not None
    for name, text in [*(_LABELLED if labelled else ()), *_ALWAYS]:
        rows.append([name, *(text(one) for one in found)])
    for i, at in enumerate(first.at):
        same = [one.at[i] for one in found]
        rows.append([f"flagged above {at.threshold:g}", *(f"{one.n_flagged:,}" for one in same)])
        for name in ("precision", "recall") if labelled else ():
            rows.append([f"  {name}", *(_number(getattr(one.flags, name)) for one in same)])
    if not labelled:
        rows += [
            [f"error quantile {name[1:]}", *(f"{one.error_quantiles[name]:.4g}" for one in found)]
            for name in first.error_quantiles
        ]
        rows.append(["top features of flagged rows", *(_top_text(one.top_features) for one in found)])
    return rows


Text = Callable[[Figures], str]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ranked(name: str) -> Text:
    return lambda found: _number(getattr(found.ranking, name))


def _flagged(name: str) -> Text:
    return lambda found: _number(getattr(found.chosen.flags, name))


def _counted(name: str) -> Text:
    return lambda found: f"{getattr(found.chosen.flags, name):,}"


def _of_normal(name: str) -> Text:
    return lambda found: _number(getattr(found.normal, name))


_LABELLED: tuple[tuple[str, Text], ...] = (
    ("AUROC", _ranked("auroc")),
    ("average precision", _ranked("average_precision")),
    ("prevalence", _ranked("prevalence")),
    ("precision at 100", _ranked("precision_at_100")),
    ("best F1", _ranked("best_f1")),
    ("  its precision", _ranked("best_f1_precision")),
    ("  its recall", _ranked("best_f1_recall")),
    ("recall at 1 % false positives", _ranked("recall_at_1pct_fpr")),
    ("at the recipe's threshold of", lambda found: f"{found.chosen.threshold:.4g}"),
    ("  anomalies flagged", _counted("true_positives")),
    ("  anomalies missed", _counted("false_negatives")),
    ("  normal rows flagged", _counted("false_positives")),
    ("  normal rows passed", _counted("true_negatives")),
    ("  accuracy", _flagged("accuracy")),
    ("  precision", _flagged("precision")),
    ("  recall", _flagged("recall")),
    ("  F1", _flagged("f1")),
    ("  precision of the normal class", _of_normal("precision")),
    ("  recall of the normal class", _of_normal("recall")),
    ("  F1 of the normal class", _of_normal("f1")),
)
_ALWAYS: tuple[tuple[str, Text], ...] = (
    ("flag rate", lambda found: _number(found.flag_rate)),
    ("loss, validation loss", lambda found: f"{found.loss:.4g}, {found.val_loss:.4g}"),
    ("fit", lambda found: f"{seconds_text(found.fit_seconds)}, {found.epochs} epochs"),
    ("scoring of the test rows", lambda found: seconds_text(found.score_seconds)),
)


def _top_text(top: Sequence[TopFeature]) -> str:
    return ", ".join(f"{entry['feature']} {entry['contribution']:.3g}" for entry in top) or "none is flagged"
