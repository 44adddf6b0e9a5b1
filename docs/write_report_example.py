"""Writes docs/report-example.html: the report of the default recipe on simulated transactions, which hold no real data.

.venv/bin/python docs/write_report_example.py
"""

from __future__ import annotations

from pathlib import Path

from pgoutlier import detector
from pgoutlier.worker.demo import simulator
from pgoutlier.worker.report.build import report_data_of
from pgoutlier.worker.report.page import page

N_ROWS, SEED, FITTED_SHARE = 100_000, 7, 0.8


def main() -> None:
    """Fit on the normal rows of the earlier part, report on all of the later part."""
    made = simulator.simulate(n_rows=N_ROWS, seed=SEED)
    rows = made.rows[list(simulator.FEATURES)].to_numpy(dtype=float)
    n_fitted = int(N_ROWS * FITTED_SHARE)
    training = rows[:n_fitted][~made.is_fraud[:n_fitted]]
    fitted = detector.fit(detector.recipe_named("default"), training, simulator.FEATURES)
    times = made.rows[simulator.TIME].dt.strftime("%Y-%m-%d %H:%M")
    data = report_data_of(
        fitted.detector,
        fitted.history,
        rows[n_fitted:],
        title="Simulated card transactions",
        rows_are="The latest fifth of the rows, which the detector was not fitted on",
        labels=made.is_fraud[n_fitted:],
        times=(times.iloc[n_fitted], times.iloc[-1]),
        training_features=training,
        kept_epoch=int(fitted.metrics["kept_epoch"]),
        facts=[
            ("rows", f"{N_ROWS:,} of the simulator, seed {SEED}"),
            ("training rows", f"{len(training):,}"),
            ("trained in", f"{fitted.metrics['seconds']:.1f} s"),
        ],
    )
    Path(__file__).with_name("report-example.html").write_text(page(data), encoding="utf-8")


if __name__ == "__main__":
    main()
