"""Who did something is said by PostgreSQL, texts that people write have an end, and whether a webhook sends can be read
without its URL.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Tables that say who made a row, and when. Of verdicts a worker may write both: a task gives them in a person's name.
_AUTHORED = (
    "sources",
    "source_events",
    "model_versions",
    "model_tags",
    "alias_events",
    "version_events",
    "training_runs",
    "jobs",
    "job_events",
    "webhooks",
    "schedule_events",
)
# An owner of the table could switch the trigger off, and is left to copy rows from elsewhere.
_STAMP = """
CREATE FUNCTION outlier.stamp_author() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('who made a row of outlier.%I, and when, cannot be changed', TG_TABLE_NAME);
    END IF;
    NEW.created_by := session_user;
    IF TG_TABLE_NAME = 'training_runs' THEN
        NEW.started_at := now();
    ELSE
        NEW.created_at := now();
    END IF;
    RETURN NEW;
END $$
"""
_STAMP_PROMOTION = """
CREATE FUNCTION outlier.stamp_promotion() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        NEW.promotion_set_by := session_user;
        NEW.promotion_set_at := now();
    END IF;
    RETURN NEW;
END $$
"""
_WEBHOOK_STATES = """
CREATE VIEW outlier.webhook_states AS
SELECT source, enabled, problem, url IS NOT NULL AS sends FROM outlier.webhooks
"""
# Who could read how a webhook does goes on reading it.
_READERS_OF_WEBHOOKS = """
SELECT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = 'outlier.webhooks'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> 0
  AND a.grantee <> c.relowner
"""
# What is not the schedule's definition: what beat notes, and who changed it when.
_BOOKKEEPING = (
    "{settings_seconds,next_run_at,last_run_at,last_due_at,last_run_by,n_runs,problem,created_at,created_by,"
    "changed_at,changed_by}"
)
_BEFORE = """
CREATE OR REPLACE FUNCTION outlier.schedules_before() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        IF TG_OP = 'UPDATE' THEN
            NEW.created_by := OLD.created_by;
            NEW.created_at := OLD.created_at;
        ELSE
            NEW.created_by := session_user;
            NEW.created_at := now();
        END IF;
        -- Who may note ticks of a beat may say which beat it was.
        IF NOT has_table_privilege(session_user, 'outlier.beats', 'INSERT') THEN
            IF TG_OP = 'INSERT' THEN
                NEW.last_run_by := NULL;
            ELSIF (NEW.last_run_by, NEW.n_runs) IS DISTINCT FROM (OLD.last_run_by, OLD.n_runs) THEN
                NEW.last_run_by := session_user;
            END IF;
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF to_jsonb(NEW) - '{bookkeeping}'::text[] = to_jsonb(OLD) - '{bookkeeping}'::text[] THEN
            NEW.changed_at := OLD.changed_at;
            NEW.changed_by := OLD.changed_by;
            RETURN NEW;
        END IF;
        -- Beat works out the next run anew, unless whoever changes the schedule says when it is to be.
        IF (NEW.every_seconds, NEW.crontab, NEW.time_zone, NEW.enabled)
               IS DISTINCT FROM (OLD.every_seconds, OLD.crontab, OLD.time_zone, OLD.enabled)
           AND NEW.next_run_at IS NOT DISTINCT FROM OLD.next_run_at THEN
            NEW.next_run_at := NULL;
        END IF;
        NEW.problem := NULL;
    END IF;
    NEW.changed_at := clock_timestamp();
    NEW.changed_by := session_user;
    RETURN NEW;
END $$
"""
_BEFORE_AS_IT_WAS = """
CREATE OR REPLACE FUNCTION outlier.schedules_before() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF to_jsonb(NEW) - '{bookkeeping}'::text[] = to_jsonb(OLD) - '{bookkeeping}'::text[] THEN
            NEW.changed_at := OLD.changed_at;
            NEW.changed_by := OLD.changed_by;
            RETURN NEW;
        END IF;
        -- Beat works out the next run anew, unless whoever changes the schedule says when it is to be.
        IF (NEW.every_seconds, NEW.crontab, NEW.time_zone, NEW.enabled)
               IS DISTINCT FROM (OLD.every_seconds, OLD.crontab, OLD.time_zone, OLD.enabled)
           AND NEW.next_run_at IS NOT DISTINCT FROM OLD.next_run_at THEN
            NEW.next_run_at := NULL;
        END IF;
        NEW.problem := NULL;
    END IF;
    NEW.changed_at := clock_timestamp();
    NEW.changed_by := session_user;
    RETURN NEW;
END $$
"""
# What is longer already stays.
_LIMIT = """
CREATE FUNCTION outlier.limit_text() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n integer := length(to_jsonb(NEW) ->> TG_ARGV[0]);
BEGIN
    IF n > TG_ARGV[1]::integer THEN
        RAISE string_data_right_truncation USING MESSAGE =
            format('%s of outlier.%I has %s characters, and may have %s', TG_ARGV[0], TG_TABLE_NAME, n, TG_ARGV[1]);
    END IF;
    RETURN NEW;
END $$
"""
# (table, column, characters)
_LIMITS = (
    ("verdicts", "note", 4000),
    ("verdicts", "created_by", 200),
    ("alias_events", "reason", 4000),
    ("schedules", "args", 65536),
    ("schedules", "kwargs", 65536),
    ("schedules", "crontab", 1000),
    ("webhooks", "url", 4000),
)


def upgrade() -> None:
    op.execute(_WEBHOOK_STATES)
    readers = op.get_bind().execute(sa.text(_READERS_OF_WEBHOOKS)).scalars().all()
    for role in readers:
        op.execute(f"GRANT SELECT ON outlier.webhook_states TO {role}")
    op.execute(_STAMP)
    op.execute(_STAMP_PROMOTION)
    for table in _AUTHORED:
        time = "started_at" if table == "training_runs" else "created_at"
        op.execute(
            f"CREATE TRIGGER stamp_author BEFORE INSERT OR UPDATE OF created_by, {time} ON outlier.{table}"
            " FOR EACH ROW EXECUTE FUNCTION outlier.stamp_author()"
        )
    op.execute(
        "CREATE TRIGGER stamp_promotion BEFORE UPDATE OF promotion, promotion_set_by, promotion_set_at"
        " ON outlier.sources FOR EACH ROW EXECUTE FUNCTION outlier.stamp_promotion()"
    )
    op.execute("REVOKE ALL ON FUNCTION outlier.stamp_author(), outlier.stamp_promotion() FROM PUBLIC")
    op.execute(_BEFORE.replace("{bookkeeping}", _BOOKKEEPING))
    op.execute(_LIMIT)
    op.execute("REVOKE ALL ON FUNCTION outlier.limit_text() FROM PUBLIC")
    for table, column, n in _LIMITS:
        op.execute(
            f"CREATE TRIGGER limit_{column} BEFORE INSERT OR UPDATE OF {column} ON outlier.{table}"
            f" FOR EACH ROW EXECUTE FUNCTION outlier.limit_text('{column}', '{n}')"
        )


def downgrade() -> None:
    op.execute("DROP FUNCTION outlier.limit_text() CASCADE")
    op.execute(_BEFORE_AS_IT_WAS.replace("{bookkeeping}", _BOOKKEEPING))
    op.execute("DROP FUNCTION outlier.stamp_promotion() CASCADE")
    op.execute("DROP FUNCTION outlier.stamp_author() CASCADE")
    op.execute("DROP VIEW outlier.webhook_states")
