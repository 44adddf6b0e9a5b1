"""What a check comes to, and what to say where this role may not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.roles import lacking
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.sql.statements import one


@dataclass(frozen=True)
class Finding:
    """One thing looked at. mend is empty if all is well. source: the name of the one that it is about."""

    what: str
    ok: bool
    detail: str
    mend: str = ""
    source: str | None = None


def allowed(connection: Connection, what: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What is found, or which right it takes; the transaction can be gone on with."""
    role = display(str(one(connection, "SELECT session_user::text")))
    try:
        with connection.begin_nested():
            return list(look())
    except (DBAPIError, psycopg.Error) as error:
        said = lacking.sentence(error, role)
        if said is None:
            raise
        return [Finding(what, False, f"{role} may not look at this: {said[0]}", said[1])]
