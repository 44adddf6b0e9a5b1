"""doctor: look at everything that has to be right, and say how to mend what is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psycopg
import redis
import typer
from kombu import Connection as BrokerConnection
from kombu.exceptions import OperationalError as BrokerUnavailable
from pydantic import ValidationError
from rich.markup import escape
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db import catalog, migrate, models, notices, overview, source_objects, write_back, written_columns
from db import schedules as schedule_store
from db import sources as source_store
from db.errors import PgoutlierError, first_line
from detector import Recipe
from models_store import registry
from models_store.artifact import ArtifactRefused
from worker import schedules
from worker.cli.context import open_runtime, settings_with_servers
from worker.cli.output import console, print_json
from worker.cli.sources import AsJson
from worker.runtime import Runtime, server_urls
from worker.sequences import index_advice, require_order
from worker.status import alive_workers

_OLDEST_POSTGRES = 150_000
_CLOCK_SECONDS = 2.0
_QUEUES = ("score", "admin", "train")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. mend is empty if all is well."""

    what: str
    ok: bool
    detail: str
    mend: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check servers, versions, schema, privileges, triggers, clocks, models and workers; exit 1 if one is wrong."""
    found = list(_examine())
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            mark = "[green]ok  [/green]" if finding.ok else "[red]look[/red]"
            console.print(f"{mark}  {escape(finding.what)}: {escape(finding.detail)}", highlight=False)
            if finding.mend:
                console.print(f"      mend: {escape(finding.mend)}", style="bold", highlight=False)
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


def _examine() -> Iterator[Finding]:
    settings = settings_with_servers()
    yield from _broker(server_urls(settings)[1])
    runtime = open_runtime(migrated=False)
    try:
        with runtime.engine.begin() as connection:
            yield from _postgres(connection)
            schema = _schema(connection)
            yield schema
    except (DBAPIError, psycopg.Error) as error:
        yield Finding(
            "PostgreSQL", False, first_line(error), "start the server, or mend PGOUTLIER_DATABASE_URL"
        )
        return
    if schema.ok:
        with runtime.engine.begin() as connection:
            for source in source_store.every(connection):
                for check in (_relation, _triggers, _views, _champion, _order, _problem):
                    yield check(connection, runtime, source)
                yield from _challenger(connection, runtime, source)
                yield from _webhook(connection, runtime, source)
                yield from _columns(connection, source)
            yield _listeners(connection)
            yield _beat(connection)
            yield from _schedules(connection)
    yield from _workers()


def _broker(url: str) -> Iterator[Finding]:
    try:
        with BrokerConnection(
            url, connect_timeout=3, transport_options={"socket_connect_timeout": 3}
        ) as broker:
            broker.ensure_connection(max_retries=1, timeout=5)
            client = broker.default_channel.client
            info = client.info("server")
    except (BrokerUnavailable, redis.RedisError, OSError) as error:
        yield Finding("broker", False, str(error), "start Redis or Valkey, or mend PGOUTLIER_BROKER_URL")
        return
    name, version = (
        ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    )
    old = tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < ((7, 2) if name == "Valkey" else (6, 2))
    yield Finding(
        "broker", not old, f"{name} {version}", "use Redis 6.2 or Valkey 7.2, or later" if old else ""
    )


def _postgres(connection: Connection) -> Iterator[Finding]:
    facts = catalog.server_facts(connection)
    old = facts["server_version_num"] < _OLDEST_POSTGRES
    yield Finding(
        "PostgreSQL",
        not old and not facts["in_recovery"],
        f"{facts['server_version']}, database {facts['database']} as {facts['role']}"
        + (", read-only standby" if facts["in_recovery"] else ""),
        "use PostgreSQL 15 or later" if old else "name the primary" if facts["in_recovery"] else "",
    )
    apart = abs((datetime.now(UTC) - facts["clock"]).total_seconds())
    yield Finding(
        "clocks",
        apart <= _CLOCK_SECONDS,
        f"{apart:.1f} s between this machine and PostgreSQL",
        "" if apart <= _CLOCK_SECONDS else "synchronise both with NTP",
    )


def _schema(connection: Connection) -> Finding:
    try:
        migrate.require_current(connection)
    except PgoutlierError as error:
        return Finding("schema", False, str(error), "pgoutlier db upgrade")
    return Finding("schema", True, f"outlier at revision {migrate.head()}")


Check = Callable[[Connection, Runtime, source_store.Source], Finding]


def _relation(connection: Connection, _: Runtime, source: source_store.Source) -> Finding:
    definition = source.definition
    try:
        catalog.inspect(connection, definition.relation)
        info = catalog.inspect(connection, definition.feature_relation)
        for feature in definition.features:
            info.column(feature.column)
        needed = [(r, "SELECT") for r in (definition.relation, definition.feature_relation)]
        grants = [g for g in catalog.missing_grants(connection, needed) if "CREATE" not in g]
    except PgoutlierError as error:
        return Finding(source.name, False, str(error), f"restore it, or: pgoutlier detach {source.name}")
    if grants:
        return Finding(source.name, False, "this role may not read the table", " ".join(grants))
    return Finding(source.name, True, definition.describe())


def _triggers(connection: Connection, _: Runtime, source: source_store.Source) -> Finding:
    states = source_objects.triggers_enabled(connection, source.definition)
    missing = [event for event, on in states.items() if not on]
    if not missing:
        return Finding(f"{source.name} triggers", True, "on INSERT and UPDATE")
    return Finding(
        f"{source.name} triggers",
        False,
        f"the {' and '.join(missing)} trigger is missing or disabled; only the sweep finds new rows",
        f"ALTER TABLE {source.definition.relation} ENABLE TRIGGER outlier_{source.name}_{missing[0]}; if it is gone,"
        " run the same `pgoutlier attach` again",
    )


def _views(connection: Connection, _: Runtime, source: source_store.Source) -> Finding:
    what, lacking = f"{source.name} views", source_objects.lacks(connection, source.definition)
    if not lacking:
        return Finding(what, True, "all there")
    return Finding(
        what,
        False,
        f"there is no {', '.join(lacking)}",
        "run the same `pgoutlier attach` again, and then `pgoutlier db grant` for each role that had it",
    )


def _champion(connection: Connection, runtime: Runtime, source: source_store.Source) -> Finding:
    what = f"{source.name} champion"
    alias = models.alias(connection, source.id)
    if alias is None:
        return Finding(what, False, "none yet, so rows stay queued", f"pgoutlier train {source.name}")
    try:
        registry.load(
            connection,
            source,
            alias[1],
            max_bytes=runtime.settings.artifact_max_bytes,
            signing_key=runtime.signing_key,
        )
    except ArtifactRefused as refusal:
        return Finding(what, False, str(refusal), f"pgoutlier models rollback {source.name}, or train anew")
    return Finding(what, True, f"version {alias[1]}")


def _challenger(connection: Connection, runtime: Runtime, source: source_store.Source) -> Iterator[Finding]:
    """Nothing without a challenger."""
    challenger = models.aliases(connection, source.id).challenger
    if challenger is None:
        return
    what = f"{source.name} challenger"
    if challenger.problem:
        clear = f"pgoutlier models challenge {source.name} --clear"
        yield Finding(what, False, challenger.problem, f"mend that, or: {clear}")
        return
    yield Finding(what, True, f"version {challenger.version}")


def _webhook(connection: Connection, runtime: Runtime, source: source_store.Source) -> Iterator[Finding]:
    """Nothing where notices are off."""
    found = notices.figures(connection, source.name)
    if found is None:
        return
    what = f"{source.name} notices"
    if not all(notices.triggers_enabled(connection, source.name).values()):
        yield Finding(
            what, False, "a trigger is missing or disabled", "run the same `pgoutlier webhook set` again"
        )
    if found["sends"] and runtime.settings.webhook_secret is None:
        secret = "PGOUTLIER_WEBHOOK_SECRET"  # noqa: S105 - its name
        yield Finding(what, False, "there is no secret to sign with", f"set {secret}, also for the workers")
    elif found["problem"] or not found["enabled"]:
        yield Finding(
            what,
            False,
            found["problem"] or "the webhook is paused",
            f"pgoutlier webhook test {source.name}; if it is paused: pgoutlier webhook resume {source.name}",
        )
    elif found["n_dead"]:
        detail = f"{found['n_dead']:,} in dead letters"
        yield Finding(
            what,
            False,
            detail,
            f"pgoutlier webhook dead {source.name}; pgoutlier webhook retry {source.name}",
        )
    else:
        yield Finding(what, True, f"{found['n_pending']:,} wait" if found["sends"] else "written, not sent")


def _columns(connection: Connection, source: source_store.Source) -> Iterator[Finding]:
    """Nothing where the scores are not kept in the table itself."""
    if not source.definition.write_columns:
        return
    what, relation = f"{source.name} columns", source.definition.relation
    try:
        lacking = write_back.lacks(connection, source.definition)
    except PgoutlierError as error:
        yield Finding(what, False, str(error), f"restore it, or: pgoutlier detach {source.name}")
        return
    if lacking:
        yield Finding(
            what, False, f"there is no {', '.join(lacking)}", "run the same `pgoutlier attach` again"
        )
    elif not written_columns.may_write(connection, relation):
        role = catalog.server_facts(connection)["role"]
        grant = f"pgoutlier db grant {role} --as worker"
        yield Finding(what, False, f"{role} may not write them, so that as a worker it cannot score", grant)
    elif source.columns_filled_at is None:
        again = "run the same `pgoutlier attach` again, which goes on with that"
        yield Finding(what, False, "scores of before are not all copied", again)
    else:
        yield Finding(what, True, f"written in {relation}")


def _order(connection: Connection, runtime: Runtime, source: source_store.Source) -> Finding:
    """Whether a recipe that scores rows with those before them finds these."""
    what = f"{source.name} order"
    try:
        recipes = [Recipe.model_validate(source.recipe)]
        champion = registry.champion(connection, source, runtime.cache)
        if champion is not None:
            recipes.append(champion.detector.recipe)
        for recipe in recipes:
            require_order(recipe, source.definition)
        advice = index_advice(connection, source.definition, recipes)
    except (PgoutlierError, ArtifactRefused, ValidationError) as error:
        return Finding(what, False, first_line(error), f"train {source.name} by another recipe, or detach it")
    if advice:
        return Finding(what, False, "no index finds the rows before a row; scoring will be slow", advice)
    return Finding(what, True, "by the time column" if source.definition.time_column else "not needed")


def _problem(connection: Connection, _: Runtime, source: source_store.Source) -> Finding:
    row = overview.describe(connection, source)
    detail = f"{row['n_queued']:,} queued, {row['n_quarantined']:,} in quarantine"
    if row["problem"]:
        return Finding(
            f"{source.name} queue", False, f"{detail}; {row['problem']}", "see the sentence before"
        )
    return Finding(f"{source.name} queue", True, detail)


def _listeners(connection: Connection) -> Finding:
    count = overview.listeners(connection)
    mend = (
        ""
        if count
        else "pgoutlier up, or: pgoutlier listener (without one, beat finds new rows every few seconds)"
    )
    return Finding("listener", count > 0, f"{count} connected", mend)


def _beat(connection: Connection) -> Finding:
    found = schedule_store.beats(connection)
    alive = schedules.beats_alive(connection)
    if alive:
        return Finding("beat", True, f"{', '.join(alive)}, last tick {found[0]['seconds_ago']:.0f} s ago")
    last = (
        f"the last tick was at {found[0]['ticked_at']:%Y-%m-%d %H:%M:%S %Z}"
        if found
        else "none has ticked yet"
    )
    return Finding(
        "beat",
        False,
        f"{last}; nothing is swept, retrained or pruned",
        "pgoutlier up, or: celery -A worker beat; if it runs, see its log: it may not reach the broker",
    )


def _schedules(connection: Connection) -> Iterator[Finding]:
    for schedule in schedule_store.every(connection):
        if schedule.enabled and schedule.problem:
            yield Finding(
                f"schedule {schedule.name}",
                False,
                schedule.problem,
                f"pgoutlier schedule set {schedule.name} --help, or: pgoutlier schedule pause {schedule.name}",
            )


def _workers() -> Iterator[Finding]:
    workers = alive_workers()
    if workers is None:
        return
    taken = {queue for worker in workers for queue in worker["queues"]}
    for queue in _QUEUES:
        names = [worker["name"] for worker in workers if queue in worker["queues"]]
        yield Finding(
            f"queue {queue}",
            queue in taken,
            f"taken by {', '.join(names)}" if names else "no worker takes from it",
            "" if names else f"pgoutlier up, or: celery -A worker worker -Q {queue}",
        )
