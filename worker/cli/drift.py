"""drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pgoutlier.db.drift.drift_reports import DriftReport
from pgoutlier.db.errors import ModelError
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, print_json, print_table
from pgoutlier.worker.drift import measuring

_FEATURES_SHOWN = 15


def drift(
    source: SourceName,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure it now, and keep the report, before it is shown.")
    ] = False,
    history: Annotated[
        int | None, typer.Option(min=1, help="One line for each of so many reports, the newest first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far the newest rows have moved from those the champion was trained on.

    Shows the last report; beat has one made every PGOUTLIER_DRIFT_EVERY_SECONDS. The population stability index
    (PSI) is 0 where nothing has moved; from 0.1 on it is usually called moderate, from 0.25 on large. A limit is
    PGOUTLIER_DRIFT_PSI, or more where the rows are so few that chance alone could reach it.
    """
    runtime = open_runtime()
    if measure:
        measuring.measure(runtime, source)
    reports = measuring.reports(runtime, source, limit=history or 1)
    if as_json:
        print_json(reports)
        return
    if not reports:
        raise ModelError(
            f"No drift of {source} was measured yet; measure it now: pgoutlier drift {source} --measure"
        )
    if history is None:
        _print_report(source, reports[0])
    else:
        _print_history(source, reports)


def _print_report(source: str, report: DriftReport) -> None:
    features = report.features
    print_table(
        f"drift of {source} since version {report.version} was trained; {report.n_rows:,} rows,"
        f" measured at {report.measured_at:%Y-%m-%d %H:%M}",
        ["feature", "PSI", "limit", ""],
        [
            *(_line(f.feature, f.psi, f.limit) for f in features[:_FEATURES_SHOWN]),
            _line("reconstruction error", report.error_psi, report.error_limit),
        ],
    )
    if len(features) > _FEATURES_SHOWN:
        _say(
            f"{len(features) - _FEATURES_SHOWN} features with a smaller PSI are not shown; all of them: --json"
        )
    expected = report.expected_flag_rate
    at_first = "" if expected is None else f" (by the first report of this version {expected:.3%})"
    _say(f"Flagged: {report.flag_rate:.3%}{at_first}. In quarantine: {report.quarantine_rate:.3%}.")
    for reason in report.reasons:
        _say(f"Drift: {reason}.")
    if not report.drifted:
        _say("Nothing is beyond its limit.")


def _line(name: str, psi: float, limit: float) -> tuple[str, str, str, str]:
    return name, f"{psi:.3f}", f"{limit:.3f}", "drifted" if psi > limit else ""


def _print_history(source: str, reports: Sequence[DriftReport]) -> None:
    print_table(
        f"drift of {source}, the newest first",
        ["measured at", "version", "rows", "largest PSI", "of", "error PSI", "flagged", "drift"],
        [
            (
                report.measured_at,
                report.version,
                report.n_rows,
                f"{report.features[0].psi:.3f}" if report.features else "-",
                report.features[0].feature if report.features else "-",
                f"{report.error_psi:.3f}",
                f"{report.flag_rate:.3%}",
                "; ".join(report.reasons) or "none",
            )
            for report in reports
        ],
    )


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
