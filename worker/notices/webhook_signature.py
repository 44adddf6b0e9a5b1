"""The signature of Standard Webhooks: HMAC-SHA-256 of id, time and body, so that a receiver can tell who sent it."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence


def headers(message_id: str, timestamp: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """webhook-id, webhook-timestamp and webhook-signature, with one signature for each key.

    timestamp: seconds since 1970, of the sending: a receiver refuses old ones.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
