"""Making an index on the user's table while it is written."""

from __future__ import annotations

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.errors import SourceError, first_line
from pgoutlier.db.sql.identifiers import Relation, identifier
from pgoutlier.db.sql.statements import as_text, compose, run


def make(engine: Engine, relation: Relation, statement: str) -> None:
    """Run a CREATE INDEX on the relation. Raises SourceError if PostgreSQL refuses, with nothing of it left behind."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = _unfinished(connection, relation)
        try:
            run(connection, sql.SQL(statement.replace("%", "%%")))
        except (psycopg.Error, DBAPIError) as error:
            for schema, name in _unfinished(connection, relation) - before:
                run(connection, compose("DROP INDEX CONCURRENTLY IF EXISTS {i}", i=identifier(schema, name)))
            raise SourceError(
                f"PostgreSQL did not make the index ({first_line(error)}); an owner of {relation} can: {statement}"
            ) from error


def _unfinished(connection: Connection, relation: Relation) -> set[tuple[str, str]]:
    """What a CREATE INDEX CONCURRENTLY that failed leaves: schema and name of each index that is not valid."""
    found = run(
        connection,
        "SELECT n.nspname, x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        " JOIN pg_namespace n ON n.oid = x.relnamespace WHERE i.indrelid = to_regclass(%s) AND NOT i.indisvalid",
        (as_text(relation.sql()),),
    )
    return set(found.fetchall())
