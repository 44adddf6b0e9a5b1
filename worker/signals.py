"""What worker processes do around their tasks: one log format, and a score worker made ready."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from contextlib import suppress
from typing import Any

from celery.signals import (
    beat_init,
    celeryd_after_setup,
    setup_logging,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)

from pgoutlier.db.settings import load_settings
from pgoutlier.detector import load_onnx_runtime
from pgoutlier.worker.app import app, ring
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.processes import ending_with, heeded_once
from pgoutlier.worker.runtime import follow_threads, runtime, stop
from pgoutlier.worker.warming import warm_up

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
_CHILDREN_SECONDS = 0.1


@setup_logging.connect
def _one_log_format(loglevel: int = 20, **_: Any) -> None:
    configure_logs(load_settings().log_format, level=int(loglevel))


@celeryd_after_setup.connect
def _prepare_to_score(instance: Any, **_: Any) -> None:
    if not _scores_in_threads(instance):
        return
    if isinstance(instance.concurrency, int):
        follow_threads(instance.concurrency)
    _keep_one_heap()
    load_onnx_runtime()  # which the first row need not wait for


def _keep_one_heap() -> None:
    """Have the threads share one heap: by glibc's default each keeps what it has freed, and no other uses that.

    They spend their time in PostgreSQL and in ONNX Runtime, so they do not wait for each other here.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@worker_ready.connect
def _catch_up(sender: Any, **_: Any) -> None:
    """Rows that have waited are not made to wait for the next tick of beat, nor for champions other than their own."""
    if "score" in sender.app.amqp.queues.consume_from:
        ring(app.tasks["score.drain_all"])
    if _scores_in_threads(sender.controller):
        threading.Thread(target=warm_up, args=(runtime(),), name="warm-up", daemon=True).start()


def _scores_in_threads(worker: Any) -> bool:
    """Processes would each have to get ready for themselves."""
    takes = worker.app.amqp.queues.consume_from
    return "score" in takes and worker.pool_cls.__module__ == "celery.concurrency.thread"


@worker_ready.connect
def _replace_children_at_once(sender: Any, **_: Any) -> None:
    """A train worker's next task need not wait for the child that will work on it.

    Celery looks for ended children when the pipe of one closes, most often a moment before the kernel says that it has
    ended, and by itself every five seconds only.
    """
    if sender.pool.__module__ == "celery.concurrency.prefork" and sender.hub is not None:
        sender.hub.call_repeatedly(_CHILDREN_SECONDS, sender.pool.maintain_pool)


@beat_init.connect
@worker_ready.connect
def _be_asked_once(**_: Any) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        signal.signal(signal.SIGTERM, heeded_once(handler))


@worker_process_init.connect
def _end_with_the_worker(**_: Any) -> None:
    if ask := ending_with(os.getppid()):
        ask()


@worker_shutting_down.connect
def _stop_after_this_batch(**_: Any) -> None:
    # This runs in whatever the signal has interrupted, which may hold the locks that it takes to say so.
    threading.Thread(target=stop, name="stop", daemon=True).start()
