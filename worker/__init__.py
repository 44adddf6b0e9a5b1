"""The job queue: Celery application, tasks, and the use cases behind them; `celery -A pgoutlier.worker` starts here."""

from pgoutlier.worker.app import app

__all__ = ["app"]
