"""What the detector gets of single rows now, beside what stands in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgoutlier.db.errors import SourceError
from pgoutlier.db.report import report_rows
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.typed_keys import Word
from pgoutlier.db.sources import sources
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class RowValues:
    """key: as text, or of several columns by the user's names. features: by name, None where the row has none.

    columns: those of the row as it is now. problem: PostgreSQL's sentence where the features cannot be read.
    """

    key: str | dict[str, Any]
    features: dict[str, float | None]
    columns: dict[str, Any]
    problem: str | None


def of_rows(runtime: Runtime, source_name: str, words: Sequence[Word]) -> list[RowValues]:
    """Of the rows with these keys, in their order.

    Features that a version makes numbers of are as the champion makes them; without one, as they are read. Raises
    SourceError if there is no such source, or no row with one of the keys.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        definition = source.definition
        keys = [typed_keys.read(definition, word) for word in typed_keys.together(definition, words)]
        columns = report_rows.columns_of(connection, definition, keys)
        absent = next((key for key, found in zip(keys, columns, strict=True) if found is None), None)
        if absent is not None:
            raise SourceError(f"There is no row of {source_name} with the key {absent!r}.")
        values = [int(key) for key in keys] if definition.key.is_counted else keys
        places, rows = report_rows.features_of(connection, definition, values)
        matrix = rows.matrix
        champion = registry.champion(connection, source, runtime.cache) if definition.codes else None
        if champion is not None:
            matrix = champion.detector.encoded(matrix)
        found = {place: row for row, place in enumerate(places.tolist())}
        return [
            RowValues(
                key=definition.key.by_column(key),
                features=_named(definition.feature_names, matrix[found[n]]) if n in found else {},
                columns=columns[n] or {},
                problem=rows.refusals.get(key) if n in found else "the feature view has no row with this key",
            )
            for n, key in enumerate(keys)
        ]


def _named(names: Sequence[str], row: np.ndarray) -> dict[str, float | None]:
    return {
        name: value if np.isfinite(value) else None for name, value in zip(names, row.tolist(), strict=True)
    }
