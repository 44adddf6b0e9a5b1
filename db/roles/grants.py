"""Rights on our objects, and on what of the user's they need, for the kinds of roles there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from psycopg import ProgrammingError, sql
from psycopg.errors import Diagnostic
from sqlalchemy import Connection

from pgoutlier.db import tables
from pgoutlier.db.ddl import challenger_objects, partition_objects, source_views, written_columns
from pgoutlier.db.engine import driver_connection
from pgoutlier.db.errors import SourceError, first_line
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, one, run

# An analyst reads the views, a worker scores and trains, an operator looks at schedules and changes them, a monitor
# reads how things are, and nothing of the rows.
Kind = Literal["analyst", "worker", "operator", "monitor"]
TABLES_OF_SOURCE = ("queue", "scores", "shadow_scores", "score_history")
# What a monitor sees of our tables: these, but for these columns. Keys are values of the rows, and so are the ends of
# ranges; arguments of tasks may hold a secret.
_NOT_FOR_MONITORS: dict[str, tuple[str, ...]] = {
    "sources": (),
    "model_versions": ("artifact", "signature", "training_from", "training_to", "drift_reference"),
    "model_aliases": (),
    "model_tags": (),
    "training_runs": ("window_from", "window_to", "data_fingerprint"),
    "jobs": (),
    "job_ranges": ("first_key", "last_key"),
    "drift_reports": (),
    "quarantine": ("key", "detail"),
    "schedules": ("args", "kwargs"),
    "beats": (),
    "listeners": (),
    "notices": ("key", "reconstruction_error", "threshold", "top_features"),
    "deliveries": ("last_error",),
    "dead_letters": ("last_error",),
}
# Those that a monitor reads the whole of.
FOR_MONITORS = {
    "alembic_version",
    "webhook_states",
    *(name for name, hidden in _NOT_FOR_MONITORS.items() if not hidden),
}
TABLES = {table.name for table in tables.metadata.tables.values()}
_QUEUE_FOR_MONITORS = ("id", "n_keys", "queued_at", "not_before", "attempts", "rescore", "last_error")
# Columns of outlier.sources that no worker changes: outlier.after_migration makes views of them with the rights of
# whoever attached.
_WHAT_A_SOURCE_IS = {"id", "name", "definition", "relation", "migration", "columns"}
_NOT_GRANTED = "01007"  # PostgreSQL's warning that a GRANT did nothing


@dataclass(frozen=True)
class Refused:
    """A statement that could not be run, and PostgreSQL's reason."""

    statement: str
    reason: str


def grants(connection: Connection, role: str, kind: Kind) -> list[sql.Composed]:
    """Statements that give a role just what one of its kind needs; that there is such a role is not looked at."""
    to = identifier(role)
    found = sources.every(connection)
    own = {
        "analyst": _to_analyst,
        "worker": _to_worker,
        "operator": _to_operator,
        "monitor": _to_monitor,
    }[kind](to)
    if kind == "analyst" and role in readers_of_all_verdicts(connection):
        own.append(compose("REVOKE SELECT ON outlier.verdicts FROM {role}", role=to))
    usage = compose("GRANT USAGE ON SCHEMA outlier TO {role}", role=to)
    return [usage, *own, *(s for source in found for s in _of_source(connection, source, to, kind))]


def require_role(connection: Connection, role: str) -> None:
    """Raises SourceError if there is no such role."""
    if not one(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", (role,)):
        raise SourceError(
            f"There is no role {display(role)}; make it first: CREATE ROLE {display(role)} LOGIN;"
        )


def give(connection: Connection, statements: Iterable[sql.Composed]) -> list[Refused]:
    """Run each; what PostgreSQL refuses is left out and returned, and keeps none of the others from being run."""
    refused: list[Refused] = []
    warned: list[str] = []

    def warn(said: Diagnostic) -> None:
        if said.sqlstate == _NOT_GRANTED:
            warned.append(said.message_primary or "")

    driver = driver_connection(connection)
    driver.add_notice_handler(warn)
    try:
        for statement in statements:
            warned.clear()
            try:
                with driver.transaction():
                    run(connection, statement)
            except ProgrammingError as error:
                refused.append(Refused(as_text(statement), first_line(error)))
            else:
                refused += [Refused(as_text(statement), reason) for reason in warned[:1]]
    finally:
        driver.remove_notice_handler(warn)
    return refused


def give_new_tables(connection: Connection, source_name: str) -> None:
    """Give our tables of a source to the roles that have those of all: workers and monitors.

    Of the user's tables nobody is given anything; what PostgreSQL refuses is left to `db grant`.
    """
    for kind in ("worker", "monitor"):
        for role in _roles_that_are(connection, kind):
            give(connection, _ours_of_source(connection, source_name, identifier(role), kind))


def workers_without_table(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Roles of workers, as one types them, that may not read what the features of a source are read from."""
    return [
        display(role)
        for role in _roles_that_are(connection, "worker")
        if not all(
            one(
                connection,
                "SELECT has_schema_privilege(%(role)s::name, %(schema)s, 'USAGE')"
                " AND has_table_privilege(%(role)s::name, %(relation)s, 'SELECT')",
                {"role": role, "schema": r.schema, "relation": as_text(r.sql())},
            )
            for r in (definition.relation, definition.feature_relation)
        )
    ]


def analysts_without_rows(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Roles, as one types them, that may read the view of flagged rows and not what it reads of the user's table."""
    columns = catalog.view_columns(connection, Relation(SCHEMA, f"{source_views.ROWS}_{definition.name}"))
    found = run(
        connection,
        "SELECT r.rolname FROM pg_class v, aclexplode(v.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE v.oid = to_regclass(%(view)s) AND a.privilege_type = 'SELECT' AND EXISTS ("
        " SELECT FROM pg_attribute c WHERE c.attrelid = to_regclass(%(table)s) AND c.attname = ANY (%(columns)s)"
        " AND NOT has_column_privilege(r.oid, c.attrelid, c.attnum, 'SELECT')) ORDER BY 1",
        {
            "view": as_text(ours("flagged", definition.name)),
            "table": as_text(definition.relation.sql()),
            "columns": columns or [],
        },
    )
    return [display(role) for (role,) in found.fetchall()]


def readers_of_all_verdicts(connection: Connection) -> list[str]:
    """Roles with what an earlier version gave analysts: verdicts on all rows, whatever the policies of their tables."""
    found = run(
        connection,
        "SELECT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE c.oid = 'outlier.verdicts'::regclass AND a.privilege_type = 'SELECT' AND r.oid <> c.relowner"
        " AND NOT has_table_privilege(r.oid, c.oid, 'DELETE') ORDER BY 1",
    )
    return [role for (role,) in found.fetchall()]


def _roles_that_are(connection: Connection, kind: Literal["worker", "monitor"]) -> list[str]:
    """Roles with what `db grant` gives one of this kind and no other, as the rights are now.

    Not those that may make tables here: who attaches needs much of it, too, and shall not see what others attach.
    """
    # A worker may write trainings; a monitor may see how far the ranges of jobs are, and not of which keys.
    where = {
        "worker": sql.SQL("SELECT relacl FROM pg_class WHERE oid = 'outlier.training_runs'::regclass"),
        "monitor": sql.SQL(
            "SELECT attacl FROM pg_attribute WHERE attrelid = 'outlier.job_ranges'::regclass"
            " AND attname = 'n_done'"
        ),
    }[kind]
    right = {"worker": "INSERT", "monitor": "SELECT"}[kind]
    found = run(
        connection,
        compose(
            "SELECT DISTINCT r.rolname FROM ({where}) a (acl), aclexplode(a.acl) g"
            " JOIN pg_roles r ON r.oid = g.grantee"
            " WHERE g.privilege_type = %s AND NOT has_schema_privilege(r.oid, 'outlier', 'CREATE') ORDER BY 1",
            where=where,
        ),
        (right,),
    )
    return [role for (role,) in found.fetchall()]


def _to_operator(to: sql.Composable) -> list[sql.Composed]:
    return [
        compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to),
        compose("GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.schedules TO {role}", role=to),
        compose("GRANT SELECT ON outlier.schedule_events, outlier.beats TO {role}", role=to),
    ]


def _to_analyst(to: sql.Composable) -> list[sql.Composed]:
    return [
        # The command line looks at these two before it shows a view.
        compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to),
        # Who gave a verdict and when is left to PostgreSQL, and what was said cannot be unsaid.
        compose("GRANT SELECT ON outlier.verdict_log, outlier.current_verdicts TO {role}", role=to),
        compose(
            "GRANT INSERT (source, key, verdict, note) ON outlier.verdicts, outlier.verdict_log TO {role}",
            role=to,
        ),
        compose("GRANT SELECT ON outlier.flagged_notices TO {role}", role=to),
    ]


def _to_worker(to: sql.Composable) -> list[sql.Composed]:
    ours_for_all = sql.SQL(", ").join(
        identifier(SCHEMA, table.name) for table in tables.metadata.tables.values()
    )
    return [
        compose(
            "GRANT SELECT ON outlier.alembic_version, outlier.webhook_states,"
            " outlier.current_verdicts, outlier.flagged_notices TO {role}",
            role=to,
        ),
        compose("GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}", tables=ours_for_all, role=to),
        compose("GRANT SELECT, INSERT ON outlier.verdict_log TO {role}", role=to),
        compose("REVOKE INSERT, UPDATE ON outlier.sources FROM {role}", role=to),
        compose(
            "GRANT UPDATE ({columns}) ON outlier.sources TO {role}",
            columns=_columns(c.name for c in tables.sources.columns if c.name not in _WHAT_A_SOURCE_IS),
            role=to,
        ),
    ]


def _to_monitor(to: sql.Composable) -> list[sql.Composed]:
    return [
        compose("GRANT SELECT ON outlier.alembic_version, outlier.webhook_states TO {role}", role=to),
        *(
            compose(
                "GRANT SELECT ({columns}) ON {table} TO {role}",
                columns=_columns(
                    c.name for c in tables.metadata.tables[f"{SCHEMA}.{name}"].columns if c.name not in hidden
                ),
                table=identifier(SCHEMA, name),
                role=to,
            )
            for name, hidden in _NOT_FOR_MONITORS.items()
        ),
    ]


def _of_source(connection: Connection, source: Source, to: sql.Composable, kind: Kind) -> list[sql.Composed]:
    """Those that a source adds, also on the user's tables."""
    definition = source.definition
    ours_of_it = _ours_of_source(connection, source.name, to, kind)
    if kind == "analyst":
        # What the views read with the rights of whoever asks; those of an earlier version read nothing so.
        columns = catalog.view_columns(connection, Relation(SCHEMA, f"{source_views.ROWS}_{source.name}"))
        return [*ours_of_it, *(_readable(definition.relation, to, columns) if columns else [])]
    if kind == "worker":
        relations = dict.fromkeys((definition.relation, definition.feature_relation))
        written = [written_columns.grant(definition.relation, to)] if definition.write_columns else []
        return [*ours_of_it, *(s for r in relations for s in _readable(r, to)), *written]
    return ours_of_it


def _ours_of_source(
    connection: Connection, source_name: str, to: sql.Composable, kind: Kind
) -> list[sql.Composed]:
    """Those on our own tables and views of a source.

    One that an earlier version attached has not all of them until it is attached again.
    """

    def present(kinds: Iterable[str]) -> sql.Composed | None:
        found = [k for k in kinds if catalog.exists(connection, Relation(SCHEMA, f"{k}_{source_name}"))]
        return sql.SQL(", ").join(ours(k, source_name) for k in found) if found else None

    views = present((*source_views.READ, *challenger_objects.VIEWS))
    read = [compose("GRANT SELECT ON {views} TO {role}", views=views, role=to)] if views else []
    if kind == "analyst":
        return read
    if kind == "monitor":
        return [
            compose(
                "GRANT SELECT ({columns}) ON {queue} TO {role}",
                columns=_columns(_QUEUE_FOR_MONITORS),
                queue=ours("queue", source_name),
                role=to,
            )
        ]
    written = present(TABLES_OF_SOURCE)
    if kind == "operator" or written is None:
        return []
    # Jobs take change ids from it.
    ids = one(
        connection,
        "SELECT pg_get_serial_sequence(%s, 'id')",
        (as_text(ours("queue", source_name)),),
    )
    return [
        *read,
        compose("GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}", tables=written, role=to),
        *([compose("GRANT USAGE ON SEQUENCE {ids} TO {role}", ids=sql.SQL(ids), role=to)] if ids else []),
        *_partitions(connection, source_name, to),
    ]


def _partitions(connection: Connection, source_name: str, to: sql.Composable) -> list[sql.Composed]:
    """What makes and drops partitions of the scores, where these have some."""
    rest = Relation(SCHEMA, score_partitions.name("scores", source_name))
    if not catalog.exists(connection, rest):
        return []
    made = [
        compose("GRANT EXECUTE ON FUNCTION {f}(date) TO {role}", f=ours(kind, source_name), role=to)
        for kind in partition_objects.FUNCTIONS
    ]
    return [*made, compose("GRANT SELECT ON {rest} TO {role}", rest=rest.sql(), role=to)]


def _readable(relation: Relation, to: sql.Composable, columns: Sequence[str] = ()) -> list[sql.Composed]:
    what = compose("SELECT ({columns})", columns=_columns(columns)) if columns else compose("SELECT")
    return [
        compose("GRANT USAGE ON SCHEMA {schema} TO {role}", schema=identifier(relation.schema), role=to),
        compose("GRANT {what} ON {relation} TO {role}", what=what, relation=relation.sql(), role=to),
    ]


def _columns(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(identifier, names))
