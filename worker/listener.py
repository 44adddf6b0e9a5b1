"""The listener: hears NOTIFY and rings the workers' bell. It decides nothing; lost or doubled rings do no harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from db.engine import KEEPALIVES
from db.errors import first_line
from db.identifiers import CHANNEL

log = structlog.get_logger()

# Rings for one source closer together than this are one ring: a drain goes on until the queue is empty.
_QUIET_SECONDS = 0.005
_RECONNECT_SECONDS = 1.0
_LISTEN_SECONDS = 1.0


def listen(
    conninfo: str, ring: Callable[[str], object], stop: threading.Event, *, on_ready: Callable[[], object]
) -> None:
    """Ring for each source with new queue rows until `stop` is set; reconnects for as long as it takes.

    on_ready is called each time the connection stands, to catch up with what was missed. Neither of the two
    may raise because the broker is away, see worker.app.ring.
    """
    conninfo = make_conninfo(conninfo, **KEEPALIVES)
    while not stop.is_set():
        try:
            with psycopg.connect(
                conninfo, autocommit=True, application_name="pgoutlier listener"
            ) as connection:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                log.info("listening", channel=CHANNEL)
                on_ready()
                _relay(connection, ring, stop)
        except psycopg.OperationalError as error:
            log.warning("listener_disconnected", error=first_line(error))
            stop.wait(_RECONNECT_SECONDS)


def _relay(
    connection: psycopg.Connection[tuple[object, ...]], ring: Callable[[str], object], stop: threading.Event
) -> None:
    last_rung: dict[str, float] = {}
    owed: set[str] = set()
    while not stop.is_set():
        wait = _QUIET_SECONDS if owed else _LISTEN_SECONDS
        for notice in connection.notifies(timeout=wait, stop_after=1):
            owed.add(notice.payload)
        now = time.monotonic()
        for source in [s for s in owed if now - last_rung.get(s, 0.0) >= _QUIET_SECONDS]:
            owed.discard(source)
            last_rung[source] = now
            ring(source)
