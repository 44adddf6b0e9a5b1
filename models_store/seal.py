"""What an artifact has to be to be used, and how one is signed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seal:
    """max_bytes: a larger artifact is refused. signing_key: what artifacts are signed with.

    Without a key none is signed, and no signature is asked for.
    """

    max_bytes: int
    signing_key: str | None = field(default=None, repr=False)
