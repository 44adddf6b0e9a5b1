"""Installs the folders of this checkout inside `pgoutlier`; everything else is said in pyproject.toml.

Under their own names they would take `db`, `worker` and `migrations` from every other program of the environment.
"""

from setuptools import find_packages, setup

FOLDERS = ("db", "detector", "migrations", "models_store", "worker")

setup(
    packages=["pgoutlier"]
    + [f"pgoutlier.{name}" for name in find_packages() if name.partition(".")[0] in FOLDERS],
    package_dir={"pgoutlier": "pgoutlier", **{f"pgoutlier.{name}": name for name in FOLDERS}},
)
