"""What a process works with: settings, an engine, a cache of detectors. Made once a process, on first use."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy import URL, Engine

from pgoutlier.db import embedded
from pgoutlier.db.engine import make_engine, sqlalchemy_url
from pgoutlier.db.settings import Settings, load_settings
from pgoutlier.models_store.registry import DetectorCache
from pgoutlier.models_store.seal import Seal
from pgoutlier.worker.rates import Rates

_MOST_READERS = 64
# Webhooks that may hang at the same time without holding up the others.
_MOST_DELIVERERS = 8


@dataclass(frozen=True)
class Runtime:
    """Passed down to every use case; holds no open connection by itself."""

    settings: Settings
    engine: Engine
    cache: DetectorCache
    # Of sessions that are not shared, where the engine goes through a pooler and such a way was named, too.
    direct: Engine | None = None
    # Set when the process is asked to end: a drain then stops after the batch at hand.
    stopping: threading.Event = field(default_factory=threading.Event)
    # Threads that read ahead. They last as long as the process: memory freed by a thread that ended stays with it.
    readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_MOST_READERS, "read-ahead")
    )
    # Threads that send to webhooks, and the sources for which one is at it: whether it was rung again meanwhile.
    deliverers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_MOST_DELIVERERS, "deliver")
    )
    delivering: dict[str, bool] = field(default_factory=dict)
    delivering_lock: threading.Lock = field(default_factory=threading.Lock)

    # What this process has scored of late.
    rates: Rates = field(default_factory=Rates)
    # How many ranges of jobs, and tasks that keep house, this process works on at a time: with two threads or more one
    # is left for new rows.
    places_beside_scoring: threading.Semaphore = field(default_factory=threading.Semaphore)

    # Whose is the one session by which a drain says that it looks into its queue by itself.
    pacing: threading.Semaphore = field(default_factory=threading.Semaphore)

    @property
    def sessions(self) -> Engine:
        """For what is better done in a session of one's own: locks that outlast transactions."""
        return self.direct or self.engine

    @property
    def seal(self) -> Seal:
        return _seal(self.settings)


def _seal(settings: Settings) -> Seal:
    key = settings.signing_key
    return Seal(settings.artifact_max_bytes, key.get_secret_value() if key else None)


def server_urls(settings: Settings) -> tuple[str, str]:
    """(database URL, broker URL): those configured, and for an unset one that of the embedded server, started."""
    database, broker = settings.database_url, settings.broker_url
    if database and broker:
        return database.get_secret_value(), broker.get_secret_value()
    servers = embedded.ensure_running(settings.data_dir)
    return (
        database.get_secret_value() if database else servers.database_url,
        broker.get_secret_value() if broker else servers.broker_url,
    )


def libpq_url(settings: Settings) -> URL:
    """The database's URL as libpq and its programs read it, the direct one if there are two.

    Raises SettingsError if it cannot be parsed.
    """
    direct = settings.database_direct_url
    url = sqlalchemy_url(direct.get_secret_value() if direct else server_urls(settings)[0])
    return url.set(drivername="postgresql")


def make_runtime(settings: Settings, *, application_name: str = "pgoutlier") -> Runtime:
    """A runtime of its own, for commands and tests."""
    database_url, _ = server_urls(settings)
    direct = settings.database_direct_url
    return Runtime(
        settings=settings,
        # A batch for each thread, and one that is read ahead: nobody waits for one while he holds another.
        engine=make_engine(
            database_url,
            pool_size=settings.score_threads + 1,
            max_overflow=0,
            application_name=application_name,
        ),
        cache=DetectorCache(_seal(settings)),
        direct=make_engine(direct.get_secret_value(), application_name=application_name) if direct else None,
        places_beside_scoring=threading.Semaphore(max(1, settings.score_threads - 1)),
    )


_lock = threading.Lock()


def runtime() -> Runtime:
    """This process's runtime. A forked child gets its own: connections do not survive a fork."""
    with _lock:
        return _runtime_of(os.getpid())


def stop() -> None:
    """Have this process stop after the batch at hand, if it has a runtime at all."""
    with _lock:
        if _runtime_of.cache_info().currsize:
            _runtime_of(os.getpid()).stopping.set()


def follow_threads(n_threads: int) -> None:
    """Have this process's runtime, which is not made yet, be one for so many threads, whatever the settings say."""
    global _n_threads
    _n_threads = n_threads


_n_threads: int | None = None


@lru_cache(maxsize=1)
def _runtime_of(pid: int) -> Runtime:
    settings = load_settings()
    if _n_threads is not None:
        settings = settings.model_copy(update={"score_threads": _n_threads})
    return make_runtime(settings, application_name=f"pgoutlier worker {pid}")
