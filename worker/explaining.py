"""What to tell a user of an error."""

from __future__ import annotations

import psycopg
from kombu.exceptions import OperationalError as BrokerUnavailable
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.embedded import EmbeddedServerError
from pgoutlier.db.engine import sqlalchemy_url
from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.db.roles import lacking
from pgoutlier.db.settings import load_settings
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.sql.statements import lost_connection, sqlstate
from pgoutlier.worker.runtime import server_urls


def explained(error: Exception) -> tuple[str | None, int]:
    """A sentence and the exit code of the command; None for the sentence if it is a fault of the program."""
    if isinstance(error, PgoutlierError | EmbeddedServerError):
        return str(error), getattr(error, "exit_code", 1)
    if isinstance(error, BrokerUnavailable):
        return f"The broker cannot be reached ({error}); check PGOUTLIER_BROKER_URL.", 1
    if not isinstance(error, DBAPIError | psycopg.Error):
        return None, 1
    if lost_connection(error):
        return f"PostgreSQL cannot be reached: {first_line(error)}. Check PGOUTLIER_DATABASE_URL.", 1
    if sqlstate(error) is None:
        return f"A value cannot be sent to PostgreSQL, or read from it: {first_line(error)}", 1
    found = lacking.sentence(error, _role())
    if found is None:
        return f"PostgreSQL refused: {first_line(error)}", 1
    return f"PostgreSQL refused: {found[0]}; what gives this right: {found[1]}", 1


def _role() -> str:
    """Who asked, as one types it."""
    name = sqlalchemy_url(server_urls(load_settings())[0]).username
    return display(name) if name else "ROLE"
