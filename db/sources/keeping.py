"""What was asked for of the scores themselves: how long they are kept, and in which partitions."""

from __future__ import annotations

import re
from typing import get_args

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source.catalog import RelationInfo
from pgoutlier.db.source.definition import MAX_KEEP_DAYS, Period, SourceDefinition

# Until their row is gone.
FOREVER = "forever"
_DAYS = re.compile(r"([0-9]{1,6})d", re.ASCII)


def period(asked: str | None, present: SourceDefinition | None) -> Period | None:
    """What scores are partitioned by; as it is where nobody asked. Raises SourceError for what is no period."""
    if asked is None:
        return None if present is None else present.score_partitions
    found: dict[str, Period] = {name: name for name in get_args(Period)}
    if asked not in found:
        raise SourceError(f"Scores cannot be partitioned by {asked!r}; name one of {', '.join(found)}.")
    return found[asked]


def days(asked: str | None, present: SourceDefinition | None) -> int | None:
    """How many days scores are kept, None for ever; as it is where nobody asked. Raises SourceError for others."""
    if asked is None:
        return None if present is None else present.keep_scores_days
    if asked == FOREVER:
        return None
    found = _DAYS.fullmatch(asked)
    if found is None or not 1 <= int(found[1]) <= MAX_KEEP_DAYS:
        raise SourceError(
            f"Scores cannot be kept for {asked!r}; write days, from 1d to {MAX_KEEP_DAYS}d, such as 400d, or {FOREVER}."
        )
    return int(found[1])


def as_asked(kept_days: int | None) -> str:
    """What has to be asked for to have them kept so long."""
    return FOREVER if kept_days is None else f"{kept_days}d"


def check(table: RelationInfo, source: SourceDefinition) -> None:
    """Raises SourceError where something is to follow from the age of a row and nothing tells that."""
    if source.score_partitions is not None and source.key_time is None:
        raise SourceError(
            f"The key of {table.relation} ({source.key.shown}) has no column of type timestamptz, timestamp or date by"
            " which its scores could be partitioned; leave --partition-scores out, or name a key that has one."
        )
    by = source.expires_by
    if source.keep_scores_days is None:
        return
    if by is None or table.columns[by].feature_kind not in {"timestamp", "timestamptz"}:
        raise SourceError(
            f"Nothing says how old a row of {table.relation} is, so its score cannot be kept for"
            f" {source.keep_scores_days} days; name a column of type timestamptz, timestamp or date with --time, or"
            f" keep it until the row is gone (--keep-scores {FOREVER})."
        )
