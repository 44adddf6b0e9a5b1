"""Champions made ready beside scoring, so that the first row of most sources does not wait for its own."""

from __future__ import annotations

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.db.sources import sources
from pgoutlier.models_store import registry
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()


def warm_up(runtime: Runtime) -> None:
    """Load the champions and build their scorers, one after the other, as many as the process keeps.

    A row that comes meanwhile loads the champion of its own source by itself.
    """
    n_ready = 0
    try:
        with runtime.engine.begin() as connection:
            every = list(sources.every(connection))
        for source in every:
            if runtime.stopping.is_set() or not runtime.cache.has_room():
                break
            try:
                with runtime.engine.begin() as connection:
                    champion = registry.champion(connection, source, runtime.cache)
            except ArtifactRefused:
                continue
            if champion is not None:
                champion.detector.warm_up()
                log.info("detector_ready", source=source.name, version=champion.version)
                n_ready += 1
    except (SQLAlchemyError, psycopg.Error, PgoutlierError) as error:
        log.warning("not_warmed_up", error=str(error))
        return
    log.info("warmed_up", n_detectors=n_ready, n_sources=len(every))
