"""Which table a source is of, whatever that is called: a regclass, which a dump writes as a name.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Those of the owner are left out: they come with the relation.
_GRANTS_ON = """
CREATE FUNCTION outlier.grants_on(relation regclass) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $outlier$
    SELECT coalesce(array_agg(format('GRANT %s%s ON %s TO %s%s', g.privilege, g.columns, relation,
                                     CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END,
                                     CASE WHEN g.grantable THEN ' WITH GRANT OPTION' ELSE '' END)), '{}')
    FROM (
        SELECT a.grantee, a.privilege_type AS privilege, a.is_grantable AS grantable, '' AS columns, c.relowner
        FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = relation
        UNION ALL
        SELECT a.grantee, a.privilege_type, a.is_grantable, format(' (%I)', t.attname), c.relowner
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
        WHERE c.oid = relation AND NOT t.attisdropped
    ) g LEFT JOIN pg_roles r ON r.oid = g.grantee
    WHERE g.grantee <> g.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL)
$outlier$"""


def upgrade() -> None:
    op.add_column(
        "sources",
        sa.Column(
            "relation",
            postgresql.REGCLASS(),
            nullable=True,
            comment="its table, whatever that is called; null: it was gone",
        ),
        schema="outlier",
    )
    # By the catalogue: to_regclass fails where this role may not look into the schema.
    op.execute(
        "UPDATE outlier.sources s SET relation = c.oid::regclass FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = s.definition ->> 'relation_schema'"
        " AND c.relname = s.definition ->> 'relation_name' AND c.relkind IN ('r', 'p')"
    )
    op.execute(_GRANTS_ON)


def downgrade() -> None:
    op.execute("DROP FUNCTION outlier.grants_on(regclass)")
    op.drop_column("sources", "relation", schema="outlier")
