"""What a worker does beyond Celery: when its broker is lost, and when it is asked what it is at."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.control import inspect_command

from pgoutlier.worker.runtime import runtime


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Keeps the messages it has not begun when the connection is lost, for it works them off all the same.

    Celery would first try to put them back on the broker that is gone, which may end the worker by an
    AttributeError.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)


@inspect_command()  # type: ignore[untyped-decorator]
def at_work(state: Any) -> dict[str, Any]:
    """The queues this worker takes from, and the rows a second that its threads have scored of each source of late;
    None where that is not known, because its children score."""
    consumer = state.consumer
    queues = sorted(queue.name for queue in consumer.task_consumer.queues) if consumer.task_consumer else []
    scores_here = consumer.pool.__module__ == "celery.concurrency.thread"
    return {"queues": queues, "rows_per_second": runtime().rates.per_second() if scores_here else None}
