"""Features over the rows before: the columns that tell their entities apart are known to the functions for migrations.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Of each function what there is, and what comes in its place.
_CHANGES = {
    "outlier.renamed(jsonb, regclass, jsonb)": (
        (
            "    IF definition ->> 'feature_view_name' IS NULL THEN\n",
            "    IF definition ->> 'feature_view_name' IS NULL THEN\n"
            "        definition := jsonb_set(definition, '{features}', (\n"
            "            SELECT jsonb_agg(CASE WHEN names ? (f #>> '{past,by}')\n"
            "                             THEN jsonb_set(f, '{past,by}', names -> (f #>> '{past,by}')) ELSE f END\n"
            "                             ORDER BY place)\n"
            "            FROM jsonb_array_elements(definition -> 'features') WITH ORDINALITY e (f, place)));\n",
        ),
    ),
    "outlier.with_names(text, regclass, jsonb, text[])": (
        ("|feature [0-9]+", "|feature [0-9]+|by [0-9]+"),
        (
            "        ELSIF found LIKE '%feature%' THEN\n",
            "        ELSIF found LIKE '\"outlier:by %' THEN\n"
            "            written := quote_ident(\n"
            "                definition -> 'features' -> regexp_substr(found, '[0-9]+')::integer #>> '{past,by}');\n"
            "        ELSIF found LIKE '%feature%' THEN\n",
        ),
    ),
    "outlier.column_numbers(jsonb, regclass)": (
        (
            "        SELECT f ->> 'column' FROM jsonb_array_elements(definition -> 'features') f\n",
            "        SELECT c FROM jsonb_array_elements(definition -> 'features') f,\n"
            "            unnest(ARRAY[f ->> 'column', f #>> '{past,by}']) c\n",
        ),
    ),
}


def upgrade() -> None:
    for function, changes in _CHANGES.items():
        _change(function, changes)


def downgrade() -> None:
    for function, changes in _CHANGES.items():
        _change(function, tuple((after, before) for before, after in changes))


def _change(function: str, changes: tuple[tuple[str, str], ...]) -> None:
    connection = op.get_bind()
    found = connection.exec_driver_sql(
        "SELECT pg_get_functiondef(%s::regprocedure)", (function,)
    ).scalar_one()
    for old, new in changes:
        if old not in found:
            raise AssertionError(f"{function} is not as revision 0020 left it")
        found = found.replace(old, new)
    connection.exec_driver_sql(found.replace("%", "%%"))
