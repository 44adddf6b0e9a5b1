"""What a worker does beyond Celery: when its broker is lost, refuses or holds no task, and when it is asked what it is
at."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger
from celery.worker.consumer import Consumer
from celery.worker.control import inspect_command
from kombu.message import Message

from pgoutlier.worker import broker
from pgoutlier.worker.runtime import runtime

logger = get_logger(__name__)


# How long a broker is left alone that answers with an error: a replica, one that has no memory left.
_REFUSED_SECONDS = 1.0


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Keeps the messages it has not begun when the connection is lost, for it works them off all the same.

    Celery would first try to put them back on the broker that is gone, which may end the worker by an
    AttributeError. And it would log the content of a message that is no task of ours.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)
        self._wait_if_refused(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        self._wait_if_refused(exc)

    def _wait_if_refused(self, exc: Exception) -> None:
        if isinstance(exc, self.channel_errors):
            runtime().stopping.wait(_REFUSED_SECONDS)

    def on_unknown_message(self, body: object, message: Message) -> None:
        self._drop(message, "no task is named")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        self._drop(message, "there is no such task")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        self._drop(message, exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._drop(message, exc)

    def _drop(self, message: Message, why: Exception | str) -> None:
        broker.dropped(why)
        message.reject_log_error(logger, self.connection_errors)


@inspect_command()  # type: ignore[untyped-decorator]
def at_work(state: Any) -> dict[str, Any]:
    """The queues this worker takes from, and the rows a second that its threads have scored of each source of late;
    None where that is not known, because its children score."""
    consumer = state.consumer
    queues = sorted(queue.name for queue in consumer.task_consumer.queues) if consumer.task_consumer else []
    scores_here = consumer.pool.__module__ == "celery.concurrency.thread"
    return {"queues": queues, "rows_per_second": runtime().rates.per_second() if scores_here else None}
