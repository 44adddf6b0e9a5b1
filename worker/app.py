"""The Celery application."""

from __future__ import annotations

from celery import Celery

app = Celery("pgoutlier")
app.config_from_object("worker.celery_config")
