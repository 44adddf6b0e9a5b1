"""Beat's scheduler: looks into outlier.schedules every second. Any number of beats may run at once."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psycopg
import structlog
from celery.beat import Scheduler
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pgoutlier.db import migrate
from pgoutlier.db.errors import SchemaNotReady, first_line
from pgoutlier.db.schedules import schedules
from pgoutlier.db.settings import load_settings
from pgoutlier.db.sql.statements import sqlstate
from pgoutlier.worker.runtime import make_runtime
from pgoutlier.worker.schedules import scheduling

log = structlog.get_logger()

# A change by SQL is in effect after at most this; together with a slow server still within five seconds.
LOOK_SECONDS = 1.0
# While another beat is about to send what is due.
_SHORTEST_SECONDS = 0.05
# How often a beat notes that it ticks.
_NOTE_SECONDS = 5.0
_UNDEFINED_TABLE, _UNDEFINED_SCHEMA = "42P01", "3F000"


class PostgresScheduler(Scheduler):  # type: ignore[misc]
    """Celery asks it to tick, and sleeps for as long as it says. It outlives servers that are away."""

    def setup_schedule(self) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._runtime = make_runtime(load_settings(), application_name=f"pgoutlier beat {os.getpid()}")
        self._ready = False
        self._noted_at = 0.0
        self._trouble: str | None = None

    @property
    def schedule(self) -> dict[str, Any]:
        """Nothing is kept in memory."""
        return {}

    def tick(self, *_: Any, **__: Any) -> float:
        """Send what is due. Returns the seconds until it is worth looking again."""
        try:
            if not self._ready:
                self._begin()
            wait = scheduling.tick(self._runtime, self._name)
            self._note()
        except scheduling.BROKER_AWAY as error:
            return self._wait_for("broker_unavailable", str(error))
        except (DBAPIError, PoolTimeout, psycopg.Error) as error:
            return self._wait_for("schedules_unreadable", self._sentence(error))
        self._trouble = None
        return LOOK_SECONDS if wait is None else min(LOOK_SECONDS, max(_SHORTEST_SECONDS, wait))

    def _begin(self) -> None:
        with self._runtime.engine.begin() as connection:
            scheduling.seed(connection, follow=True)
            schedules.forget_old_beats(connection)
            schedules.tick(connection, self._name)
        self._ready = True
        log.info("beat_ready", beat=self._name)

    def _note(self) -> None:
        if time.monotonic() - self._noted_at >= _NOTE_SECONDS:
            with self._runtime.engine.begin() as connection:
                schedules.tick(connection, self._name)
            self._noted_at = time.monotonic()

    def _wait_for(self, event: str, error: str) -> float:
        """Say it once, not every second."""
        if self._trouble != event:
            self._trouble = event
            log.warning(event, error=error)
        return LOOK_SECONDS

    def _sentence(self, error: BaseException) -> str:
        if sqlstate(error) in {_UNDEFINED_TABLE, _UNDEFINED_SCHEMA}:
            try:
                with self._runtime.engine.begin() as connection:
                    migrate.require_current(connection)
            except SchemaNotReady as not_ready:
                return str(not_ready)
        return first_line(error)
