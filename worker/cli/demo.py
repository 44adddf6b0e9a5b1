"""demo: see the main job at work in about a minute."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pgoutlier.db.settings import load_settings
from pgoutlier.worker.console import console, errors, print_json
from pgoutlier.worker.logs import configure_logs


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own rows: a CSV, CSV.gz or Parquet file with a header.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The file's column that says fraud, where its name does not tell."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1_000, max=5_000_000, help="How many transactions to simulate.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the simulator.")] = 7,
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="How long live rows come in.")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up for exploring.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
) -> None:
    """Run the main job for real: a table of transactions, a first model, live inserts, flagged rows.

    It runs on embedded servers of its own, which leave nothing behind (unless --keep). Exit code 1 if any row was
    left unscored or scored twice, or a process died.
    """
    # What the demo is made of takes a second to import, which other commands need not wait for.
    from pgoutlier.worker.demo import run, show
    from pgoutlier.worker.demo.dataset import from_file, simulated
    from pgoutlier.worker.training.recipes import chosen_recipe, require_tensorflow

    require_tensorflow(chosen_recipe("default"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    out = errors if as_json else console
    settings = load_settings()
    configure_logs(settings.log_format, level=40)
    started = time.monotonic()
    chosen = simulated(n_rows=rows, seed=seed) if data is None else from_file(data, label=label)
    plan = run.Plan(live_seconds=seconds) if data is None else run.Plan(live_seconds=seconds, live_share=0.3)
    data_dir = settings.data_dir.parent / f"{settings.data_dir.name}-demo"
    finished = False
    try:
        with run.servers_of_its_own(settings, data_dir, keep=lambda: keep and finished) as stage:
            outcome = run.run(out, stage, chosen, plan)
            finished = True
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            errors.print("Stopped; nothing is left running.")
        sys.exit(130)
    show.show_outcome(out, outcome)
    show.show_commands(out, data_dir, run.SOURCE, kept=keep, has_truth=chosen.fraud_kinds is not None)
    out.print(f"Took {time.monotonic() - started:.0f} s.", style="dim", highlight=False)
    if as_json:
        print_json(outcome.as_json())
    if outcome.complaints:
        raise typer.Exit(1)
