"""What a label column says: fraud, not fraud, or nothing."""

from __future__ import annotations

from psycopg import sql

from db.statements import compose

# How a label column says fraud, in any case; anything else says that the row is none. NULL says nothing.
FRAUD_LABELS = ("1", "1.0", "t", "true", "y", "yes", "fraud", "anomaly")


def is_fraud(column: sql.Composable) -> sql.Composable:
    """SQL for whether the label in `column`, of any type, says fraud; NULL where it is NULL."""
    words = sql.SQL(", ").join(sql.Literal(word) for word in FRAUD_LABELS)
    return compose("(lower({column}::text) IN ({words}))", column=column, words=words)
