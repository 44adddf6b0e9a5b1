"""Who owns what is in our schema: what is another's may be code of another's, and would run with the rights of whoever
upgrades, attaches or writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from pgoutlier.db.sql.identifiers import SCHEMA, display
from pgoutlier.db.sql.statements import one, records

# Kinds of the objects that are made for each source, which db.sql.identifiers.ours names.
_OF_SOURCES = (
    "queue",
    "scores",
    "shadow_scores",
    "score_history",
    "scored",
    "flagged",
    "quality",
    "rows",
    "views",
    "compared",
    "comparison",
    "enqueue_insert",
    "enqueue_update",
    "keep_history",
    "make_scores",
    "drop_scores",
    "notice_insert",
    "notice_update",
    "write_columns",
    "write_back",
)
_OF_A_SOURCE = re.compile(f"({'|'.join(_OF_SOURCES)})_.+")
_PLUGIN_WIDE = {"flagged_notices"}


@dataclass(frozen=True)
class Foreign:
    """The schema, or something in it, that is another's. kind: as ALTER names it."""

    kind: str
    name: str
    owner: str

    @property
    def object(self) -> str:
        return display(self.name) if self.kind == "schema" else f"{SCHEMA}.{display(self.name)}"

    def __str__(self) -> str:
        return f"{self.kind} {self.object} belongs to {display(self.owner)}"


def plugin_wide(connection: Connection, role: str | None = None) -> list[Foreign]:
    """The schema, and what is in it that is of no source, where the role does not trust the owner."""
    return [
        found
        for found in _foreign(connection, role, ())
        if found.kind == "schema" or found.name in _PLUGIN_WIDE or not _OF_A_SOURCE.fullmatch(found.name)
    ]


def of_source(connection: Connection, source_name: str, role: str | None = None) -> list[Foreign]:
    """What has the name of an object of this source, where the role does not trust the owner.

    The owner of the schema is trusted here, and with a source that is attached whoever made its table of scores.
    """
    names = {f"{kind}_{source_name}" for kind in _OF_SOURCES}
    attached = one(connection, "SELECT EXISTS (SELECT FROM outlier.sources WHERE name = %s)", (source_name,))
    attacher = one(
        connection,
        "SELECT pg_get_userbyid(relowner)::text FROM pg_class"
        " WHERE relnamespace = 'outlier'::regnamespace AND relname = %s",
        (f"scores_{source_name}",),
    )
    trusted = [schema_owner(connection), *([attacher] if attached and attacher else [])]
    # A partition has the name of its table before a dollar sign.
    return [f for f in _foreign(connection, role, trusted) if f.name.partition("$")[0] in names]


def schema_owner(connection: Connection) -> str:
    return str(
        one(
            connection,
            "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = %s",
            (SCHEMA,),
        )
    )


def _foreign(connection: Connection, role: str | None, also: Sequence[str]) -> list[Foreign]:
    """All that is another's, by name. A role trusts itself, superusers, and the roles that it was made a member of:
    a superuser is a member of each, and is not meant by that."""
    return records(
        connection,
        Foreign,
        """
        WITH RECURSIVE trusted (oid) AS (
            SELECT oid FROM pg_roles WHERE rolname = coalesce(%(role)s::text, current_user) OR rolname = ANY (%(also)s)
            UNION SELECT m.roleid FROM pg_auth_members m JOIN trusted t ON t.oid = m.member
        ), found (kind, name, owner) AS (
            SELECT 'schema', nspname::text, nspowner FROM pg_namespace WHERE nspname = 'outlier'
            UNION ALL
            SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                   WHEN 'f' THEN 'foreign table' ELSE 'table' END, relname::text, relowner FROM pg_class
            WHERE relnamespace = to_regnamespace('outlier') AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            UNION ALL
            SELECT 'function', proname::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace('outlier')
        )
        SELECT f.kind, f.name, pg_get_userbyid(f.owner)::text AS owner FROM found f
        WHERE f.owner NOT IN (SELECT oid FROM trusted) AND f.owner NOT IN (SELECT oid FROM pg_roles WHERE rolsuper)
        ORDER BY f.kind = 'schema' DESC, f.name
        """,
        {"role": role, "also": list(also)},
    )
