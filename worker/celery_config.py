"""Celery's configuration, read when the application is first used; nothing connects when `worker` is imported."""

from __future__ import annotations

from pgoutlier.db.settings import load_settings
from pgoutlier.worker.runtime import server_urls

_settings = load_settings()
_, broker_url = server_urls(_settings)

# Results live in Postgres: scores, training_runs, alias_events.
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]
timezone = "UTC"
enable_utc = True

task_default_queue = "admin"
task_routes = {
    "score.drain": {"queue": "score"},
    "score.drain_all": {"queue": "score"},
    "jobs.work": {"queue": "score"},
    "models.train": {"queue": "train"},
    "webhook.deliver": {"queue": "score"},
    "webhook.deliver_all": {"queue": "score"},
}
# A message only says that there may be work, so it is taken off the broker when it is received, and a worker
# holds no more of them than it has threads.
task_acks_late = False
worker_prefetch_multiplier = 1
worker_consumer = "pgoutlier.worker.consumer:PatientConsumer"
worker_hijack_root_logger = False
worker_cancel_long_running_tasks_on_connection_loss = False
worker_send_task_events = False
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A broker that answers with an error, as one that has become a replica does, may serve again later.
broker_channel_error_retry = True
# A broker that hangs must not hold up those who only ring a bell. Longer than the second a worker's BRPOP takes.
broker_transport_options = {
    "global_keyprefix": _settings.broker_key_prefix,
    "socket_connect_timeout": 5,
    "socket_timeout": 5,
    "socket_keepalive": True,
    # The broker keeps no list of messages that were received, so there is nothing to tell a broker that hangs or
    # is gone when one is begun: failing in that would cost the worker a place, or its life.
    "ack_emulation": False,
}
task_publish_retry_policy = {"max_retries": 1, "interval_start": 0.1}

imports = ("pgoutlier.worker.tasks", "pgoutlier.worker.signals")
# Which schedules there are and what is due is decided in Postgres, so beat keeps no state of its own.
beat_scheduler = "pgoutlier.worker.schedules.beat:PostgresScheduler"
beat_max_loop_interval = 1
# Beat puts these into outlier.schedules, where they can be changed; until then they keep to the settings.
beat_schedule = {
    "drain": {"task": "score.drain_all", "schedule": _settings.drain_every_seconds},
    "jobs": {"task": "jobs.work_all", "schedule": _settings.drain_every_seconds},
    "deliver": {"task": "webhook.deliver_all", "schedule": _settings.deliver_every_seconds},
    "sweep": {"task": "score.sweep_all", "schedule": _settings.sweep_every_seconds},
    "retrain": {
        "task": "models.train_due",
        "schedule": min(60.0, _settings.retrain_every_seconds),
    },
    "drift": {"task": "drift.measure_all", "schedule": _settings.drift_every_seconds},
    "prune": {"task": "maintenance.prune_all", "schedule": _settings.prune_every_seconds},
}
