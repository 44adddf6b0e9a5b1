"""The Celery application."""

from __future__ import annotations

from typing import Any

import psycopg
import structlog
from celery import Celery, Task
from kombu.exceptions import OperationalError as BrokerUnavailable
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pgoutlier.db.errors import PgoutlierError, first_line

log = structlog.get_logger()

_LONGEST_ERROR = 1_000  # characters: it may quote an argument, which may be anything


class OurTask(Task):  # type: ignore[misc]
    """A failure that is no fault of the program is logged as one line; Celery would log a long traceback."""

    throws = (PgoutlierError, OperationalError, PoolTimeout, psycopg.OperationalError)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if isinstance(exc, self.throws):
            # Without its arguments: the URL of a webhook is a secret.
            log.warning("task_failed", task=self.name, id=task_id, error=first_line(exc)[:_LONGEST_ERROR])


def ring(task: Task, *args: object, expires_seconds: float | None = None, **kwargs: object) -> None:
    """Send a task that only rings a bell. A broker that is away is no reason to stop: beat finds the work."""
    try:
        task.apply_async(args, kwargs, expires=expires_seconds)
    except (BrokerUnavailable, ConnectionError, TimeoutError) as error:
        log.warning("broker_unavailable", error=str(error))


# By name: who only sends a task need not import it before.
for scheme in ("redis", "rediss"):
    TRANSPORT_ALIASES[scheme] = "pgoutlier.worker.broker:Transport"
app = Celery("pgoutlier", task_cls=OurTask)
app.config_from_object("pgoutlier.worker.celery_config")
