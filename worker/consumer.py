"""What a worker does, beyond Celery, when its broker is lost."""

from __future__ import annotations

from celery.worker.consumer import Consumer


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Keeps the messages it has not begun when the connection is lost, for it works them off all the same.

    Celery would first try to put them back on the broker that is gone, which may end the worker by an
    AttributeError.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)
