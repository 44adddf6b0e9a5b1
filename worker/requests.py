"""What a worker does with a message beyond what Celery does."""

from __future__ import annotations

from celery.worker.request import Request
from kombu.transport.virtual import QoS


class BellRequest(Request):  # type: ignore[misc]
    """A message that cannot be acknowledged, because the broker hangs, gives its place free all the same.

    Celery logs such a failure and goes on, but the message would count as one in work for as long as the
    connection lasts, and with as many of them as the worker has threads it would never take another one. The
    broker delivers the message again, which is harmless: it only rings a bell.
    """

    def acknowledge(self) -> None:
        super().acknowledge()
        if not self.message.acknowledged:
            QoS.ack(self.message.channel.qos, self.message.delivery_tag)
