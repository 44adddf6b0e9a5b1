"""What a check comes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at. mend is empty if all is well."""

    what: str
    ok: bool
    detail: str
    mend: str = ""
