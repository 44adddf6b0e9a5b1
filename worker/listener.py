"""The listener: hears NOTIFY and rings the workers' bell. It decides nothing; lost or doubled rings do no harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgoutlier.db.engine import KEEPALIVES
from pgoutlier.db.errors import first_line
from pgoutlier.db.sql.identifiers import CHANNEL, FLAGGED_CHANNEL

log = structlog.get_logger()

# Rings for one source closer together than this are one ring: a drain goes on until the queue is empty.
_QUIET_SECONDS = 0.005
_RECONNECT_SECONDS = 1.0
_LISTEN_SECONDS = 1.0


# Called with the name of a source.
Ring = Callable[[str], object]


def listen(
    conninfo: str,
    ring: Ring,
    stop: threading.Event,
    *,
    ring_flagged: Ring,
    on_ready: Callable[[], object],
) -> None:
    """Ring for each source with new queue rows until `stop` is set; reconnects for as long as it takes.

    ring_flagged is called for each source with new notices. on_ready is called each time the connection stands, to
    catch up with what was missed. None of the three may raise because the broker is away, see worker.app.ring.
    """
    rings = {CHANNEL: ring, FLAGGED_CHANNEL: ring_flagged}
    conninfo = make_conninfo(conninfo, **KEEPALIVES)
    while not stop.is_set():
        try:
            with psycopg.connect(
                conninfo, autocommit=True, application_name="pgoutlier listener"
            ) as connection:
                for channel in rings:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                log.info("listening", channels=list(rings))
                on_ready()
                _relay(connection, rings, stop)
        except psycopg.OperationalError as error:
            log.warning("listener_disconnected", error=first_line(error))
            stop.wait(_RECONNECT_SECONDS)


def _relay(
    connection: psycopg.Connection[tuple[object, ...]], rings: Mapping[str, Ring], stop: threading.Event
) -> None:
    last_rung: dict[tuple[str, str], float] = {}
    owed: set[tuple[str, str]] = set()
    while not stop.is_set():
        wait = _QUIET_SECONDS if owed else _LISTEN_SECONDS
        for notice in connection.notifies(timeout=wait, stop_after=1):
            owed.add((notice.channel, _source_of(notice)))
        now = time.monotonic()
        for bell in [b for b in owed if now - last_rung.get(b, 0.0) >= _QUIET_SECONDS]:
            owed.discard(bell)
            last_rung[bell] = now
            channel, source = bell
            rings[channel](source)


def _source_of(notice: psycopg.Notify) -> str:
    """Anybody may notify: what is no source is found out by the task."""
    if notice.channel != FLAGGED_CHANNEL:
        return notice.payload
    try:
        return str(json.loads(notice.payload)["source"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return notice.payload
