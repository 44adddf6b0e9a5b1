"""up, listener, servers, db, psql: what runs, and where."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.markup import escape
from rich.text import Text

from pgoutlier.db import embedded
from pgoutlier.db.errors import SettingsError
from pgoutlier.db.roles.grants import Kind
from pgoutlier.db.settings import Settings, load_settings
from pgoutlier.worker import schema
from pgoutlier.worker.alone import Place, only_up
from pgoutlier.worker.cli.arguments import AsJson
from pgoutlier.worker.cli.context import data_dir_text, open_runtime, settings_with_servers
from pgoutlier.worker.console import console, errors, print_json
from pgoutlier.worker.listener import listen
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.processes import Supervisor, heeded_once, plans
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import libpq_url, server_urls

_COLOURS = {"score": "cyan", "train": "magenta", "beat": "yellow", "listener": "green"}


def up(
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads of the score worker (PGOUTLIER_SCORE_THREADS).")
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Run score worker, train worker, beat and listener in this terminal; Ctrl-C stops them all.

    On several machines run the same processes by themselves, see docs/operations.md.
    """
    settings = settings_with_servers()
    open_runtime().engine.dispose()
    with only_up(settings, server_urls(settings)) as place:
        for name in place.left:
            console.print(f"Ended the {name} process that an earlier pgoutlier up had left.", highlight=False)
        _run_all(settings, threads=threads, log_level=log_level, place=place)


def _run_all(settings: Settings, *, threads: int | None, log_level: str, place: Place) -> None:
    """Until a signal comes or a process ends. Whatever becomes of the terminal, all processes are stopped."""
    supervisor = Supervisor(
        plans(score_threads=threads or settings.score_threads, log_level=log_level.upper()),
        on_line=_print_line,
        environment={"PGOUTLIER_LOG_FORMAT": "console"} if settings.log_format == "auto" else {},
    )
    stop = threading.Event()
    end = heeded_once(lambda *_: stop.set())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    console.print(
        "Starting score worker, train worker, beat and listener. Ctrl-C stops them.", highlight=False
    )
    try:
        supervisor.start()
        place.note(supervisor.pids())
        while not stop.wait(0.5):
            if dead := supervisor.dead():
                names = ", ".join(f"{name} (exit code {code})" for name, code in dead.items())
                console.print(f"[red]Ended by itself: {escape(names)}. Stopping the others.[/red]")
                raise typer.Exit(1)
    finally:
        # The terminal, or the program that the output goes to, may be gone.
        with suppress(OSError):
            console.print("Stopping ...")
        supervisor.stop()
        with suppress(OSError):
            console.print("All processes have stopped.")


def _print_line(name: str, line: str) -> None:
    prefix = Text(f"{name:>8} | ", style=_COLOURS.get(name, "white"))
    console.print(prefix.append(Text.from_ansi(line)), soft_wrap=True, highlight=False)


def listener() -> None:
    """Hear NOTIFY from Postgres and wake the score workers. Several may run at once."""
    settings = settings_with_servers()
    configure_logs(settings.log_format)
    conninfo = libpq_url(settings).render_as_string(hide_password=False)
    from pgoutlier.worker.app import ring
    from pgoutlier.worker.tasks import ask_for_delivery, ask_for_drain, deliver_all, drain_all

    def catch_up() -> None:
        ring(drain_all)
        ring(deliver_all)

    stop = threading.Event()
    end = heeded_once(lambda *_: stop.set())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    listen(
        conninfo,
        ask_for_drain,
        stop,
        ring_flagged=ask_for_delivery,
        on_ready=catch_up,
    )


servers = typer.Typer(no_args_is_help=True, help="The embedded PostgreSQL and Valkey.")


@servers.command("start")
def servers_start(as_json: AsJson = False) -> None:
    """Start them, if they are not running, and say where they are."""
    settings = load_settings()
    found = embedded.ensure_running(settings.data_dir)
    _print_servers(found, as_json=as_json)


@servers.command("status")
def servers_status(as_json: AsJson = False) -> None:
    """Say where they are, without starting them."""
    _print_servers(embedded.running(load_settings().data_dir), as_json=as_json)


def _print_servers(found: embedded.Servers | None, *, as_json: bool) -> None:
    settings = load_settings()
    if as_json:
        urls = {"database_url": found.database_url, "broker_url": found.broker_url} if found else {}
        print_json({"running": found is not None, "data_dir": str(settings.data_dir), **urls})
    elif found is None:
        console.print(f"Not running (data in {data_dir_text(settings.data_dir)}).", highlight=False)
    else:
        console.print(f"PostgreSQL  {found.database_url}", highlight=False, soft_wrap=True)
        console.print(f"Valkey      {found.broker_url}", highlight=False, soft_wrap=True)
        console.print(f"data        {data_dir_text(settings.data_dir)}", highlight=False, soft_wrap=True)


@servers.command("stop")
def servers_stop() -> None:
    """Stop them; the data stays."""
    stopped = embedded.stop(load_settings().data_dir)
    console.print("Stopped." if stopped else "They were not running.")


@servers.command("purge")
def servers_purge(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Stop them and delete their data."""
    folder = load_settings().data_dir
    if not yes:
        typer.confirm(f"Delete {data_dir_text(folder)} and all that is in it?", abort=True)
    embedded.purge(folder)
    console.print(f"Deleted {data_dir_text(folder)}.", highlight=False)


database = typer.Typer(no_args_is_help=True, help="The schema `outlier` in your database.")


@database.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to this program's revision. Safe to run again, and twice at once."""
    runtime = open_runtime(migrated=False)
    console.print(f"Schema outlier is at revision {schema.upgrade(runtime)}.", highlight=False)


@database.command("current")
def db_current(as_json: AsJson = False) -> None:
    """The schema's revision, and the one this program needs."""
    found = schema.revision(open_runtime(migrated=False))
    if as_json:
        print_json(asdict(found))
    else:
        console.print(
            f"revision {found.revision or 'none'}, this program needs {found.head}", highlight=False
        )


@database.command("grant")
def db_grant(
    role: Annotated[str, typer.Argument(help="The role; it must exist, but for --dry-run.")],
    to: Annotated[
        str,
        typer.Option(
            "--as",
            help="analyst: may read flagged rows. worker: may score and train. operator: may change schedules."
            " monitor: may read status, and nothing of the rows.",
        ),
    ] = "analyst",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
) -> None:
    """Give a role just what an analyst, a worker process, who looks after the schedules or a monitor needs.

    What PostgreSQL refuses is said, and the rest is given; exit 1 then.
    """
    if to not in get_args(Kind):
        raise SettingsError(
            f"--as {to!r} is not a kind of role; write --as analyst, worker, operator or monitor."
        )
    kind = cast(Kind, to)
    runtime = open_runtime()
    if dry_run:
        console.file.write(granting.script(runtime, role, kind))
        return
    refused = granting.grant(runtime, role, kind)
    for what in refused:
        errors.print(
            f"Not granted ({what.reason}): {what.statement};", highlight=False, markup=False, soft_wrap=True
        )
    if refused:
        errors.print(
            f"{role} has all else that a pgoutlier {to} needs. Let the owners of the tables run these statements, or"
            " bring back what is gone, and run this again.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)
    console.print(f"{role} may now do what a pgoutlier {to} does.", highlight=False, markup=False)
    if kind == "analyst":
        console.print(
            "That takes reading the columns of your tables that the views show; policies of row-level security hold.",
            highlight=False,
            soft_wrap=True,
        )


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Passed on to psql, such as -c 'SELECT ...'.")
    ] = None,
) -> None:
    """Open psql on the database, with the embedded server's own psql."""
    url = libpq_url(settings_with_servers())
    # An image for external servers leaves the embedded ones out; any psql will do there.
    found = shutil.which("psql") if load_settings().database_url is not None else None
    binary = Path(found) if found else embedded.postgres_binary("psql")
    # The password, if there is one, goes by the environment: arguments can be read by every user of the machine.
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    target = url.set(password=None).render_as_string(hide_password=False)
    os.execve(binary, [str(binary), "-d", target, *(arguments or [])], environment)  # noqa: S606
