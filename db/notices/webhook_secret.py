"""The secret that webhooks are signed with, in the form of Standard Webhooks (standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii

PREFIX = "whsec_"
_SHORTEST_BYTES, _LONGEST_BYTES = 24, 64


def keys_of(text: str) -> list[bytes]:
    """The key of each secret in the text; several, apart by spaces, while one is replaced by another.

    Raises ValueError, which does not show them, if one is not whsec_ and the base64 of 24 to 64 bytes.
    """
    keys = []
    for secret in text.split():
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not secret.startswith(PREFIX) or not _SHORTEST_BYTES <= len(key) <= _LONGEST_BYTES:
            raise ValueError(
                f"must be {PREFIX} followed by the base64 of {_SHORTEST_BYTES} to {_LONGEST_BYTES} random bytes"
            )
        keys.append(key)
    if not keys:
        raise ValueError("is blank")
    return keys
