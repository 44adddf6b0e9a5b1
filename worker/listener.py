"""The listener: finds out which sources have new rows in their queue, and rings the workers' bell.

It decides nothing; lost or doubled rings do no harm. While several writers are at it, it is awake: it looks into the
queue every few milliseconds, and they do not notify. Otherwise it sleeps until it is notified, which brings a row to a
worker soonest, and looks now and then, for rows whose writer thought that it was awake. See db.ddl.queue_triggers for
why. Behind a pooler no notification comes: asleep it looks now and then, and awake it is as soon as it has found a row.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgoutlier.db.engine import keepalives, secure, transaction
from pgoutlier.db.errors import first_line
from pgoutlier.db.scoring import bell
from pgoutlier.db.scoring.bell import Look, Session
from pgoutlier.db.sql.identifiers import CHANNEL, FLAGGED_CHANNEL

log = structlog.get_logger()

# Awake: how often the queue is looked into, and for how long after the last new row.
_LOOK_SECONDS = 0.005
_AWAKE_SECONDS = 0.25
# Sessions that notify of a source within this time may wait for each other to do so.
_TOGETHER_SECONDS = 0.25
# A single session that notifies twice within this time is busy with that, and so is who hears it.
_BUSY_SECONDS = 0.003
# Asleep: what a row may wait that no notification tells of. Also how soon a new source is known.
_ASLEEP_LOOK_SECONDS = 0.25
# Awake, where drains look by themselves: how soon it is seen that one does no more.
_PACED_LOOK_SECONDS = 0.02
# Looking takes at most about this part of the time, however long it takes (many sources, many dead rows).
_MOST_LOOKING = 0.1
# A bell is not rung twice within this time: whoever comes goes on until nothing is left.
_QUIET_SECONDS = 0.005
# The same of notices, into which nobody looks before: anybody may notify of them, too.
_QUIET_FLAGGED_SECONDS = 0.25
_RECONNECT_SECONDS = 1.0
# Behind a pooler: how often it notes that it looks.
_NOTE_SECONDS = 5.0


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
    conninfo = make_conninfo(conninfo, **keepalives(conninfo_to_dict(conninfo)))
    while not stop.is_set():
        try:
            with ExitStack() as sessions:
                looking, shared = sessions.enter_context(_session(conninfo, "pgoutlier listener, looks"))
                channels = [] if shared else [CHANNEL, FLAGGED_CHANNEL]
                hearing = sessions.enter_context(_hearing(conninfo, channels)) if channels else None
                log.info("listening", channels=channels)
                on_ready()
                ears = _Ears(hearing, looking, ring, ring_flagged, stop)
                while not stop.is_set():
                    ears.hear()
        except psycopg.Error as error:
            log.warning("listener_disconnected", error=first_line(error))
            stop.wait(_RECONNECT_SECONDS)


@contextmanager
def _hearing(conninfo: str, channels: list[str]) -> Iterator[Session]:
    with _session(conninfo, "pgoutlier listener") as (session, _):
        for channel in channels:
            session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield session


@contextmanager
def _session(conninfo: str, application_name: str) -> Iterator[tuple[Session, bool]]:
    """(a session in autocommit, whether it is shared with others: behind a pooler)."""
    with psycopg.connect(
        conninfo, autocommit=True, prepare_threshold=None, application_name=application_name
    ) as session:
        yield session, secure(session)


@dataclass
class _Bell:
    """One of a source's. owed: whether there is something to say that was not said yet; rung_at: when it was last.

    quiet_seconds: it is not rung twice within this time.
    """

    quiet_seconds: float = _QUIET_SECONDS
    owed: bool = False
    rung_at: float = 0.0

    def due_at(self) -> float:
        return self.rung_at + self.quiet_seconds if self.owed else float("inf")


@dataclass
class _Watched:
    """What is known of one source.

    source_id: by which its locks are known.
    heard_at, heard_of: when a writer notified last, and the process id of its session.
    seen: ids of the rows that were in its queue at the last look. paced: a drain looks into it by itself.
    locked: whether this session has the lock that says so where it is asleep; another listener may have it.
    """

    source_id: int
    rows: _Bell = field(default_factory=_Bell)
    flagged: _Bell = field(default_factory=lambda: _Bell(_QUIET_FLAGGED_SECONDS))
    awake_until: float = 0.0
    heard_at: float = 0.0
    heard_of: int = 0
    seen: frozenset[int] = frozenset()
    paced: bool = False
    asleep: bool = False
    locked: bool = False


@dataclass
class _Ears:
    """Two connections: one on which notifications are heard, and one by which queues are looked into.

    A statement has to take in all notifications that were sent before its result, however many those are; and a look
    shall not wait for them. hearing: None behind a pooler.
    """

    hearing: Session | None
    looking: Session
    ring: Ring
    ring_flagged: Ring
    stop: threading.Event
    sources: dict[str, _Watched] = field(default_factory=dict)
    look_at: float = 0.0
    look_at_all: float = 0.0
    note_at: float = 0.0

    def hear(self) -> None:
        """Wait for the next notification or the time of the next look, whichever comes first, and see to it."""
        next_at = min(
            self.look_at, self.look_at_all, *(each.due_at() for _, _, each in self._bells()), float("inf")
        )
        seconds = max(0.0, next_at - time.monotonic())
        if self.hearing is None:
            self.stop.wait(seconds)
        else:
            # As many as have come by now, which the buffers of the connection bound.
            for notice in self.hearing.notifies(timeout=seconds, stop_after=1):
                self._heard(notice)
        self._ring_owed()
        now = time.monotonic()
        if now >= self.look_at_all:
            self._know_sources()
            took = time.monotonic() - now
            self.look_at_all = now + max(_ASLEEP_LOOK_SECONDS, took / _MOST_LOOKING)
            self._look(list(self.sources), time.monotonic())
        elif now >= self.look_at:
            self._look([name for name, source in self.sources.items() if not source.asleep], now)

    def _bells(self) -> Iterator[tuple[str, Ring, _Bell]]:
        for name, source in self.sources.items():
            yield name, self.ring, source.rows
            yield name, self.ring_flagged, source.flagged

    def _ring_owed(self) -> None:
        for name, ring, each in self._bells():
            now = time.monotonic()
            if now >= each.due_at():
                each.owed, each.rung_at = False, now
                ring(name)

    def _heard(self, notice: psycopg.Notify) -> None:
        """Anybody may notify: what is no source is dropped at once."""
        source = self.sources.get(_source_of(notice))
        if source is None:
            return
        if notice.channel == FLAGGED_CHANNEL:
            source.flagged.owed = True
            return
        if not source.asleep:
            return  # and looks into the queue by itself, however often somebody notifies
        # The rows may be seen once more by the next look, and rung for twice: better than to ask before the first.
        source.rows.owed = True
        now = time.monotonic()
        since = now - source.heard_at
        if since < _BUSY_SECONDS or (notice.pid != source.heard_of and since < _TOGETHER_SECONDS):
            source.awake_until = now + _AWAKE_SECONDS
            self._sleep_or_wake()
            self.look_at = now + _LOOK_SECONDS
        source.heard_at, source.heard_of = now, notice.pid

    def _asking(self) -> AbstractContextManager[None]:
        return transaction(self.looking, shared=self.hearing is None)

    def _note(self) -> None:
        """Be seen by `status`: behind a pooler there is no session to be seen."""
        if self.hearing is not None or time.monotonic() < self.note_at:
            return
        # Without the right to note it, or before the schema is there, it looks all the same.
        with suppress(psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege), self._asking():
            bell.note_looking(self.looking, f"{socket.gethostname()}:{os.getpid()}")
        self.note_at = time.monotonic() + _NOTE_SECONDS

    def _know_sources(self) -> None:
        self._note()
        with self._asking():
            ids = bell.audible(self.looking)
        known = {n: source for n, source in self.sources.items() if ids.get(n) == source.source_id}
        bell.wake_up(self.looking, {n for n, s in self.sources.items() if s.locked and n not in known})
        self.sources = {name: known.get(name) or _Watched(source_id) for name, source_id in ids.items()}

    def _look(self, names: list[str], now: float) -> None:
        """Ring for those of these sources that have rows which were not there at the last look."""
        found: dict[str, Look] = {}
        with suppress(psycopg.errors.UndefinedTable), self._asking():  # detached just now
            found = bell.newest(self.looking, {n: self.sources[n].source_id for n in names}) if names else {}
        took = time.monotonic() - now
        for name, look in found.items():
            source = self.sources[name]
            new = look.ids - source.seen
            source.rows.owed |= bool(new)
            if (new and (self.hearing is None or not source.asleep)) or look.paced:
                source.awake_until = now + _AWAKE_SECONDS
            source.seen, source.paced = look.ids, look.paced
        self._ring_owed()
        self._sleep_or_wake()
        awake = [source for source in self.sources.values() if not source.asleep]
        soon = _PACED_LOOK_SECONDS if all(source.paced for source in awake) else _LOOK_SECONDS
        pause = min(max(soon, took / _MOST_LOOKING), _ASLEEP_LOOK_SECONDS)
        self.look_at = time.monotonic() + pause if awake else float("inf")

    def _sleep_or_wake(self) -> None:
        """Say to the writers what has changed."""
        now = time.monotonic()
        tired = {name for name, source in self.sources.items() if now >= source.awake_until}
        if self.hearing is None:
            for name, source in self.sources.items():
                source.asleep = name in tired
            return
        locked = {name for name, source in self.sources.items() if source.locked}
        bell.wake_up(self.looking, locked - tired)
        locked = (locked & tired) | bell.fall_asleep(self.looking, tired - locked)
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
