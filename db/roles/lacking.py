"""What to say of a right that PostgreSQL found lacking: which command gives it."""

from __future__ import annotations

import re

from pgoutlier.db.ddl import challenger_objects, source_views
from pgoutlier.db.errors import first_line
from pgoutlier.db.roles import grants
from pgoutlier.db.sql.identifiers import SCHEMA, display
from pgoutlier.db.sql.statements import sqlstate

_INSUFFICIENT_PRIVILEGE = "42501"
# Of a schema, a relation, a sequence or a function; the server says no more of it than its name.
_DENIED = re.compile(r"permission denied for \w+(?: \w+)? (?P<name>\S+)$")
_FOR_ANALYSTS = {"verdicts", "verdict_log", "current_verdicts", "flagged_notices"}
_VIEWS = tuple(f"{kind}_" for kind in (*source_views.READ, *challenger_objects.VIEWS))
_OF_SOURCES = tuple(f"{kind}_" for kind in grants.TABLES_OF_SOURCE)


def sentence(error: Exception, role: str) -> tuple[str, str] | None:
    """(what is lacking, what gives it), for a role that is named as one types it; None for an error of another kind."""
    said = first_line(error)
    found = _DENIED.search(said)
    if sqlstate(error) != _INSUFFICIENT_PRIVILEGE or found is None:
        return None
    grant = f"pgoutlier db grant {role}"
    return said, _mend(found["name"], grant)


def _mend(name: str, grant: str) -> str:
    to_work = f"{grant} --as worker"
    if name == SCHEMA:
        return f"{grant} (with --as monitor, operator or worker, for what these do)"
    if name in _FOR_ANALYSTS or name.startswith(_VIEWS):
        return grant
    if name in {"schedules", "schedule_events"}:
        return f"{grant} --as operator"
    if name in grants.FOR_MONITORS or name.startswith("queue_"):
        return f"{grant} --as monitor (to look at it) or --as worker (to work)"
    if name in grants.TABLES or name.startswith(_OF_SOURCES):
        return to_work
    return f"{grant} (for an analyst) or --as worker, by a role that may give rights on {display(name)}"
