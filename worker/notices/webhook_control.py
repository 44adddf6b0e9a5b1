"""What operators do with webhooks: set, pause, resume, test, remove, look at dead letters and send them again."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from pgoutlier.db.errors import DeliveryFailed, WebhookError
from pgoutlier.db.notices import deliveries, notices, webhooks
from pgoutlier.db.notices.deliveries import DeadLetter, Notice, Retried
from pgoutlier.db.notices.webhooks import MOST_PER_MINUTE, Webhook, WebhookEvent
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import TopFeature
from pgoutlier.worker.notices import delivering, webhook_messages, webhook_url
from pgoutlier.worker.notices.http_post import NoAnswer
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()


@dataclass(frozen=True)
class ListedWebhook(Webhook):
    """A webhook with what waits and what is dead, and whether it has a URL, of which is shown only what may be."""

    n_pending: int
    n_dead: int
    sends: bool


@dataclass(frozen=True)
class SampleAnswer:
    """What a receiver answered to a sample. status: of HTTP; answer: in one line; seconds: until it was there."""

    source: str
    webhook_id: str
    status: int
    answer: str
    seconds: float


def set_webhook(
    runtime: Runtime,
    source_name: str,
    url: str | None,
    *,
    per_minute: int | None = None,
    insecure_http: bool = False,
) -> bool:
    """Turn notices on and have them sent to the URL, or only written if that is None. False if it is so already.

    per_minute: requests at most; None leaves it as it is, at first 60. insecure_http: http to other machines, too.
    Notices of before are not sent. Raises SourceError, or WebhookError if one of these cannot be used.
    """
    if url is not None:
        webhook_url.check(url, insecure_http=insecure_http)
    if per_minute is not None and not 1 <= per_minute <= MOST_PER_MINUTE:
        raise WebhookError(
            f"{per_minute:,} requests a minute cannot be kept to; say 1 to {MOST_PER_MINUTE:,}."
        )
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        if not all(notices.triggers_enabled(connection, source_name).values()):
            notices.turn_on(connection, source)
        changed = webhooks.put(
            connection, source_name, url=url, insecure_http=insecure_http, per_minute=per_minute
        )
        if changed:
            webhook = webhooks.find(connection, source_name)
            where = webhook_url.shown(url) if url else "notices only"
            webhooks.note(connection, source_name, "set", f"{where}, {webhook.per_minute} a minute")
    if changed:
        log.info("webhook_set", source=source_name, url=webhook_url.shown(url) if url else None)
    return changed


def set_enabled(runtime: Runtime, source_name: str, enabled: bool) -> bool:
    """Pause the webhook, whose notices then wait, or resume it. False if it is so already."""
    with runtime.engine.begin() as connection:
        sources.find(connection, source_name)
        webhooks.find(connection, source_name)
        changed = webhooks.set_enabled(connection, source_name, enabled, problem=None)
        if changed:
            webhooks.note(connection, source_name, "resume" if enabled else "pause")
    if changed:
        log.info("webhook_resumed" if enabled else "webhook_paused", source=source_name)
    return changed


def remove(runtime: Runtime, source_name: str) -> bool:
    """Turn notices off: nothing is written nor sent any more. False if they are off already.

    Raises MissingPrivilege if the role may not drop the triggers.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        there = webhooks.look_up(connection, source_name) is not None
        if there:
            notices.turn_off(connection, source)
            webhooks.remove(connection, source_name)
            webhooks.note(connection, source_name, "remove")
    if there:
        log.info("webhook_removed", source=source_name)
    return there


def listing(runtime: Runtime) -> list[ListedWebhook]:
    """Every webhook with what waits and what is dead, by source."""
    with runtime.engine.begin() as connection:
        every = list(webhooks.every(connection))
        figures = notices.figures(connection, [webhook.source for webhook in every])
    return [
        ListedWebhook(
            **{
                **vars(webhook),
                "url": webhook_url.shown(webhook.url) if webhook.url else None,
                **vars(figures[webhook.source]),
            }
        )
        for webhook in every
        if webhook.source in figures
    ]


def dead_letters(runtime: Runtime, source_name: str, *, limit: int) -> list[DeadLetter]:
    """What was given up, the newest first."""
    with runtime.engine.begin() as connection:
        sources.find(connection, source_name)
        return deliveries.dead(connection, source_name, limit=limit)


def retry(runtime: Runtime, source_name: str) -> Retried:
    """Have all dead letters sent again, under their old ids, and what was put off with them."""
    with runtime.engine.begin() as connection:
        sources.find(connection, source_name)
        webhooks.find(connection, source_name)
        done = deliveries.retry(connection, source_name)
        webhooks.make_due(connection, source_name)
        if done.n_deliveries:
            webhooks.note(connection, source_name, "retry", f"{done.n_notices} notices")
    return done


def history(runtime: Runtime, source_name: str, *, limit: int) -> list[WebhookEvent]:
    """Who did what and when, the newest first."""
    with runtime.engine.begin() as connection:
        sources.find(connection, source_name)
        return webhooks.history(connection, source_name, limit=limit)


def test(runtime: Runtime, source_name: str) -> SampleAnswer:
    """Send a signed sample now, past limit and queue.

    Raises WebhookError if it cannot be sent, DeliveryFailed if it was not taken.
    """
    with runtime.engine.begin() as connection:
        sources.find(connection, source_name)
        webhook = webhooks.find(connection, source_name)
        send = _sender(runtime, webhook)
    began = time.monotonic()
    message_id = f"test-{uuid.uuid4()}"
    try:
        answer = send(message_id, webhook_messages.body(source_name, [_sample()]))
    except NoAnswer as error:
        _note_test(runtime, source_name, str(error))
        raise DeliveryFailed(f"The webhook of {source_name} did not answer: {error}.") from None
    said = webhook_messages.said(answer)
    _note_test(runtime, source_name, f"answered {answer.status}")
    if not answer.ok:
        raise DeliveryFailed(f"The webhook of {source_name} did not take the sample: it {said}")
    return SampleAnswer(
        source=source_name,
        webhook_id=message_id,
        status=answer.status,
        answer=said,
        seconds=round(time.monotonic() - began, 3),
    )


def _sender(runtime: Runtime, webhook: Webhook) -> delivering.Send:
    if webhook.url is None:
        raise WebhookError(
            f"Notices of {webhook.source} are only written; to send them: pgoutlier webhook set {webhook.source} URL"
        )
    return delivering.sender(runtime, webhook)


def _note_test(runtime: Runtime, source_name: str, detail: str) -> None:
    with runtime.engine.begin() as connection:
        webhooks.note(connection, source_name, "test", detail)


def _sample() -> Notice:
    """A notice of no row: its id is 0."""
    return Notice(
        id=0,
        key="sample",
        reconstruction_error=1.0,
        threshold=0.5,
        model_version=0,
        scored_at=datetime.now(UTC),
        top_features=[TopFeature(feature="sample", value=1.0, contribution=1.0)],
    )
