"""The webhook of each source for which notices are on, and the history of what was done with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from sqlalchemy import Connection

from pgoutlier.db.errors import WebhookError
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.statements import records, run

PER_MINUTE = 60
MOST_PER_MINUTE = 6_000
_SELECT: LiteralString = (
    "SELECT source, url, insecure_http, per_minute, enabled, not_before, problem FROM outlier.webhooks"
)


@dataclass(frozen=True)
class Webhook:
    """A row of outlier.webhooks. url: None where notices are only written. per_minute: requests at most."""

    source: str
    url: str | None
    insecure_http: bool
    per_minute: int
    enabled: bool
    not_before: datetime | None
    problem: str | None


@dataclass(frozen=True)
class WebhookEvent:
    """Who did what with a webhook and when."""

    created_at: datetime
    created_by: str
    action: str
    detail: str | None


def find(connection: Connection, source_name: str) -> Webhook:
    """Raises WebhookError if notices are off for the source."""
    found = look_up(connection, source_name)
    if found is None:
        raise WebhookError(
            f"There is no webhook of {source_name}; set one: pgoutlier webhook set {source_name} URL"
        )
    return found


def look_up(connection: Connection, source_name: str) -> Webhook | None:
    rows = records(connection, Webhook, _SELECT + " WHERE source = %s", (source_name,))
    return rows[0] if rows else None


def every(connection: Connection) -> list[Webhook]:
    """All of them by source."""
    return records(connection, Webhook, _SELECT + " ORDER BY source")


def put(
    connection: Connection, source_name: str, *, url: str | None, insecure_http: bool, per_minute: int | None
) -> bool:
    """Write the webhook of a source, new or not. Returns False if it was just so already.

    per_minute: None leaves it as it is. One that was paused stays so, unless its old URL had brought that about.
    """
    changed = run(
        connection,
        "INSERT INTO outlier.webhooks AS w (source, url, insecure_http, per_minute)"
        " VALUES (%(source)s, %(url)s, %(insecure_http)s, coalesce(%(per_minute)s::integer, %(usual)s))"
        " ON CONFLICT (source) DO UPDATE SET url = excluded.url, insecure_http = excluded.insecure_http,"
        " per_minute = coalesce(%(per_minute)s::integer, w.per_minute), problem = NULL,"
        " enabled = w.enabled OR (w.problem IS NOT NULL AND w.url IS DISTINCT FROM excluded.url)"
        " WHERE (w.url, w.insecure_http, w.per_minute) IS DISTINCT FROM"
        " (excluded.url, excluded.insecure_http, coalesce(%(per_minute)s::integer, w.per_minute)) RETURNING true",
        {
            "source": source_name,
            "url": url,
            "insecure_http": insecure_http,
            "per_minute": per_minute,
            "usual": PER_MINUTE,
        },
    ).fetchone()
    if url is None:
        _forget_undelivered(connection, source_name)
    elif changed:
        make_due(connection, source_name)
    return changed is not None


def make_due(connection: Connection, source_name: str) -> None:
    """Have what was put off sent now."""
    run(connection, "UPDATE outlier.webhooks SET not_before = NULL WHERE source = %s", (source_name,))
    run(connection, "UPDATE outlier.deliveries SET not_before = NULL WHERE source = %s", (source_name,))


def _forget_undelivered(connection: Connection, source_name: str) -> None:
    run(connection, "UPDATE outlier.notices SET waits = false WHERE source = %s AND waits", (source_name,))
    run(connection, "DELETE FROM outlier.deliveries WHERE source = %s", (source_name,))


def set_enabled(connection: Connection, source_name: str, enabled: bool, *, problem: str | None) -> bool:
    """Pause or resume it; what was put off is due at once when it is resumed. Returns False if it is so already.

    problem: why it is paused, if not because somebody wants it.
    """
    changed = run(
        connection,
        "UPDATE outlier.webhooks SET enabled = %(enabled)s, problem = %(problem)s"
        " WHERE source = %(source)s AND enabled <> %(enabled)s",
        {"source": source_name, "enabled": enabled, "problem": problem},
    ).rowcount
    if changed and enabled:
        make_due(connection, source_name)
    return bool(changed)


def set_problem(connection: Connection, source_name: str, problem: str | None) -> bool:
    """Note why nothing is delivered, or that it is over. Returns False if that is noted already."""
    return bool(
        run(
            connection,
            "UPDATE outlier.webhooks SET problem = %s WHERE source = %s AND problem IS DISTINCT FROM %s",
            (problem, source_name, problem),
        ).rowcount
    )


def remove(connection: Connection, source_name: str) -> None:
    """Forget it with its deliveries and dead letters; the notices stay until they are pruned."""
    _forget_undelivered(connection, source_name)
    run(connection, "DELETE FROM outlier.webhooks WHERE source = %s", (source_name,))


def note(connection: Connection, source_name: str, action: str, detail: str | None = None) -> None:
    """Add to the history. detail: never more of the URL than worker.notices.webhook_url.shown gives."""
    sources.record(connection, source_name, f"webhook_{action}", detail)


def history(connection: Connection, source_name: str, *, limit: int) -> list[WebhookEvent]:
    """What was done with the webhook of a source, the newest first."""
    return records(
        connection,
        WebhookEvent,
        "SELECT created_at, created_by, substr(action, 9) AS action, detail FROM outlier.source_events"
        " WHERE source = %s AND starts_with(action, 'webhook_') ORDER BY id DESC LIMIT %s",
        (source_name, limit),
    )
