"""The Celery application."""

from __future__ import annotations

from typing import Any

import psycopg
import structlog
from celery import Celery, Task
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.errors import PgoutlierError

log = structlog.get_logger()


class OneLineFailure(Task):  # type: ignore[misc]
    """A failure that is no fault of the program is logged as one line; Celery would log a long traceback."""

    throws = (PgoutlierError, OperationalError, PoolTimeout, psycopg.OperationalError)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if isinstance(exc, self.throws):
            lines = str(getattr(exc, "orig", None) or exc).strip().splitlines()
            log.warning("task_failed", task=self.name, args=args, error=lines[0] if lines else "")


app = Celery("pgoutlier", task_cls=OneLineFailure)
app.config_from_object("worker.celery_config")
