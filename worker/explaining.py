"""What to tell a user of an error."""

from __future__ import annotations

import psycopg
from kombu.exceptions import OperationalError as BrokerUnavailable
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.embedded import EmbeddedServerError
from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.db.sql.statements import lost_connection, sqlstate


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
    return f"PostgreSQL refused: {first_line(error)}", 1
