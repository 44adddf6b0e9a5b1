"""The broker as a worker has it: what arrives there may be anything, and it may refuse what it is asked for a while.

Kombu's transport for Redis, but that an item which is no message is dropped. Whoever reaches the broker can put one
there, and it would end the worker.
"""

from __future__ import annotations

from typing import Any

import structlog
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

log = structlog.get_logger()

# What an item that is not what it should be raises, in whoever looks into it first. A KeyError would count as a lost
# connection. A connection that is lost, and an answer of the broker's that is an error, are none of these.
_NO_MESSAGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


class Channel(redis.Channel):  # type: ignore[misc]
    """Drops what is not JSON, and is made anew where it was closed amid a refusal of the broker's."""

    def basic_publish(self, *args: Any, **options: Any) -> Any:
        """Raises what kombu answers by connecting again, where this channel has no connection any more."""
        if self.connection is None:
            raise ConnectionError("the channel to the broker was closed")
        return super().basic_publish(*args, **options)

    def maybe_refresh_binding_expiry(self) -> None:
        """Called every second. Kombu would log each refusal with a traceback, and try again all the same."""
        try:
            super().maybe_refresh_binding_expiry()
        except self.ResponseError as error:
            log.warning("broker_unavailable", error=str(error))

    def _brpop_read(self, **options: Any) -> bool | None:
        try:
            return bool(super()._brpop_read(**options))
        except (ValueError, RecursionError) as error:
            dropped(error)
            return True

    def _handle_message(self, client: Any, response: Any) -> dict[str, Any]:
        """Of those to all workers: one without data is passed over."""
        payload: dict[str, Any] = super()._handle_message(client, response)
        if bytes_to_str(payload["type"]).endswith("message"):
            try:
                loads(bytes_to_str(payload["data"]))
            except _NO_MESSAGE as error:
                dropped(error)
                return {**payload, "data": None}
        return payload


class Transport(redis.Transport):  # type: ignore[misc]
    """Drops what is JSON and no message."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            _check(message)
            super()._deliver(message, queue)
        except _NO_MESSAGE as error:
            dropped(error, queue=queue)
            self._free_its_place(message)

    def _free_its_place(self, message: Any) -> None:
        """A worker takes no more messages than it has threads: this one takes none of their places."""
        try:
            tag = message["properties"]["delivery_tag"]
            holding = [channel for channel in self.channels if tag in channel.qos._delivered]
        except _NO_MESSAGE:
            return
        for channel in holding:
            channel.qos.ack(tag)


def _check(message: Any) -> None:
    """Raises TypeError for what Celery finds out when it hands a task on: too late to take its place back."""
    headers = message.get("headers") or {}
    if not isinstance(headers.get("task", ""), str) or not isinstance(headers.get("id", ""), str):
        raise TypeError("task and id are text")
    limits = headers.get("timelimit") or (None, None)
    if len(limits) != 2 or not all(isinstance(limit, int | float | None) for limit in limits):
        raise TypeError("timelimit is a pair of numbers")


def dropped(error: object, **fields: object) -> None:
    """Say that an item was dropped, and why; never what it held, which may be a secret."""
    log.error(
        "message_dropped", reason=type(error).__name__ if isinstance(error, Exception) else error, **fields
    )
