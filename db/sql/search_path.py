"""Where names are looked for: in pg_catalog alone, but for what the user's own views call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from pgoutlier.db.sql.statements import run


@contextmanager
def of_the_role(connection: Connection) -> Iterator[None]:
    """Functions that a view calls find names as in any session of the role, see db.engine.secure.

    So what is sent meanwhile says the schema of whatever PostgreSQL might find a better match for elsewhere.
    """
    run(connection, "SET LOCAL search_path TO DEFAULT")
    yield
    run(connection, "SET LOCAL search_path TO pg_catalog, pg_temp")
