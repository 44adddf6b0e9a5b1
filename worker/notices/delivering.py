"""Delivery of notices to webhooks: at least once, one request a source at a time, never in a thread that scores.

A delivery is committed before it is sent and noted after that. Killed in between, it is sent again as it was, with
the same webhook-id. No transaction is open while a request is under way.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pgoutlier.db.errors import MissingPrivilege, PgoutlierError, WebhookError, first_line
from pgoutlier.db.notices import deliveries, webhooks
from pgoutlier.db.notices.deliveries import Delivery
from pgoutlier.db.notices.webhook_secret import keys_of
from pgoutlier.db.notices.webhooks import Webhook
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.long_locks import LongLock
from pgoutlier.worker.notices import http_post, webhook_messages, webhook_signature, webhook_url
from pgoutlier.worker.notices.http_post import Answer, NoAnswer
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

Send = Callable[[str, bytes], Answer]

# A deliverer waits so long for the next request to be allowed; what comes later is left to beat, and its thread to
# another webhook.
_LONGEST_WAIT_SECONDS = 2.0
# The request is at fault, not the receiver: others are sent meanwhile.
_REFUSED = (400, 413, 422)
_GONE = 410


@dataclass
class DeliveryResult:
    """What one call did. busy: another one delivers for the source, so nothing was done."""

    n_delivered: int = 0
    n_failed: int = 0
    n_dead: int = 0
    busy: bool = False


def sources_due(runtime: Runtime) -> list[str]:
    """Names of the sources whose webhook something can be sent to now.

    Raises MissingPrivilege where the role was given its rights before there were notices.
    """
    try:
        with runtime.engine.begin() as connection:
            return deliveries.due(connection)
    except psycopg.errors.InsufficientPrivilege:
        role = runtime.engine.url.username or "ROLE"
        raise MissingPrivilege(
            f"This role may not read the notices; run once more: pgoutlier db grant {role} --as worker"
        ) from None


def ring(runtime: Runtime, source_name: str) -> bool:
    """Have a thread of its own deliver what is due. Returns False if one is at it here, which then looks again."""
    with runtime.delivering_lock:
        new = source_name not in runtime.delivering
        runtime.delivering[source_name] = not new
    if new:
        runtime.deliverers.submit(_deliver_while_rung, runtime, source_name)
    return new


def _deliver_while_rung(runtime: Runtime, source_name: str) -> None:
    while True:
        with runtime.delivering_lock:
            runtime.delivering[source_name] = False
        try:
            deliver(runtime, source_name)
        except (PgoutlierError, DBAPIError, PoolTimeout, psycopg.Error) as error:
            log.warning("delivery_interrupted", source=source_name, error=first_line(error))
        except Exception:
            log.exception("delivery_interrupted", source=source_name)
        with runtime.delivering_lock:
            if runtime.stopping.is_set() or not runtime.delivering[source_name]:
                del runtime.delivering[source_name]
                return


def deliver(
    runtime: Runtime, source_name: str, *, longest_wait_seconds: float = _LONGEST_WAIT_SECONDS
) -> DeliveryResult:
    """Send what is due, request by request, until nothing is or the time is up.

    Raises SourceError if there is no such source. Without a usable URL and secret it notes that and sends nothing.
    """
    result = DeliveryResult()
    stop_at = time.monotonic() + runtime.settings.drain_budget_seconds
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
    with deliveries.deliverer(runtime.sessions, source.id) as lock:
        if lock is None:
            return DeliveryResult(busy=True)
        while time.monotonic() < stop_at and not runtime.stopping.is_set():
            with lock.connection.begin():
                wait = deliveries.seconds_to_next(lock.connection, source_name)
            if wait is None or wait > longest_wait_seconds:
                break
            if runtime.stopping.wait(wait):
                break
            if not _deliver_one(runtime, lock, source, result):
                break
    return result


def _deliver_one(runtime: Runtime, lock: LongLock, source: Source, result: DeliveryResult) -> bool:
    """Send one delivery. Returns whether to go on. Raises LockLost if it is another's to send by now."""
    source_name, connection = source.name, lock.connection
    with connection.begin():
        webhook = webhooks.look_up(connection, source_name)
        if webhook is None or webhook.url is None or not webhook.enabled:
            return False
        lock.require(connection)
        try:
            send = sender(runtime, webhook)
        except WebhookError as error:
            if webhooks.set_problem(connection, source_name, error.sentence):
                log.error("webhook_unusable", source=source_name, error=error.sentence)
            return False
        delivery = deliveries.begin(
            connection, source_name, most_notices=runtime.settings.webhook_batch_notices
        )
        if delivery is None:
            return False
        if delivery.attempts > runtime.settings.webhook_max_attempts:
            # No failure was noted of the last attempts: each ended its worker.
            deliveries.give_up(connection, delivery, error="the worker ended while it was sent")
            result.n_dead += len(delivery.notices)
            return True
    answer, failure = _answer(send, delivery, source.definition.key)
    with connection.begin():
        if failure is None:
            deliveries.succeed(connection, delivery)
            webhooks.set_problem(connection, source_name, None)
            result.n_delivered += len(delivery.notices)
            log.info(
                "notices_delivered", source=source_name, delivery=str(delivery.id), n=len(delivery.notices)
            )
        else:
            _fail(connection, runtime, webhook, delivery, answer, failure, result)
    return True


def _answer(send: Send, delivery: Delivery, key: Key) -> tuple[Answer | None, str | None]:
    """The answer, if any, and what is wrong with it, if anything is."""
    body = webhook_messages.body(delivery.source, delivery.notices, key)
    try:
        answer = send(str(delivery.id), body)
    except NoAnswer as error:
        return None, str(error)
    return answer, None if answer.ok else webhook_messages.said(answer)


def _fail(
    connection: Connection,
    runtime: Runtime,
    webhook: Webhook,
    delivery: Delivery,
    answer: Answer | None,
    failure: str,
    result: DeliveryResult,
) -> None:
    status = answer.status if answer else None
    result.n_failed += 1
    final = status == _GONE or delivery.attempts >= runtime.settings.webhook_max_attempts
    delay = webhook_messages.retry_delay(
        delivery.attempts,
        base_seconds=runtime.settings.webhook_retry_base_seconds,
        asked_seconds=webhook_messages.asked_seconds(answer.retry_after, datetime.now(UTC))
        if answer
        else None,
        chance=random.random(),  # noqa: S311 - spreads requests, guards nothing
    )
    deliveries.postpone(connection, delivery, error=failure, seconds=delay, others_too=status not in _REFUSED)
    if final:
        deliveries.give_up(connection, delivery, error=failure)
        result.n_dead += len(delivery.notices)
    problem = f"{webhook_url.shown(webhook.url or '')}: {failure}"
    if status == _GONE and webhooks.set_enabled(connection, webhook.source, False, problem=problem):
        webhooks.note(connection, webhook.source, "pause", "it answered 410 Gone")
    webhooks.set_problem(connection, webhook.source, problem)
    log.warning(
        "notices_given_up" if final else "delivery_failed",
        source=webhook.source,
        delivery=str(delivery.id),
        n=len(delivery.notices),
        attempt=delivery.attempts,
        # What a receiver writes may quote the rows.
        error=f"answered {status}" if status else failure,
    )


def sender(runtime: Runtime, webhook: Webhook) -> Send:
    """Sends one signed message to a webhook: (webhook-id, body) -> the answer, or NoAnswer is raised.

    Raises WebhookError if the URL cannot be used or there is no secret.
    """
    secret = runtime.settings.webhook_secret
    if secret is None:
        raise WebhookError(
            "There is no secret to sign with; set PGOUTLIER_WEBHOOK_SECRET for the score workers, such as"
            ' "whsec_$(openssl rand -base64 32)", and start them again.'
        )
    keys = keys_of(secret.get_secret_value())
    endpoint = webhook_url.check(webhook.url or "", insecure_http=webhook.insecure_http)

    def send(message_id: str, body: bytes) -> Answer:
        return http_post.post(
            endpoint,
            body,
            {
                "Content-Type": "application/json",
                "User-Agent": "pgoutlier",
                **webhook_signature.headers(message_id, int(time.time()), body, keys),
            },
            timeout_seconds=runtime.settings.webhook_timeout_seconds,
        )

    return send
