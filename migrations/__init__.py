"""Alembic migrations of schema `outlier`."""
