"""The job queue: Celery application, tasks, and the use cases behind them. `celery -A worker worker` starts here."""

from worker.app import app

__all__ = ["app"]
