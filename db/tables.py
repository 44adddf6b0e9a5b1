"""The plugin-wide tables of schema `outlier`. Alembic makes them; tables made per source are in db.ddl.core_objects."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REGCLASS

from pgoutlier.db.sql.identifiers import SCHEMA

# An object in a column of type jsonb whose names are not known here: a recipe, metrics, a description.
JsonObject = dict[str, Any]


class TopFeature(TypedDict):
    """An entry of a column top_features: the share of a feature in the error of a row, and its value, which scores of
    before 0.2.0 lack and which is None where the row has none."""

    feature: str
    value: NotRequired[float | None]
    contribution: float


metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    },
)

# Characters of a verdict's note, or of the reason for moving an alias: triggers refuse more.
LONGEST_NOTE = 4_000

# None is NULL, and not the null of JSON.
_JSON = JSONB(none_as_null=True)


def _created(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


def _by() -> Column[object]:
    return Column("created_by", Text, nullable=False, server_default=text("session_user"))


sources = Table(
    "sources",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("relation", REGCLASS, comment="its table, whatever that is called; null: it was gone"),
    Column(
        "migration",
        _JSON,
        comment="what outlier.before_migration took away, until it is back: {numbers, grants}",
    ),
    Column(
        "columns", _JSON, comment="numbers of the columns it reads by their names: {table, numbers, digest}"
    ),
    Column("definition", _JSON, nullable=False, comment="db.sources.SourceDefinition"),
    Column("recipe", _JSON, nullable=False, comment="detector.Recipe that new versions are trained with"),
    Column(
        "attached_xid",
        BigInteger,
        comment="rows written by older transactions are not swept up; null: they are",
    ),
    Column(
        "promotion",
        Text,
        nullable=False,
        server_default=text("'manual'"),
        comment="what happens to a version that was trained: detector.gate",
    ),
    Column("promotion_set_at", DateTime(timezone=True)),
    Column("promotion_set_by", Text),
    Column(
        "columns_filled_at",
        DateTime(timezone=True),
        comment="when the scores of before attach --write-columns were all in the columns of the table",
    ),
    Column("last_problem", Text, comment="why scoring stands still, if it does"),
    Column("last_problem_at", DateTime(timezone=True)),
    Column("swept_at", DateTime(timezone=True)),
    _created("created_at"),
    _by(),
    CheckConstraint("promotion in ('manual', 'if_better', 'always')", name="promotion_known"),
)

# Who holds a lock for longer than a transaction: db.sql.long_locks.
held_locks = Table(
    "held_locks",
    metadata,
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True, comment="what for: training, webhook"),
    Column("holder", Uuid, nullable=False),
    _created("taken_at"),
    Column(
        "until",
        DateTime(timezone=True),
        nullable=False,
        comment="a lease is free from then on; infinity: it is held as long as a session has the advisory lock",
    ),
)

# Sweep and prune look at a part of the keys at a time: db.upkeep.turns.
upkeep_places = Table(
    "upkeep_places",
    metadata,
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), primary_key=True),
    Column("task", Text, primary_key=True, comment="sweep, or what is pruned"),
    Column("place", Text, comment="the key, as text, that it goes on after; null: at the first"),
    Column("seen_to", Text, comment="key or time, as text, after which rows were new to the last look"),
    _created("looked_at"),
    Column(
        "turn_began_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="since when it goes through all keys",
    ),
    Column("turn_ended_at", DateTime(timezone=True), comment="when it had last been through all of them"),
)

# How many scores there are of which error: db.thresholds.error_counts.
error_turns = Table(
    "error_turns",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column(
        "by_event_time",
        Boolean,
        nullable=False,
        comment="days are those of the time column; false: of scored_at",
    ),
    Column("place", Text, comment="the key, as text, up to which it has counted"),
    _created("began_at"),
    Column("ended_at", DateTime(timezone=True), comment="null: it is under way"),
    Index(None, "source_id"),
)

# The rows of one stretch of keys, a day and a version; the arrays have an entry for each bin, or two, one flagged.
error_counts = Table(
    "error_counts",
    metadata,
    Column("turn_id", BigInteger, ForeignKey("outlier.error_turns.id", ondelete="CASCADE"), nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("day", DateTime(timezone=True), comment="its begin in UTC; null: no time"),
    Column("n_rows", BigInteger, nullable=False),
    Column("first_at", DateTime(timezone=True)),
    Column("last_at", DateTime(timezone=True)),
    Column(
        "bins",
        ARRAY(SmallInteger),
        nullable=False,
        comment="n: errors above 2^(n/16), up to 2^((n+1)/16)",
    ),
    Column("flagged", ARRAY(Boolean), nullable=False, comment="of the rows of each bin"),
    Column("counts", ARRAY(Integer), nullable=False),
    Column("labelled", ARRAY(Integer), nullable=False, comment="of them with a label and without a verdict"),
    Column("fraud", ARRAY(Integer), nullable=False, comment="of those labelled as fraud"),
    Index(None, "turn_id", "model_version", "day"),
)

# By name, so that what was done stays known when the source is gone.
source_events = Table(
    "source_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False, comment="name of the source"),
    Column("action", Text, nullable=False, comment="what was done, such as attach or keep_history"),
    Column("detail", Text),
    _created("created_at"),
    _by(),
    Index(None, "source", "id"),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("recipe_name", Text, nullable=False),
    Column("recipe", _JSON, nullable=False),
    Column("feature_names", _JSON, nullable=False),
    Column("artifact", LargeBinary, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("signature", Text, comment="HMAC-SHA-256 of the artifact, when a signing key was set"),
    Column("threshold", Double, nullable=False),
    Column("metrics", _JSON, nullable=False, server_default=text("'{}'::jsonb")),
    Column("n_training_rows", BigInteger, nullable=False),
    Column("training_from", Text, comment="first key or event time of the training rows"),
    Column("training_to", Text),
    Column("parent_version", Integer, comment="the champion when this version was trained"),
    Column(
        "errors_of",
        Integer,
        comment="the version whose detector it is, and so whose errors: they differ in the threshold only",
    ),
    Column("drift_reference", _JSON, comment="detector.drift.Reference: how its training rows are spread"),
    Column(
        "imported_from",
        _JSON,
        comment="models_store.version_file.Origin: which version of which source it was",
    ),
    _created("created_at"),
    _by(),
    UniqueConstraint("source_id", "version"),
    CheckConstraint("version > 0", name="version_positive"),
    CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_hex"),
)

model_reports = Table(
    "model_reports",
    metadata,
    Column(
        "model_version_id",
        BigInteger,
        ForeignKey("outlier.model_versions.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column(
        "page", LargeBinary, nullable=False, comment="the HTML of the training's report, compressed by gzip"
    ),
    _created("created_at"),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("source_id", Integer, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    _created("moved_at"),
    Column("problem", Text, comment="why a challenger does not score, if so"),
    Column(
        "paused_until",
        DateTime(timezone=True),
        comment="a challenger that failed is left alone until then",
    ),
    ForeignKeyConstraint(
        ["source_id", "version"],
        ["outlier.model_versions.source_id", "outlier.model_versions.version"],
        ondelete="CASCADE",
    ),
    CheckConstraint("alias in ('champion', 'challenger')", name="alias_known"),
)

alias_events = Table(
    "alias_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("alias", Text, nullable=False),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _created("created_at"),
    _by(),
    Index(None, "source_id", "alias", "id"),
    CheckConstraint("action in ('promote', 'rollback', 'challenge', 'clear')", name="action_known"),
)

model_tags = Table(
    "model_tags",
    metadata,
    Column("source_id", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("tag", Text, primary_key=True),
    _created("created_at"),
    _by(),
    ForeignKeyConstraint(
        ["source_id", "version"],
        ["outlier.model_versions.source_id", "outlier.model_versions.version"],
        ondelete="CASCADE",
    ),
    CheckConstraint("tag ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name="tag_form"),
)

version_events = Table(
    "version_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text),
    _created("created_at"),
    _by(),
    Index(None, "source_id", "id"),
    CheckConstraint(
        "action in ('tag', 'untag', 'prune', 'export', 'import', 'threshold')", name="action_known"
    ),
)

training_runs = Table(
    "training_runs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("status", Text, nullable=False, server_default=text("'running'")),
    Column("recipe", _JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("n_rows", BigInteger),
    Column("left_out", _JSON, comment="rows left out of training, by reason"),
    Column("epoch", Integer),
    Column("n_epochs", Integer),
    Column("loss", Double),
    Column("eta_seconds", Double),
    Column("metrics", _JSON),
    Column("versions", _JSON, comment="of Python, TensorFlow and pgoutlier"),
    Column("recipe_hash", Text, comment="SHA-256 of the recipe"),
    Column(
        "data_fingerprint", Text, comment="SHA-256 of the rows that were read, and which of them are normal"
    ),
    Column("window_from", Text, comment="first key or event time of the normal rows"),
    Column("window_to", Text),
    Column(
        "n_scored_before", BigInteger, comment="scores ever written when it began, by PostgreSQL's statistics"
    ),
    Column("version", Integer, comment="the model version it made"),
    Column("promoted", Boolean, nullable=False, server_default=text("false")),
    Column("error", Text),
    _created("started_at"),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    _by(),
    Index(None, "source_id", "id"),
    CheckConstraint("status in ('running', 'succeeded', 'failed', 'abandoned')", name="status_known"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("version", Integer, comment="that scores or flags the rows; null: the champion as it is then"),
    Column(
        "as_champion",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="it is to do so as the champion, so the job fails when that is another one",
    ),
    Column("status", Text, nullable=False, server_default=text("'running'")),
    Column("problem", Text, comment="why it stands still or has failed"),
    _created("created_at"),
    _by(),
    Column("finished_at", DateTime(timezone=True)),
    # Two commands at once make one job.
    Index("jobs_running_idx", "source_id", "kind", unique=True, postgresql_where=text("status = 'running'")),
    Index(None, "source_id", "id"),
    CheckConstraint("kind in ('backfill', 'rescore', 'reflag')", name="kind_known"),
    CheckConstraint("status in ('running', 'succeeded', 'failed', 'cancelled')", name="status_known"),
)

job_ranges = Table(
    "job_ranges",
    metadata,
    Column("job_id", BigInteger, ForeignKey("outlier.jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("first_key", Text, nullable=False, comment="the first and the last key of the range, as text"),
    Column("last_key", Text, nullable=False),
    Column("n_keys", BigInteger, nullable=False, comment="when the job was made"),
    Column("n_done", BigInteger, nullable=False, server_default=text("0"), comment="rows scored or flagged"),
    Column("n_flagged", BigInteger, nullable=False, server_default=text("0")),
    Column("n_quarantined", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("not_before", DateTime(timezone=True), comment="after a failure"),
    Column("last_error", Text),
    Column("finished_at", DateTime(timezone=True)),
    Index("job_ranges_unfinished_idx", "job_id", "number", postgresql_where=text("finished_at IS NULL")),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", BigInteger, ForeignKey("outlier.jobs.id", ondelete="CASCADE"), nullable=False),
    Column("action", Text, nullable=False),
    _created("created_at"),
    _by(),
    Index(None, "job_id", "id"),
    CheckConstraint("action in ('start', 'cancel', 'resume')", name="action_known"),
)

drift_reports = Table(
    "drift_reports",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False, comment="the champion that had scored the rows"),
    _created("measured_at"),
    Column("n_rows", BigInteger, nullable=False, comment="rows it was measured on, the newest"),
    Column(
        "features", _JSON, nullable=False, comment="feature, psi and limit of each, the largest psi first"
    ),
    Column("error_psi", Double, comment="PSI of the reconstruction error"),
    Column("error_limit", Double),
    Column("flag_rate", Double, comment="share of the rows that are flagged"),
    Column("expected_flag_rate", Double, comment="that of the first report of the version"),
    Column(
        "quarantine_rate", Double, nullable=False, comment="share of the newest rows that are in quarantine"
    ),
    Column("drifted", Boolean, nullable=False, comment="whether anything is beyond its limit"),
    Column("reasons", _JSON, nullable=False, comment="a sentence for each that is"),
    Index(None, "source_id", "id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", Integer, ForeignKey("outlier.sources.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False, comment="the row's key, as text"),
    Column("reason", Text, nullable=False),
    Column("column_name", Text),
    Column("detail", Text),
    Column(
        "change_id", BigInteger, nullable=False, comment="queue id of the change that could not be scored"
    ),
    _created("quarantined_at"),
    UniqueConstraint("source_id", "key"),
    Index(None, "source_id", "change_id"),
    CheckConstraint(
        "reason in ('null', 'nan', 'infinite', 'wrong_length', 'missing', 'error')", name="reason_known"
    ),
)

# A log: what was said last of a row holds, see the view outlier.current_verdicts.
verdicts = Table(
    "verdicts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "source",
        Text,
        ForeignKey("outlier.sources.name", ondelete="CASCADE"),
        nullable=False,
        comment="name of the source",
    ),
    Column("key", Text(collation="C"), nullable=False, comment="the row's key, as text"),
    Column("verdict", Text, nullable=False, comment="fraud, normal, or withdrawn: as if none had been given"),
    Column("note", Text),
    _created("created_at"),
    _by(),
    Index(None, "source", "key", "id"),
    CheckConstraint("verdict in ('fraud', 'normal', 'withdrawn')", name="verdict_known"),
)

# The five fields of a crontab, with their numbers in range: what does not look like this is refused.
_CRONTAB_ITEM = "([*]|{v}(-{v})?)(/[1-9][0-9]?)?"
_CRONTAB_VALUES = (
    "[0-5]?[0-9]",
    "([01]?[0-9]|2[0-3])",
    "(0?[1-9]|[12][0-9]|3[01])",
    "(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    "([0-7]|sun|mon|tue|wed|thu|fri|sat)",
)
CRONTAB_PATTERN = " ".join(
    f"{item}(,{item})*" for item in (_CRONTAB_ITEM.replace("{v}", value) for value in _CRONTAB_VALUES)
)
SCHEDULE_NAME_PATTERN = "[a-z0-9_][a-z0-9_.-]{0,99}"
SHORTEST_INTERVAL_SECONDS = 0.1
LONGEST_INTERVAL_SECONDS = 31_622_400

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("args", _JSON, nullable=False, server_default=text("'[]'::jsonb")),
    Column("kwargs", _JSON, nullable=False, server_default=text("'{}'::jsonb")),
    Column("every_seconds", Double, comment="the interval; null: see crontab"),
    Column("crontab", Text, comment="minute, hour, day of month, month, day of week; in time_zone"),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'")),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column(
        "settings_seconds",
        Double,
        comment="of a built-in schedule: the interval by the settings, which it follows while it equals this",
    ),
    Column(
        "next_run_at",
        DateTime(timezone=True),
        comment="null: beat works it out; earlier than now: it is sent at once",
    ),
    Column("last_run_at", DateTime(timezone=True)),
    Column(
        "last_due_at",
        DateTime(timezone=True),
        comment="the tick that the last run was for; null: somebody's run-now",
    ),
    Column("last_run_by", Text, comment="the beat as host:process id, or the role"),
    Column("n_runs", BigInteger, nullable=False, server_default=text("0")),
    Column("problem", Text, comment="why beat does not send it, if it does not"),
    _created("created_at"),
    _by(),
    _created("changed_at"),
    Column("changed_by", Text, nullable=False, server_default=text("session_user")),
    CheckConstraint(f"name ~ '^{SCHEDULE_NAME_PATTERN}$'", name="name_plain"),
    CheckConstraint("length(task) BETWEEN 1 AND 200", name="task_short"),
    CheckConstraint("jsonb_typeof(args) = 'array'", name="args_list"),
    CheckConstraint("jsonb_typeof(kwargs) = 'object'", name="kwargs_object"),
    CheckConstraint("num_nonnulls(every_seconds, crontab) = 1", name="crontab_or_interval"),
    CheckConstraint(
        f"every_seconds >= {SHORTEST_INTERVAL_SECONDS} AND every_seconds <= {LONGEST_INTERVAL_SECONDS}",
        name="interval_in_range",
    ),
    CheckConstraint(f"crontab ~* '^{CRONTAB_PATTERN}$'", name="crontab_five_fields"),
    CheckConstraint("timezone(time_zone, to_timestamp(0)) IS NOT NULL", name="time_zone_known"),
    CheckConstraint(
        "next_run_at >= to_timestamp(0) AND next_run_at < to_timestamp(32503680000)",
        name="next_run_in_reach",
    ),
    CheckConstraint(
        "last_run_at >= to_timestamp(0) AND last_run_at < to_timestamp(32503680000)"
        " AND coalesce(last_due_at >= to_timestamp(0) AND last_due_at < to_timestamp(32503680000), true)",
        name="last_run_in_reach",
    ),
)

schedule_events = Table(
    "schedule_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("schedule", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("before", _JSON),
    Column("after", _JSON),
    _created("created_at"),
    _by(),
    Index(None, "schedule", "id"),
    CheckConstraint(
        "action in ('created', 'changed', 'paused', 'resumed', 'deleted', 'run_now')", name="action_known"
    ),
)

beats = Table(
    "beats",
    metadata,
    Column("name", Text, primary_key=True, comment="host:process id"),
    _created("started_at"),
    Column(
        "ticked_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="when it last looked at the schedules and could send what was due",
    ),
)

# Those that look by themselves, behind a pooler; others are seen in pg_stat_activity.
listeners = Table(
    "listeners",
    metadata,
    Column("name", Text, primary_key=True, comment="host:process id"),
    _created("started_at"),
    Column(
        "looked_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="when it last looked into the queues, within some seconds",
    ),
)

# One for each row that became flagged, of sources for which notices are on. Triggers write them: db.ddl.notice_objects.
notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "source",
        Text,
        ForeignKey("outlier.sources.name", ondelete="CASCADE"),
        nullable=False,
        comment="name of the source",
    ),
    Column("key", Text, nullable=False, comment="the row's key, as text"),
    Column("reconstruction_error", Double, nullable=False),
    Column("threshold", Double, comment="that of the model version"),
    Column("model_version", Integer, nullable=False),
    Column("scored_at", DateTime(timezone=True), nullable=False),
    Column("top_features", _JSON),
    Column(
        "xact_id",
        BigInteger,
        nullable=False,
        server_default=text("((pg_current_xact_id())::text)::bigint"),
        comment="the transaction that flagged the row",
    ),
    _created("created_at"),
    Column("waits", Boolean, nullable=False, comment="for a delivery to put it into"),
    Column("delivery_id", Uuid, comment="the delivery that it was put into: the webhook-id"),
    Column("delivered_at", DateTime(timezone=True)),
    Index(None, "source", "id", postgresql_where=text("waits")),
    Index(None, "source", "xact_id"),
    Index(None, "delivery_id", postgresql_where=text("delivery_id IS NOT NULL")),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column(
        "source",
        Text,
        ForeignKey("outlier.sources.name", ondelete="CASCADE"),
        primary_key=True,
        comment="name of the source, for which notices are on",
    ),
    Column("url", Text, comment="null: notices are written and nothing is sent"),
    Column("insecure_http", Boolean, nullable=False, server_default=text("false")),
    Column("per_minute", Integer, nullable=False, server_default=text("60")),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column(
        "not_before",
        DateTime(timezone=True),
        comment="the next request is not sent earlier: by the limit, or because the last one failed",
    ),
    Column("problem", Text, comment="why nothing is delivered, if so"),
    _created("created_at"),
    _by(),
    CheckConstraint("url ~ '^https?://[^/?#@[:space:]]+([/?][^[:space:]]*)?$'", name="url_form"),
    CheckConstraint("per_minute BETWEEN 1 AND 6000", name="per_minute_in_range"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"), comment="the webhook-id"),
    Column("source", Text, ForeignKey("outlier.webhooks.source", ondelete="CASCADE"), nullable=False),
    Column("n_notices", Integer, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0"), comment="requests begun"),
    Column("not_before", DateTime(timezone=True)),
    Column("last_error", Text),
    _created("created_at"),
    Index(None, "source", "created_at"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", Uuid, primary_key=True, comment="that of the delivery"),
    Column("source", Text, ForeignKey("outlier.webhooks.source", ondelete="CASCADE"), nullable=False),
    Column("n_notices", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, comment="when the delivery was made"),
    _created("died_at"),
    Index(None, "source", "died_at"),
)
