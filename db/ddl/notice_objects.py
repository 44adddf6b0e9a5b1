"""What writes notices: statement triggers on a source's scores, made only where notices are on.

They hang on the table of scores, so that it does not matter who writes a score, nor how.
"""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import FLAGGED_CHANNEL, identifier, ours
from pgoutlier.db.sql.statements import compose

EVENTS = ("insert", "update")
# Transactions that work over old rows set it to 'on' for themselves, and nobody is told.
QUIET_SETTING = "outlier.quiet"
# An upsert fires both triggers, each with its rows.
_BECAME_FLAGGED: dict[str, LiteralString] = {
    "insert": "FROM new_rows r WHERE r.flagged",
    "update": "FROM new_rows r LEFT JOIN old_rows o ON {same} WHERE r.flagged AND o.flagged IS NOT TRUE",
}


def create(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that turn notices on; run again they mend what somebody dropped or disabled."""
    return [
        statement
        for event in EVENTS
        for statement in (
            _function(source, event),
            compose("REVOKE ALL ON FUNCTION {f}() FROM PUBLIC", f=_name(source.name, event)),
            _trigger(source.name, event),
        )
    ]


def drop(source_name: str) -> list[sql.Composed]:
    """The statements that turn them off. The triggers go with their functions."""
    return [compose("DROP FUNCTION IF EXISTS {f}() CASCADE", f=_name(source_name, event)) for event in EVENTS]


def trigger_name(event: str) -> str:
    return f"outlier_notice_{event}"


def _name(source_name: str, event: str) -> sql.Composable:
    return ours(f"notice_{event}", source_name)


def _function(source: SourceDefinition, event: str) -> sql.Composed:
    """SECURITY DEFINER: whoever writes scores needs no right on the notices."""
    return compose(
        """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off AS $outlier$
DECLARE
    made record;
BEGIN
    IF current_setting({quiet}, true) = 'on' THEN
        RETURN NULL;
    END IF;
    WITH notice AS (
        INSERT INTO outlier.notices (source, key, reconstruction_error, threshold, model_version, scored_at,
                                     top_features, waits)
        SELECT {source}, {key}, r.reconstruction_error,
               (SELECT v.threshold FROM outlier.model_versions v JOIN outlier.sources s ON s.id = v.source_id
                WHERE s.name = {source} AND v.version = r.model_version),
               r.model_version, r.scored_at, r.top_features,
               EXISTS (SELECT FROM outlier.webhooks w WHERE w.source = {source} AND w.url IS NOT NULL)
        {became_flagged}
        RETURNING id
    )
    SELECT count(*) AS n, min(id) AS first_id, max(id) AS last_id INTO made FROM notice;
    IF made.n > 0 THEN
        PERFORM pg_notify({channel}, json_build_object('source', {source}, 'n', made.n, 'first_id', made.first_id,
                                                       'last_id', made.last_id)::text);
    END IF;
    RETURN NULL;
END
$outlier$""",
        function=_name(source.name, event),
        quiet=sql.Literal(QUIET_SETTING),
        source=sql.Literal(source.name),
        key=source.key.text("r"),
        became_flagged=compose(_BECAME_FLAGGED[event], same=source.key.same("o", "r")),
        channel=sql.Literal(FLAGGED_CHANNEL),
    )


def _trigger(source_name: str, event: str) -> sql.Composed:
    return compose(
        "CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {scores}"
        " REFERENCING NEW TABLE AS new_rows{old} FOR EACH STATEMENT EXECUTE FUNCTION {f}()",
        trigger=identifier(trigger_name(event)),
        event=sql.SQL("UPDATE" if event == "update" else "INSERT"),
        scores=ours("scores", source_name),
        old=sql.SQL(" OLD TABLE AS old_rows" if event == "update" else ""),
        f=_name(source_name, event),
    )
