"""The listener: finds out which sources have new rows in their queue, and rings the workers' bell.

It decides nothing; lost or doubled rings do no harm. While rows come fast it is awake: it looks into the queue every
few milliseconds, and writers do not notify. Otherwise it sleeps until it is notified, which brings a row to a worker
soonest, and looks now and then, for rows whose writer thought that it was awake. See db.ddl.queue_triggers for why.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgoutlier.db.engine import KEEPALIVES
from pgoutlier.db.errors import first_line
from pgoutlier.db.scoring import bell
from pgoutlier.db.sql.identifiers import CHANNEL, FLAGGED_CHANNEL

log = structlog.get_logger()

# Awake: how often the queue is looked into, and for how long after rows have come fast, which is two between looks.
_LOOK_SECONDS = 0.005
_FAST = 2
_AWAKE_SECONDS = 0.25
# Asleep: what a row may wait that no notification tells of. Also how soon a new source is known.
_ASLEEP_LOOK_SECONDS = 0.25
# Looking takes at most this part of the time, however long it takes (many sources, many dead rows).
_MOST_LOOKING = 0.1
# Of one source there is nothing to say twice within this time: who delivers goes on until nothing is left.
_QUIET_SECONDS = 0.005
_RECONNECT_SECONDS = 1.0


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
    conninfo = make_conninfo(conninfo, **KEEPALIVES)
    while not stop.is_set():
        try:
            with psycopg.connect(conninfo, autocommit=True, application_name="pgoutlier listener") as session:
                channels = (CHANNEL, FLAGGED_CHANNEL)
                for channel in channels:
                    session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                log.info("listening", channels=list(channels))
                on_ready()
                ears = _Ears(session, ring, ring_flagged)
                while not stop.is_set():
                    ears.hear()
        except psycopg.Error as error:
            log.warning("listener_disconnected", error=first_line(error))
            stop.wait(_RECONNECT_SECONDS)


@dataclass
class _Watched:
    """What is known of one source. seen: ids of the rows that were in its queue at the last look.

    locked: whether this session has the lock that says so where it is asleep; another listener may have it.
    """

    awake_until: float = 0.0
    heard_at: float = 0.0
    seen: frozenset[int] = frozenset()
    asleep: bool = False
    locked: bool = False
    flagged_at: float = 0.0
    flagged_owed: bool = False


@dataclass
class _Ears:
    """One connection, on which notifications are heard and queues looked into."""

    session: bell.Session
    ring: Ring
    ring_flagged: Ring
    sources: dict[str, _Watched] = field(default_factory=dict)
    look_at: float = 0.0
    look_at_all: float = 0.0

    def hear(self) -> None:
        """Wait for the next notification or the time of the next look, whichever comes first, and see to it."""
        wait = max(0.0, min(self.look_at, self.look_at_all, self._owed_at()) - time.monotonic())
        for notice in self.session.notifies(timeout=wait, stop_after=1):
            self._heard(notice)
        now = time.monotonic()
        self._ring_flagged(now)
        if now >= self.look_at_all:
            self._know_sources()
            self.look_at_all = now + _ASLEEP_LOOK_SECONDS
            self._look(list(self.sources), now)
            self.look_at_all = max(self.look_at_all, time.monotonic() + self._took(now))
        elif now >= self.look_at:
            self._look([name for name, source in self.sources.items() if not source.asleep], now)

    def _heard(self, notice: psycopg.Notify) -> None:
        """Anybody may notify: what is no source is dropped at once."""
        source = self.sources.get(_source_of(notice))
        if source is None:
            return
        if notice.channel == FLAGGED_CHANNEL:
            source.flagged_owed = True
            return
        # The rows may be seen once more by the next look, and rung for twice: better than to ask before the first.
        self.ring(notice.payload)
        heard_before, source.heard_at = source.heard_at, time.monotonic()
        if source.heard_at - heard_before < _LOOK_SECONDS:
            source.awake_until = source.heard_at + _AWAKE_SECONDS
            self._sleep_or_wake()
            self.look_at = time.monotonic() + _LOOK_SECONDS

    def _owed_at(self) -> float:
        owed = [source.flagged_at + _QUIET_SECONDS for source in self.sources.values() if source.flagged_owed]
        return min(owed, default=float("inf"))

    def _ring_flagged(self, now: float) -> None:
        for name, source in self.sources.items():
            if source.flagged_owed and now >= source.flagged_at + _QUIET_SECONDS:
                source.flagged_owed, source.flagged_at = False, now
                self.ring_flagged(name)

    def _know_sources(self) -> None:
        names = bell.audible(self.session)
        bell.wake_up(self.session, {n for n, source in self.sources.items() if source.locked} - set(names))
        self.sources = {name: self.sources.get(name) or _Watched() for name in names}

    def _look(self, names: list[str], now: float) -> None:
        """Ring for those of these sources that have rows which were not there at the last look."""
        found: dict[str, list[int]] = {}
        with suppress(psycopg.errors.UndefinedTable):  # detached just now
            found = bell.newest(self.session, names) if names else {}
        for name in names:
            source, ids = self.sources[name], frozenset(found.get(name, ()))
            new = ids - source.seen
            if new:
                self.ring(name)
            if len(new) >= _FAST:
                source.awake_until = now + _AWAKE_SECONDS
            source.seen = ids
        self._sleep_or_wake()
        awake = any(not source.asleep for source in self.sources.values())
        self.look_at = time.monotonic() + max(_LOOK_SECONDS, self._took(now)) if awake else float("inf")

    def _took(self, since: float) -> float:
        """How long to leave the queues alone after a look that began then.

        No longer than asleep: one look that a busy machine held up would make rows wait for ten times as long.
        """
        return min((time.monotonic() - since) / _MOST_LOOKING, _ASLEEP_LOOK_SECONDS)

    def _sleep_or_wake(self) -> None:
        """Say to the writers what has changed."""
        now = time.monotonic()
        tired = {name for name, source in self.sources.items() if now >= source.awake_until}
        locked = {name for name, source in self.sources.items() if source.locked}
        bell.wake_up(self.session, locked - tired)
        locked = (locked & tired) | bell.fall_asleep(self.session, tired - locked)
        for name, source in self.sources.items():
            if name in tired and not source.asleep:
                self.look_at_all = now  # at what was committed before writers knew
            source.asleep, source.locked = name in tired, name in locked


def _source_of(notice: psycopg.Notify) -> str:
    if notice.channel != FLAGGED_CHANNEL:
        return notice.payload
    try:
        return str(json.loads(notice.payload)["source"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return notice.payload
