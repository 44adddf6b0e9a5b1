"""What an evaluation found: everything --json prints, and the same in words for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pgoutlier import detector
from pgoutlier.detector.metrics import Confusion, Ranking
from pgoutlier.worker.console import seconds_text
from pgoutlier.worker.evaluation.run import Evaluation
from pgoutlier.worker.evaluation.table import Table, describe_left_out

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


def as_json(evaluation: Evaluation, *, at: Sequence[float] = ()) -> dict[str, Any]:
    """Everything measured, as JSON knows it; figures that need a label are None without one."""
    found, flags = evaluation.ranking, evaluation.confusion_at(evaluation.detector.threshold)
    normal = None if flags is None else flags.of_normal
    table, fit_metrics = evaluation.table, evaluation.fit_metrics

    def figure(of: Ranking | Confusion | None, name: str) -> Any:
        return None if of is None else getattr(of, name)

    return {
        "data": table.name,
        "recipe": evaluation.recipe.name,
        "split": evaluation.split.order,
        "test_size": evaluation.split.test_size,
        "split_seed": evaluation.split.seed,
        "seed": evaluation.seed,
        "n_rows": table.n_read,
        **{f"n_{reason}": n for reason, n in table.left_out.items()},
        "n_features": len(table.feature_names),
        "n_train": len(evaluation.training_features),
        "n_train_anomalies": evaluation.n_training_anomalies,
        "n_test": len(evaluation.test_errors),
        "n_anomalies": figure(found, "n_anomalies"),
        "prevalence": figure(found, "prevalence"),
        **{name: figure(found, name) for name in _RANKING_FIGURES},
        "threshold": evaluation.detector.threshold,
        **{name: figure(flags, name) for name in _CONFUSION_FIGURES},
        **{f"normal_{name}": figure(normal, name) for name in ("precision", "recall", "f1")},
        "flag_rate": float(evaluation.flagged.mean()),
        "at": [at_json(evaluation, threshold) for threshold in at],
        "error_quantiles": evaluation.error_quantiles,
        "top_features": evaluation.top_features,
        "epochs": fit_metrics["epochs"],
        "loss": fit_metrics["loss"],
        "val_loss": fit_metrics["val_loss"],
        "fit_seconds": evaluation.fit_seconds,
        "score_seconds": evaluation.score_seconds,
        "history": evaluation.history,
    }


def at_json(evaluation: Evaluation, threshold: float) -> dict[str, Any]:
    """What flagging above this threshold gives on the test rows."""
    flags = evaluation.confusion_at(threshold)
    return {
        "threshold": threshold,
        "n_flagged": int(detector.exceeds(evaluation.test_errors, threshold).sum()),
        **{name: None if flags is None else getattr(flags, name) for name in ("precision", "recall", "f1")},
    }


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


def table_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A name and then one text a recipe in each row, from what `as_json` gives for each."""
    rows = []
    labelled = found[0]["prevalence"] is not None
    for name, text in [*(_LABELLED if labelled else ()), *_ALWAYS]:
        rows.append([name, *(text(one) for one in found)])
    for i, at in enumerate(found[0]["at"]):
        same = [one["at"][i] for one in found]
        rows.append([f"flagged above {at['threshold']:g}", *(_count("n_flagged")(one) for one in same)])
        for name in ("precision", "recall") if labelled else ():
            rows.append([f"  {name}", *(_number(name)(one) for one in same)])
    if not labelled:
        rows += [
            [f"error quantile {name[1:]}", *(f"{one['error_quantiles'][name]:.4g}" for one in found)]
            for name in found[0]["error_quantiles"]
        ]
        rows.append(["top features of flagged rows", *(_top_text(one["top_features"]) for one in found)])
    return rows


def _number(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda found: "-" if found[name] is None else f"{found[name]:.4f}"


def _count(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda found: f"{found[name]:,}"


_LABELLED: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("AUROC", _number("auroc")),
    ("average precision", _number("average_precision")),
    ("prevalence", _number("prevalence")),
    ("precision at 100", _number("precision_at_100")),
    ("best F1", _number("best_f1")),
    ("  its precision", _number("best_f1_precision")),
    ("  its recall", _number("best_f1_recall")),
    ("recall at 1 % false positives", _number("recall_at_1pct_fpr")),
    ("at the recipe's threshold of", lambda found: f"{found['threshold']:.4g}"),
    ("  anomalies flagged", _count("true_positives")),
    ("  anomalies missed", _count("false_negatives")),
    ("  normal rows flagged", _count("false_positives")),
    ("  normal rows passed", _count("true_negatives")),
    ("  accuracy", _number("accuracy")),
    ("  precision", _number("precision")),
    ("  recall", _number("recall")),
    ("  F1", _number("f1")),
    ("  precision of the normal class", _number("normal_precision")),
    ("  recall of the normal class", _number("normal_recall")),
    ("  F1 of the normal class", _number("normal_f1")),
)
_ALWAYS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("flag rate", _number("flag_rate")),
    ("loss, validation loss", lambda found: f"{found['loss']:.4g}, {found['val_loss']:.4g}"),
    ("fit", lambda found: f"{seconds_text(found['fit_seconds'])}, {found['epochs']} epochs"),
    ("scoring of the test rows", lambda found: seconds_text(found["score_seconds"])),
)


def _top_text(top: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['feature']} {entry['contribution']:.3g}" for entry in top) or "none is flagged"
