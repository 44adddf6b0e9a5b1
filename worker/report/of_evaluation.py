"""The report of a recipe measured on a file."""

from __future__ import annotations

from pgoutlier.worker.evaluation.figures import describe_parts, describe_table
from pgoutlier.worker.evaluation.run import Evaluation
from pgoutlier.worker.report.build import notes_of_few, report_data_of
from pgoutlier.worker.report.page import page


def evaluation_page(evaluation: Evaluation) -> str:
    """The page of the test rows, with drift from the training part to them."""
    table, times = evaluation.table, evaluation.test_times
    data = report_data_of(
        evaluation.detector,
        evaluation.history,
        evaluation.test_features,
        title=table.name,
        rows_are="The test part, every row of it",
        labels=evaluation.test_is_anomaly,
        errors=evaluation.test_errors,
        contributions=evaluation.test_contributions,
        times=None if times is None else (str(times[0]), str(times[-1])),
        training_features=evaluation.training_features,
        kept_epoch=int(evaluation.fit_metrics["kept_epoch"]),
        facts=[
            ("file", describe_table(table)),
            ("parts", describe_parts(evaluation)),
            ("fitted in", f"{evaluation.fit_seconds:.1f} s, seed {evaluation.seed}"),
            *notes_of_few(evaluation.decided_by_few),
        ],
    )
    return page(data)
