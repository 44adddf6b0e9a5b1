"""Anomaly scoring inside PostgreSQL, with a job queue.

The packages `db`, `detector`, `migrations`, `models_store` and `worker` lie beside this folder in a checkout, and are
installed inside of it: `pgoutlier.db`, `pgoutlier.worker` and so on (see setup.py).
"""
