"""What is sent to a webhook, what it says, and when it is asked again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pgoutlier.db.notices.deliveries import Notice
from pgoutlier.db.sql.keys import Key
from pgoutlier.worker.notices.http_post import Answer

EVENT_TYPE = "outlier.flagged"
LONGEST_RETRY_SECONDS = 3_600.0
_LONGEST_ERROR = 300


def body(source_name: str, notices: Sequence[Notice], key: Key | None = None) -> bytes:
    """JSON, the same bytes for the same notices; the timestamp is the earliest scored_at.

    key: of the source; one of several columns is sent as an object by their names.
    """

    def told(notice: Notice) -> dict[str, Any]:
        fields = {name: _plain(value) for name, value in vars(notice).items()}
        return fields if key is None else fields | {"key": key.by_column(notice.key)}

    return json.dumps(
        {
            "type": EVENT_TYPE,
            "timestamp": min((_plain(n.scored_at) for n in notices), default=None),
            "data": {
                "source": source_name,
                "notices": [told(notice) for notice in notices],
            },
        },
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    ).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def said(answer: Answer) -> str:
    """What a receiver answered, in one line; of a redirect that none is followed."""
    line = f"answered {answer.status} {answer.reason}".strip()
    if 300 <= answer.status < 400:
        line += " (redirects are not followed; set the URL that it leads to)"
    text = " ".join(f"{line}: {answer.text}".split()).removesuffix(":")
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST_ERROR]


def retry_delay(attempts: int, *, base_seconds: float, asked_seconds: float | None, chance: float) -> float:
    """Seconds until the next request after so many failed ones: doubled each time, less up to half of that by chance,
    and no less than the receiver asked for; an hour at most. chance: from 0 to 1."""
    longest = min(LONGEST_RETRY_SECONDS, base_seconds * 2.0 ** min(attempts - 1, 30))
    return min(LONGEST_RETRY_SECONDS, max(longest * (1 - chance / 2), asked_seconds or 0.0))


def asked_seconds(retry_after: str | None, now: datetime) -> float | None:
    """What Retry-After asks for, as seconds or as a date; None if it does not say."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_RETRY_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds())
