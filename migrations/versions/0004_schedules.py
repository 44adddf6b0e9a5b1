"""Schedules of beat, who changed them and when, and when each beat has ticked last.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The five fields of a crontab, with their numbers in range: what does not look like this is refused.
_ITEM = "([*]|{v}(-{v})?)(/[1-9][0-9]?)?"
_VALUES = (
    "[0-5]?[0-9]",
    "([01]?[0-9]|2[0-3])",
    "(0?[1-9]|[12][0-9]|3[01])",
    "(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    "([0-7]|sun|mon|tue|wed|thu|fri|sat)",
)
_CRONTAB = " ".join(f"{item}(,{item})*" for item in (_ITEM.replace("{v}", value) for value in _VALUES))

# What is not the schedule's definition: what beat notes, and who changed it when.
_BOOKKEEPING = (
    "settings_seconds,next_run_at,last_run_at,last_due_at,last_run_by,n_runs,problem,created_at,created_by,"
    "changed_at,changed_by"
)

_BEFORE = """
CREATE FUNCTION outlier.schedules_before() RETURNS trigger LANGUAGE plpgsql
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

# SECURITY DEFINER: whoever may change a schedule leaves a line here, which it has no right to write or to erase.
_AFTER = """
CREATE FUNCTION outlier.schedules_after() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - '{bookkeeping}'::text[] END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - '{bookkeeping}'::text[] END;
    what text := CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'DELETE' THEN 'deleted' ELSE 'changed' END;
BEGIN
    IF before = after THEN
        -- A run without a tick that was due is somebody's.
        IF NEW.n_runs = OLD.n_runs OR NEW.last_due_at IS NOT NULL THEN
            RETURN NULL;
        END IF;
        what := 'run_now';
    ELSIF before - 'enabled' = after - 'enabled' THEN
        what := CASE WHEN NEW.enabled THEN 'resumed' ELSE 'paused' END;
    END IF;
    INSERT INTO outlier.schedule_events (schedule, action, before, after)
    VALUES (coalesce(after, before) ->> 'name', what, before, after);
    RETURN NULL;
END $$
"""

_TRIGGERS = (
    "CREATE TRIGGER schedules_before BEFORE INSERT OR UPDATE ON outlier.schedules"
    " FOR EACH ROW EXECUTE FUNCTION outlier.schedules_before()",
    "CREATE TRIGGER schedules_after AFTER INSERT OR UPDATE OR DELETE ON outlier.schedules"
    " FOR EACH ROW EXECUTE FUNCTION outlier.schedules_after()",
)


def _time(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.text("now()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable)


def _by(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Text(), server_default=sa.text("session_user"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column(
            "args",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "kwargs",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("every_seconds", sa.Double(), nullable=True, comment="the interval; null: see crontab"),
        sa.Column(
            "crontab",
            sa.Text(),
            nullable=True,
            comment="minute, hour, day of month, month, day of week; in time_zone",
        ),
        sa.Column("time_zone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column(
            "settings_seconds",
            sa.Double(),
            nullable=True,
            comment="of a built-in schedule: the interval by the settings, which it follows while it equals this",
        ),
        sa.Column(
            "next_run_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="null: beat works it out; earlier than now: it is sent at once",
        ),
        _time("last_run_at", nullable=True),
        sa.Column(
            "last_due_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the tick that the last run was for; null: somebody's run-now",
        ),
        sa.Column(
            "last_run_by", sa.Text(), nullable=True, comment="the beat as host:process id, or the role"
        ),
        sa.Column("n_runs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True, comment="why beat does not send it, if it does not"),
        _time("created_at"),
        _by("created_by"),
        _time("changed_at"),
        _by("changed_by"),
        sa.CheckConstraint("name ~ '^[a-z0-9_][a-z0-9_.-]{0,99}$'", name=op.f("schedules_name_plain_check")),
        sa.CheckConstraint("length(task) BETWEEN 1 AND 200", name=op.f("schedules_task_short_check")),
        sa.CheckConstraint("jsonb_typeof(args) = 'array'", name=op.f("schedules_args_list_check")),
        sa.CheckConstraint("jsonb_typeof(kwargs) = 'object'", name=op.f("schedules_kwargs_object_check")),
        sa.CheckConstraint(
            "num_nonnulls(every_seconds, crontab) = 1", name=op.f("schedules_crontab_or_interval_check")
        ),
        sa.CheckConstraint(
            "every_seconds >= 0.1 AND every_seconds <= 31622400",
            name=op.f("schedules_interval_in_range_check"),
        ),
        sa.CheckConstraint(f"crontab ~* '^{_CRONTAB}$'", name=op.f("schedules_crontab_five_fields_check")),
        sa.CheckConstraint(
            "timezone(time_zone, to_timestamp(0)) IS NOT NULL", name=op.f("schedules_time_zone_known_check")
        ),
        sa.CheckConstraint(
            "next_run_at >= to_timestamp(0) AND next_run_at < to_timestamp(32503680000)",
            name=op.f("schedules_next_run_in_reach_check"),
        ),
        sa.CheckConstraint(
            "last_run_at >= to_timestamp(0) AND last_run_at < to_timestamp(32503680000)"
            " AND coalesce(last_due_at >= to_timestamp(0) AND last_due_at < to_timestamp(32503680000), true)",
            name=op.f("schedules_last_run_in_reach_check"),
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("schedules_pkey")),
        schema="outlier",
    )
    op.create_table(
        "schedule_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        _time("created_at"),
        _by("created_by"),
        sa.CheckConstraint(
            "action in ('created', 'changed', 'paused', 'resumed', 'deleted', 'run_now')",
            name=op.f("schedule_events_action_known_check"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("schedule_events_pkey")),
        schema="outlier",
    )
    op.create_index(
        op.f("schedule_events_schedule_id_idx"),
        "schedule_events",
        ["schedule", "id"],
        unique=False,
        schema="outlier",
    )
    op.create_table(
        "beats",
        sa.Column("name", sa.Text(), nullable=False, comment="host:process id"),
        _time("started_at"),
        sa.Column(
            "ticked_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it last looked at the schedules and could send what was due",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("beats_pkey")),
        schema="outlier",
    )
    for statement in (_BEFORE, _AFTER, *_TRIGGERS):
        op.execute(statement.replace("{bookkeeping}", "{" + _BOOKKEEPING + "}"))
    op.execute("REVOKE ALL ON FUNCTION outlier.schedules_before(), outlier.schedules_after() FROM PUBLIC")


def downgrade() -> None:
    op.drop_table("beats", schema="outlier")
    op.drop_table("schedules", schema="outlier")
    op.drop_index(op.f("schedule_events_schedule_id_idx"), table_name="schedule_events", schema="outlier")
    op.drop_table("schedule_events", schema="outlier")
    op.execute("DROP FUNCTION outlier.schedules_before()")
    op.execute("DROP FUNCTION outlier.schedules_after()")
