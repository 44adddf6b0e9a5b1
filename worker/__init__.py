"""The job queue: Celery application, tasks, and the use cases behind them; `celery -A pgoutlier.worker` starts here."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`celery`, the application, is imported when Celery asks for it: not every process needs it."""
    if name != "celery":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pgoutlier.worker.app import app

    return app
