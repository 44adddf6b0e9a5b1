"""Reading PostgreSQL's catalog: what a relation is, its columns and keys, and what we may do with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source.definition import WRITTEN_COLUMNS, WRITTEN_MARK
from pgoutlier.db.sql import search_path
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, identifier
from pgoutlier.db.sql.statements import as_text, compose, one, run, run_dicts

_NUMBERS = {"smallint", "integer", "bigint", "numeric", "real"}
_WITHOUT_ORDER = {
    "json",
    "xml",
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
    "jsonb",
    "bytea",
}
_KEY_TYPES = {
    "smallint": "smallint",
    "integer": "integer",
    "bigint": "bigint",
    "uuid": "uuid",
    "text": "text",
    "character varying": "text",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
}


@dataclass(frozen=True)
class ColumnInfo:
    """A column and its type as format_type prints it without a modifier, domains resolved to their base.

    is_written: pgoutlier made it, and writes it (db.scoring.write_back). loose_collation: of a text, where that
    takes texts that differ for equal.
    """

    name: str
    type_name: str
    not_null: bool
    is_virtual: bool = False
    is_written: bool = False
    loose_collation: str | None = None

    @property
    def feature_kind(self) -> str | None:
        """The db.source.definition.Feature kind it can be read as, or None if it cannot be a feature."""
        if self.type_name == "double precision":
            return "double"
        if self.type_name in _NUMBERS:
            return "number"
        if self.type_name == "boolean":
            return "boolean"
        if self.type_name in {"real[]", "double precision[]"}:
            return "array"
        if self.type_name == "timestamp with time zone":
            return "timestamptz"
        if self.type_name in {"timestamp without time zone", "date"}:
            return "timestamp"
        return None

    @property
    def has_order_in_time(self) -> bool:
        """Whether its values can say what came before what: times and dates, and numbers, of seconds for instance."""
        return self.feature_kind in {"timestamptz", "timestamp", "double", "number"}

    @property
    def can_tell_entities(self) -> bool:
        """Whether its values can be compared, so that rows with the same one belong together."""
        return (
            not self.type_name.endswith("[]") and self.type_name not in _WITHOUT_ORDER and not self.is_virtual
        )

    @property
    def key_type(self) -> str | None:
        return _KEY_TYPES.get(self.type_name)


@dataclass(frozen=True)
class RelationInfo:
    """kind is pg_class.relkind; unique_columns holds the column lists of all usable unique indexes, primary_key that
    of the primary key, empty where there is none."""

    relation: Relation
    oid: int
    kind: str
    persistence: str
    columns: dict[str, ColumnInfo]
    unique_columns: list[tuple[str, ...]]
    primary_key: tuple[str, ...]

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Names of the columns that are the user's."""
        return tuple(name for name, column in self.columns.items() if not column.is_written)

    def column(self, name: str) -> ColumnInfo:
        """Raises SourceError, naming close matches, if there is no such column."""
        if name in self.columns:
            return self.columns[name]
        alike = [c for c in self.columns if c.lower() == name.lower()]
        hint = (
            f"Did you mean {display(alike[0])}?"
            if alike
            else f"It has: {', '.join(map(display, self.columns))}."
        )
        raise SourceError(f"{self.relation} has no column {display(name)}. {hint}")


def inspect(connection: Connection, relation: Relation) -> RelationInfo:
    """Raises SourceError if there is no such relation or schema."""
    found = run_dicts(
        connection,
        "SELECT c.oid::bigint AS oid, c.relkind::text AS kind, c.relpersistence::text AS persistence"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        (relation.schema, relation.name),
    )
    if not found:
        raise SourceError(f"There is no table {relation}.{_similar_relation(connection, relation)}")
    oid = found[0]["oid"]
    columns = run_dicts(
        connection,
        # A domain is read as the type beneath it, or beneath the one beneath it.
        "WITH RECURSIVE base (domain, oid) AS (SELECT a.atttypid, a.atttypid FROM pg_attribute a"
        " WHERE a.attrelid = %s UNION SELECT b.domain, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid"
        " WHERE t.typtype = 'd')"
        " SELECT a.attname AS name, a.attnotnull AS not_null, a.attgenerated = 'v' AS is_virtual,"
        " coalesce(starts_with(col_description(a.attrelid, a.attnum), %s), false) AS is_written,"
        " format_type(t.oid, NULL) AS type_name,"
        " (SELECT c.collname::text FROM pg_collation c WHERE c.oid = a.attcollation AND NOT c.collisdeterministic)"
        " AS loose_collation"
        " FROM pg_attribute a JOIN base b ON b.domain = a.atttypid JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd'"
        " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (oid, WRITTEN_MARK, oid),
    )
    unique = run_dicts(
        connection,
        "SELECT array_agg(a.attname::text ORDER BY k.position) AS names, i.indisprimary AS is_primary FROM pg_index i"
        " CROSS JOIN LATERAL unnest(i.indkey[0 : i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, position)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
        " WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate"
        " AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid, i.indisprimary",
        (oid,),
    )
    return RelationInfo(
        relation=relation,
        oid=oid,
        kind=found[0]["kind"],
        persistence=found[0]["persistence"],
        columns={
            c["name"]: ColumnInfo(
                c["name"],
                c["type_name"],
                c["not_null"],
                c["is_virtual"],
                is_written=c["is_written"] and c["name"] in WRITTEN_COLUMNS,
                loose_collation=c["loose_collation"],
            )
            for c in columns
        },
        unique_columns=[tuple(u["names"]) for u in unique],
        primary_key=next((tuple(u["names"]) for u in unique if u["is_primary"]), ()),
    )


def is_time(connection: Connection, relation: Relation, column: str | None) -> bool:
    """Whether this is a column of times or dates, so that it tells how long something took; False for None."""
    found = inspect(connection, relation).columns.get(column or "")
    return found is not None and found.feature_kind in {"timestamp", "timestamptz"}


def indexed_columns(connection: Connection, relation: Relation) -> list[list[str]]:
    """The columns of each index of whole rows that finds them in order, without those that are only stored in it."""
    found = run(
        connection,
        "SELECT ARRAY(SELECT coalesce(a.attname::text, '') FROM unnest(i.indkey[0 : i.indnkeyatts - 1])"
        " WITH ORDINALITY k (attnum, place) LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = k.attnum ORDER BY k.place)"
        " FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam"
        " WHERE i.indrelid = to_regclass(%s) AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL",
        (as_text(relation.sql()),),
    )
    return [columns for (columns,) in found]


def index_on(connection: Connection, relation: Relation, column: str) -> str | None:
    """The order, ASC or DESC and where NULLs are, of an index of whole rows that leads with a column; None without."""
    found: str | None = one(
        connection,
        "SELECT CASE WHEN i.indoption[0] & 1 = 1 THEN 'DESC' ELSE 'ASC' END"
        " || CASE WHEN i.indoption[0] & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END"
        " FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indrelid = to_regclass(%s) AND a.attname = %s AND m.amname = 'btree' AND i.indisvalid"
        " AND i.indpred IS NULL ORDER BY i.indnatts, i.indexrelid LIMIT 1",
        (as_text(relation.sql()), column),
    )
    return found


def newest_first(connection: Connection, relation: Relation, column: str, table: str) -> sql.Composed:
    """What to order `table` by for the newest rows first, as an index gives them; asked of rows in which the column is
    not NULL."""
    backwards = index_on(connection, relation, column) in {"DESC NULLS LAST", "ASC NULLS FIRST"}
    return compose(
        "{table}.{column} DESC{nulls}",
        table=identifier(table),
        column=identifier(column),
        nulls=sql.SQL(" NULLS LAST" if backwards else ""),
    )


def collation(connection: Connection, relation: Relation, column: str) -> int | None:
    """The oid of a column's collation, None where it has none."""
    found: int | None = one(
        connection,
        "SELECT nullif(attcollation::bigint, 0) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s",
        (as_text(relation.sql()), column),
    )
    return found


def _similar_relation(connection: Connection, relation: Relation) -> str:
    other = run_dicts(
        connection,
        "SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE lower(c.relname) = lower(%s) AND c.relkind IN ('r', 'p')"
        " ORDER BY (lower(n.nspname) = lower(%s)) DESC LIMIT 1",
        (relation.name, relation.schema),
    )
    return f" Did you mean {Relation(other[0]['schema'], other[0]['name'])}?" if other else ""


def family(connection: Connection, table: RelationInfo) -> tuple[Relation | None, Relation | None]:
    """(a table that it is a partition or child of, a table that is one of its), None where there is none."""
    found = []
    for own, other in (("inhrelid", "inhparent"), ("inhparent", "inhrelid")):
        row = run(
            connection,
            compose(
                "SELECT n.nspname, c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.{other}"
                " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.{own} = %s ORDER BY 1, 2 LIMIT 1",
                own=identifier(own),
                other=identifier(other),
            ),
            (table.oid,),
        ).fetchone()
        found.append(Relation(*row) if row else None)
    return found[0], found[1]


def partition_columns(connection: Connection, relation: Relation) -> dict[str, bool]:
    """The columns that a table is partitioned by, on any level, and whether each is a range; none if it is not."""
    found = run(
        connection,
        "SELECT a.attname::text, bool_and(p.partstrat = 'r') FROM pg_partition_tree(to_regclass(%s)) t"
        " JOIN pg_partitioned_table p ON p.partrelid = t.relid"
        " CROSS JOIN LATERAL unnest(p.partattrs::smallint[]) k (attnum)"
        " JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum = k.attnum GROUP BY 1 ORDER BY min(t.level), 1",
        (as_text(relation.sql()),),
    )
    return dict(found.fetchall())


def role_with_hidden_rows(connection: Connection, table: RelationInfo) -> str | None:
    """The connected role, if row-level security may hide rows of the table from it."""
    if not one(connection, "SELECT row_security_active(%s::oid)", (table.oid,)):
        return None
    return display(str(one(connection, "SELECT current_user::text")))


def has_policies(connection: Connection, relation: Relation) -> bool:
    """Whether row-level security is enabled for a table; False if there is none."""
    return bool(
        one(
            connection,
            "SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = to_regclass(%s)",
            (as_text(relation.sql()),),
        )
    )


def options(connection: Connection, relation: Relation) -> list[str]:
    """The options of a relation, such as security_barrier=true; none if there is no such relation."""
    found: list[str] | None = one(
        connection, "SELECT reloptions FROM pg_class WHERE oid = to_regclass(%s)", (as_text(relation.sql()),)
    )
    return found or []


def exists(connection: Connection, relation: Relation) -> bool:
    """Whether there is a relation of this name."""
    return one(connection, "SELECT to_regclass(%s)", (as_text(relation.sql()),)) is not None


def has_table_privilege(connection: Connection, relation: Relation, privilege: str) -> bool:
    return bool(
        one(
            connection,
            "SELECT has_table_privilege(c.oid, %s) FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
            (privilege, relation.schema, relation.name),
        )
    )


def live_triggers(connection: Connection, relation: Relation) -> set[str]:
    """Names of the relation's triggers that fire for ordinary sessions; none if there is no such relation."""
    return {name for name, state in trigger_states(connection, relation).items() if state in {"O", "A"}}


def trigger_states(connection: Connection, relation: Relation) -> dict[str, str]:
    """pg_trigger.tgenabled of each of the relation's triggers by name; none if there is no such relation."""
    found = run(
        connection,
        "SELECT t.tgname::text, t.tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (relation.schema, relation.name),
    )
    return dict(found.fetchall())


def owner_without_access(connection: Connection, relation: Relation) -> str | None:
    """The owner of the relation, if it may not look into our schema."""
    found: str | None = one(
        connection,
        "SELECT pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND NOT has_schema_privilege(c.relowner, 'outlier', 'USAGE')",
        (relation.schema, relation.name),
    )
    return found


def is_subscribed(connection: Connection, relation: Relation) -> bool:
    """Whether a subscription of this database writes the table, or a partition of it."""
    return bool(
        one(
            connection,
            "SELECT EXISTS (SELECT FROM pg_subscription_rel s JOIN pg_class c ON c.oid = s.srrelid"
            " OR s.srrelid IN (SELECT relid FROM pg_partition_tree(c.oid))"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s)",
            (relation.schema, relation.name),
        )
    )


def readable(connection: Connection, relation: Relation) -> bool:
    """Whether the connected role may read the whole relation."""
    return bool(
        one(connection, "SELECT has_schema_privilege(%s, 'USAGE')", (relation.schema,))
    ) and has_table_privilege(connection, relation, "SELECT")


def view_columns(connection: Connection, relation: Relation) -> list[str] | None:
    """The columns of a view in their order, or None if there is no such view."""
    found: list[str] | None = one(
        connection,
        "SELECT (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid"
        " AND a.attnum > 0) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'v'",
        (relation.schema, relation.name),
    )
    return found


def view_reads(connection: Connection, view: Relation, relation: Relation, column: str) -> bool:
    """Whether a view's own query has this column of the relation in it."""
    return bool(
        one(
            connection,
            "SELECT EXISTS (SELECT FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass"
            " AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass"
            " JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
            " WHERE r.ev_class = to_regclass(%s) AND d.refobjid = to_regclass(%s) AND a.attname = %s)",
            (as_text(view.sql()), as_text(relation.sql()), column),
        )
    )


def view_reads_table(connection: Connection, view: Relation, table_oid: int) -> bool:
    """Whether a view's query has this table in it, or a view that has."""
    return bool(
        one(
            connection,
            "WITH RECURSIVE read (oid) AS (SELECT to_regclass(%s)::oid UNION"
            " SELECT d.refobjid FROM read JOIN pg_rewrite r ON r.ev_class = read.oid"
            " JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid"
            " AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> read.oid)"
            " SELECT EXISTS (SELECT FROM read WHERE oid = %s)",
            (as_text(view.sql()), table_oid),
        )
    )


def missing_grants(connection: Connection, relations: list[tuple[Relation, str]]) -> list[str]:
    """The GRANT statements the connected role would need for relations of the user's: (relation, privilege) pairs."""
    role = display(str(one(connection, "SELECT current_user::text")))
    grants: list[str] = []
    for schema in dict.fromkeys(relation.schema for relation, _ in relations):
        if not one(connection, "SELECT has_schema_privilege(%s, 'USAGE')", (schema,)):
            grants.append(f"GRANT USAGE ON SCHEMA {display(schema)} TO {role};")
    grants += [
        f"GRANT {privilege} ON {relation} TO {role};"
        for relation, privilege in relations
        if not has_table_privilege(connection, relation, privilege)
    ]
    return grants


def missing_grants_to_attach(connection: Connection) -> list[str]:
    """Those that it would need to make objects in our schema."""
    role = display(str(one(connection, "SELECT current_user::text")))
    grants: list[str] = []
    if not one(connection, "SELECT has_schema_privilege('outlier', 'CREATE')"):
        grants.append(f"GRANT USAGE, CREATE ON SCHEMA outlier TO {role};")
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    # The views read the verdicts with the rights of whoever attaches.
    books = [Relation(SCHEMA, name) for name in ("sources", "verdicts")]
    if not all(has_table_privilege(connection, book, right) for book in books for right in rights):
        grants.append(f"GRANT {', '.join(rights)} ON ALL TABLES IN SCHEMA {SCHEMA} TO {role};")
    return grants


def array_lengths(connection: Connection, relation: Relation, column: str) -> set[int]:
    """The lengths of an array column seen in a sample of rows; empty for an empty table."""
    statement = compose(
        "SELECT DISTINCT pg_catalog.cardinality(c) FROM (SELECT {column} AS c FROM {relation}"
        " WHERE {column} IS NOT NULL LIMIT 1000) s",
        column=identifier(column),
        relation=relation.sql(),
    )
    with search_path.of_the_role(connection):
        return {length for (length,) in run(connection, statement)}


def server_facts(connection: Connection) -> dict[str, Any]:
    """server_version_num, server_version, in_recovery, clock, role, database, and since when the server runs."""
    return run_dicts(
        connection,
        "SELECT current_setting('server_version_num')::int AS server_version_num,"
        " current_setting('server_version') AS server_version, pg_is_in_recovery() AS in_recovery,"
        " clock_timestamp() AS clock, current_user::text AS role, current_database()::text AS database,"
        " pg_postmaster_start_time() AS started_at",
    )[0]
