"""What worker processes do around their tasks: one log format, and detectors ready before the first row."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import psycopg
import structlog
from celery.signals import celeryd_after_setup, setup_logging, worker_ready, worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.db.settings import load_settings
from pgoutlier.db.sources import sources
from pgoutlier.detector import load_onnx_runtime
from pgoutlier.models_store import registry
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.worker.app import app, ring
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.runtime import runtime

log = structlog.get_logger()

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


@setup_logging.connect
def _one_log_format(loglevel: int = 20, **_: Any) -> None:
    configure_logs(load_settings().log_format, level=int(loglevel))


@celeryd_after_setup.connect
def _warm_up(instance: Any, **_: Any) -> None:
    """Load the champions and build their scorers, where threads score; processes would each have to for themselves."""
    if (
        "score" not in instance.app.amqp.queues.consume_from
        or instance.pool_cls.__module__ != "celery.concurrency.thread"
    ):
        return
    _keep_one_heap()
    load_onnx_runtime()  # which the first row need not wait for even if there is no champion yet
    try:
        here = runtime()
        with here.engine.begin() as connection:
            for source in sources.every(connection):
                try:
                    champion = registry.champion(connection, source, here.cache)
                except ArtifactRefused:
                    continue
                if champion is not None:
                    champion.detector.warm_up()
                    log.info("detector_ready", source=source.name, version=champion.version)
    except (SQLAlchemyError, psycopg.Error, PgoutlierError) as error:
        log.warning("not_warmed_up", error=str(error))


def _keep_one_heap() -> None:
    """Have the threads share one heap: by glibc's default each keeps what it has freed, and no other uses that.

    They spend their time in PostgreSQL and in ONNX Runtime, so they do not wait for each other here.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@worker_ready.connect
def _catch_up(sender: Any, **_: Any) -> None:
    """Rows that have waited are not made to wait for the next tick of beat."""
    if "score" in sender.app.amqp.queues.consume_from:
        ring(app.tasks["score.drain_all"])


@worker_shutting_down.connect
def _stop_after_this_batch(**_: Any) -> None:
    runtime().stopping.set()
