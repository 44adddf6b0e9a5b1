"""The command line: `pgoutlier`. Bad input ends with one sentence and exit code 2, a failure with 1."""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from typing import Annotated

import psycopg
import typer
from kombu.exceptions import OperationalError as BrokerUnavailable
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.embedded import EmbeddedServerError
from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.worker.cli import (
    challenger,
    demo,
    doctor,
    drift,
    evaluate,
    history,
    jobs,
    models,
    report,
    run,
    schedule,
    sources,
    status,
    threshold,
    verdicts,
    versions,
    webhook,
)
from pgoutlier.worker.console import errors

app = typer.Typer(
    name="pgoutlier",
    help="Anomaly scoring inside PostgreSQL: every new row of a table gets a reconstruction error and a flag,"
    " exactly once.",
    epilog="Settings: PGOUTLIER_DATABASE_URL, PGOUTLIER_BROKER_URL and more, see docs/settings.md."
    " Without them an embedded PostgreSQL and Valkey are used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_START, _MODELS, _LOOK, _RUN = "Start", "Models", "Look", "Run"
app.command(rich_help_panel=_START)(demo.demo)
app.command(rich_help_panel=_START)(sources.attach)
app.command(rich_help_panel=_START)(sources.detach)
app.command(rich_help_panel=_START)(sources.sources)
app.command(rich_help_panel=_MODELS)(models.train)
app.command(rich_help_panel=_MODELS)(evaluate.evaluate)
app.add_typer(models.models, name="models", rich_help_panel=_MODELS)
models.models.command("challenge")(challenger.challenge)
models.models.command("compare")(challenger.compare)
models.models.command("history")(versions.history)
models.models.command("diff")(versions.diff)
models.models.command("tag")(versions.tag)
models.models.command("untag")(versions.untag)
models.models.command("prune")(versions.prune)
models.models.command("export")(versions.export)
models.models.command("import")(versions.import_)
app.command(rich_help_panel=_LOOK)(status.status)
app.command(rich_help_panel=_LOOK)(status.flagged)
app.command(rich_help_panel=_LOOK)(verdicts.label)
app.command(rich_help_panel=_LOOK)(verdicts.verdicts)
app.command(rich_help_panel=_LOOK)(threshold.threshold)
app.command(rich_help_panel=_LOOK)(report.report)
app.command(rich_help_panel=_LOOK)(drift.drift)
app.add_typer(sources.quarantine, name="quarantine", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(doctor.doctor)
app.command(
    rich_help_panel=_LOOK, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)(run.psql)
app.command(rich_help_panel=_RUN)(run.up)
app.command(rich_help_panel=_RUN)(run.listener)
app.command(rich_help_panel=_RUN)(sources.sweep)
app.command(rich_help_panel=_RUN)(jobs.backfill)
app.command(rich_help_panel=_RUN)(jobs.rescore)
app.command(rich_help_panel=_RUN)(jobs.reflag)
app.add_typer(jobs.jobs, name="jobs", rich_help_panel=_RUN)
app.add_typer(history.history, name="history", rich_help_panel=_LOOK)
app.add_typer(schedule.schedule, name="schedule", rich_help_panel=_RUN)
app.add_typer(webhook.webhook, name="webhook", rich_help_panel=_RUN)
app.add_typer(run.servers, name="servers", rich_help_panel=_RUN)
app.add_typer(run.database, name="db", rich_help_panel=_RUN)


def _flowing(group: typer.Typer) -> None:
    """Let each paragraph of a help text be broken where the terminal ends, and not where the source does as well."""
    for command in group.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for child in group.registered_groups:
        if child.typer_instance is not None:
            _flowing(child.typer_instance)


_flowing(app)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        sys.stdout.write(f"pgoutlier {version('pgoutlier')}\n")
        raise typer.Exit


def main() -> None:
    """Run a command and exit with its code; what a user can mend is one sentence, never a traceback."""
    try:
        app()
    except (PgoutlierError, EmbeddedServerError) as error:
        _fail(str(error), getattr(error, "exit_code", 1))
    except BrokerUnavailable as error:
        _fail(f"The broker cannot be reached ({error}); check PGOUTLIER_BROKER_URL.", 1)
    except (DBAPIError, psycopg.Error) as error:
        _fail(_database_sentence(error), 1)


def _database_sentence(error: DBAPIError | psycopg.Error) -> str:
    original = getattr(error, "orig", None) or error
    if getattr(original, "sqlstate", None) is None:
        return f"PostgreSQL cannot be reached: {first_line(error)}. Check PGOUTLIER_DATABASE_URL."
    return f"PostgreSQL refused: {first_line(error)}"


def _fail(sentence: str, exit_code: int) -> None:
    errors.print(f"pgoutlier: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(exit_code)
