"""The command line: `pgoutlier`. Bad input ends with one sentence and exit code 2, a failure with 1."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from pgoutlier.worker.cli.on_demand import OnDemand

app = typer.Typer(
    name="pgoutlier",
    cls=OnDemand,
    help="Anomaly scoring inside PostgreSQL: every new row of a table gets a reconstruction error and a flag,"
    " exactly once.",
    epilog="Settings: PGOUTLIER_DATABASE_URL, PGOUTLIER_BROKER_URL and more, see docs/settings.md."
    " Without them an embedded PostgreSQL and Valkey are used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        from importlib.metadata import version

        sys.stdout.write(f"pgoutlier {version('pgoutlier')}\n")
        raise typer.Exit


def main() -> None:
    """Run a command and exit with its code; what a user can mend is one sentence, never a traceback."""
    try:
        app()
    except Exception as error:
        # Here, for `pgoutlier --help` needs neither the drivers nor the job queue.
        from pgoutlier.worker.explaining import explained

        sentence, exit_code = explained(error)
        if sentence is None:
            raise
        _fail(sentence, exit_code)


def _fail(sentence: str, exit_code: int) -> NoReturn:
    from pgoutlier.worker.console import errors

    errors.print(f"pgoutlier: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(exit_code)
