"""How commands get at the servers: settings, embedded servers started with a word, the schema checked."""

from __future__ import annotations

from pathlib import Path

from pgoutlier.db import embedded
from pgoutlier.db.errors import SchemaNotReady
from pgoutlier.db.settings import Settings, load_settings
from pgoutlier.worker import schema
from pgoutlier.worker.console import errors
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.runtime import Runtime, make_runtime


def settings_with_servers() -> Settings:
    """The settings, with the embedded servers running if they are needed. Says so when it starts them."""
    settings = load_settings()
    configure_logs(settings.log_format, level=30)
    if not (settings.database_url and settings.broker_url):
        servers = embedded.ensure_running(settings.data_dir)
        if servers.started:
            errors.print(
                f"Started the embedded servers in {settings.data_dir} (stop them: pgoutlier servers stop).",
                style="dim",
                highlight=False,
            )
    return settings


def open_runtime(*, migrated: bool = True) -> Runtime:
    """A runtime for one command. The embedded database is migrated by itself; a database of the user's is not.

    Raises SchemaNotReady, naming the command, if the schema is missing or old.
    """
    settings = settings_with_servers()
    runtime = make_runtime(settings, application_name="pgoutlier")
    if migrated:
        try:
            schema.require_current(runtime)
        except SchemaNotReady:
            if settings.database_url is not None:
                raise
            schema.upgrade(runtime)
    return runtime


def data_dir_text(path: Path) -> str:
    """The path with the home folder as ~."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
