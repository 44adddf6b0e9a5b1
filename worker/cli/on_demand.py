"""The commands by name, and a group that imports the module of a command only when that command is run.

Importing all of them takes longer than most commands run, so what `pgoutlier --help` says of each is written here.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pgoutlier.worker.cli.arguments import CommandOfKeys

_START, _MODELS, _LOOK, _RUN = "Start", "Models", "Look", "Run"
# What stands behind them goes to another program.
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@dataclass(frozen=True)
class Entry:
    """A command or a group of commands. place: module and attribute in worker.cli; help: its first paragraph."""

    name: str
    panel: str
    place: str
    help: str
    context_settings: dict[str, Any] | None = None
    takes_keys: bool = False


ENTRIES = (
    Entry(
        "demo",
        _START,
        "demo.demo",
        "Run the main job for real: a table of transactions, a first model, live inserts, flagged rows.",
    ),
    Entry(
        "attach",
        _START,
        "sources.attach",
        "Watch a table: from now on every new row is queued and scored, and re-scored when a feature changes.",
    ),
    Entry(
        "adopt",
        _START,
        "sources.adopt",
        "Go on with another table of the same name, after a swap by rename say: all of its rows are scored anew.",
    ),
    Entry(
        "detach",
        _START,
        "sources.detach",
        "Stop watching a table: drops its triggers, written columns, queue, scores, views, verdicts, notices, jobs and"
        " model versions.",
    ),
    Entry("sources", _START, "sources.sources", "List the watched tables."),
    Entry("train", _MODELS, "models.train", "Fit a new version on the newest normal rows, with progress."),
    Entry(
        "evaluate",
        _MODELS,
        "evaluate.evaluate",
        "Fit recipes on one part of a file and measure how well they detect on the other. Needs no server.",
    ),
    Entry("models", _MODELS, "all_models.models", "Versions of a source's model, and which one scores."),
    Entry(
        "status",
        _LOOK,
        "status.status",
        "Sources, queues, rates, champions, trainings, quarantine and workers at a glance.",
    ),
    Entry("flagged", _LOOK, "status.flagged", "The last flagged rows, with what made them stand out."),
    Entry(
        "features",
        _LOOK,
        "features.features",
        "The values that the detector gets for these rows now, and the columns that they have in the table.",
        takes_keys=True,
    ),
    Entry(
        "label",
        _LOOK,
        "verdicts.label",
        "Say that rows are fraud or normal; all of it is recorded, or nothing.",
        takes_keys=True,
    ),
    Entry(
        "verdicts",
        _LOOK,
        "verdicts.verdicts",
        "List the verdicts of a source: those that hold now, or their history; with who gave them and when.",
    ),
    Entry(
        "threshold",
        _LOOK,
        "threshold.threshold",
        "The champion's threshold: flags per day, and precision and recall where verdicts or labels are known.",
    ),
    Entry(
        "report",
        _LOOK,
        "report.report",
        "Pictures of a model and of what it scored, as one HTML page that needs no network.",
    ),
    Entry(
        "drift",
        _LOOK,
        "drift.drift",
        "How far the newest rows have moved from those the champion was trained on.",
    ),
    Entry(
        "doctor",
        _LOOK,
        "doctor.doctor",
        "Check servers, versions, schema, privileges, triggers, clocks, models and workers; exit 1 if one is wrong.",
    ),
    Entry(
        "psql",
        _LOOK,
        "run.psql",
        "Open psql on the database, with the embedded server's own psql.",
        _PASSED_ON,
    ),
    Entry("quarantine", _LOOK, "sources.quarantine", "Rows that could not be scored, with the reason."),
    Entry(
        "history",
        _LOOK,
        "history.history",
        "Earlier scores: the one before is kept, in outlier.score_history_SOURCE, whenever another model version"
        " scores a row anew. Off until you ask for it.",
    ),
    Entry(
        "up",
        _RUN,
        "run.up",
        "Run score worker, train worker, beat and listener in this terminal; Ctrl-C stops them all.",
    ),
    Entry(
        "listener",
        _RUN,
        "run.listener",
        "Hear NOTIFY from Postgres and wake the score workers. Several may run at once.",
    ),
    Entry(
        "sweep",
        _RUN,
        "sources.sweep",
        "Queue the rows that got past the triggers (disabled triggers, logical replication, COPY into a partition).",
    ),
    Entry(
        "backfill",
        _RUN,
        "jobs.backfill",
        "Score the rows that have no score, also those that were there before attach.",
    ),
    Entry(
        "rescore",
        _RUN,
        "jobs.rescore",
        "Score again, with one version, every row that another version has scored.",
    ),
    Entry(
        "reflag",
        _RUN,
        "jobs.reflag",
        "Flag stored scores by the champion's threshold, in SQL, with no row scored again.",
    ),
    Entry(
        "jobs",
        _RUN,
        "jobs.jobs",
        "Work on rows that are there already: backfill, rescore, reflag. Score workers share a job by ranges of keys,"
        " new rows go first, and what a killed worker was at is done again.",
    ),
    Entry(
        "schedule",
        _RUN,
        "schedule.schedule",
        "What runs by itself, and when: sweeps, trainings, and whatever you add. A change is in effect within 5"
        " seconds, with no restart. Every change is kept in outlier.schedule_events.",
    ),
    Entry(
        "webhook",
        _RUN,
        "webhook.webhook",
        "Notices of flagged rows: written to outlier.notices with NOTIFY outlier_flagged, and sent to a URL. Off for a"
        " source until you set it. Every change is kept in outlier.source_events.",
    ),
    Entry("servers", _RUN, "run.servers", "The embedded PostgreSQL and Valkey."),
    Entry("db", _RUN, "run.database", "The schema `outlier` in your database."),
)


def load(entries: Iterable[Entry] = ENTRIES) -> TyperGroup:
    """A group of these commands, their modules imported."""
    whole = typer.Typer(add_completion=False)
    whole.callback()(lambda: None)
    for entry in entries:
        module, attribute = entry.place.split(".")
        found = getattr(import_module(f"pgoutlier.worker.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            _flowing(found)
            whole.add_typer(found, name=entry.name, rich_help_panel=entry.panel)
        else:
            whole.command(
                entry.name,
                cls=CommandOfKeys if entry.takes_keys else TyperCommand,
                help=_flowing_text(found),
                rich_help_panel=entry.panel,
                context_settings=entry.context_settings,
            )(found)
    return typer.main.get_group(whole)


def _flowing(group: typer.Typer) -> None:
    for command in group.registered_commands:
        command.help = _flowing_text(command.callback)
    for child in group.registered_groups:
        if child.typer_instance is not None:
            _flowing(child.typer_instance)


def _flowing_text(command: Any) -> str:
    """Its help, each paragraph broken where the terminal ends, and not where the source does as well."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


class OnDemand(TyperGroup):
    """Lists the commands by what is written of them, and imports the one that is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            entry.name: TyperCommand(name=entry.name, help=entry.help, rich_help_panel=entry.panel)
            for entry in ENTRIES
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first word names, imported, and the words behind it."""
        name, _, rest = super().resolve_command(ctx, args)
        # Nothing that is imported becomes garbage, and looking for it takes a tenth of the time that a command does.
        gc.disable()
        command = load([entry for entry in ENTRIES if entry.name == name]).commands.get(name or "")
        gc.freeze()
        gc.enable()
        return name, command, rest
