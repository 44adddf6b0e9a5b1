"""What doctor finds of many sources, told once for all of which the same is to be said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pgoutlier.worker.doctor.finding import Finding

# Of a few sources each finding is told by itself.
FEW_SOURCES = 10
# Groups of the same check that are told: which are more differ in what is special to each source.
_MOST_GROUPS = 5
_MOST_NAMED = 3
_NUMBER = re.compile(r"\d[\d,.]*")


@dataclass
class _Group:
    """Findings of one check that differ in names and numbers alone; the first stands for them."""

    first: Finding
    names: list[str] = field(default_factory=list)


def grouped(findings: Iterable[Finding]) -> Iterator[Finding]:
    """What is about no source as it is; of sources what is wrong, and in a line what is right.

    As it is all of it where there are FEW_SOURCES or fewer.
    """
    every = list(findings)
    of_sources = [finding for finding in every if finding.source is not None]
    names = {finding.source for finding in of_sources}
    if len(names) <= FEW_SOURCES:
        yield from every
        return
    first = every.index(of_sources[0])
    yield from every[:first]
    wrong = {finding.source for finding in of_sources if not finding.ok}
    if n_right := len(names) - len(wrong):
        yield Finding(f"{n_right:,} of {len(names):,} sources", True, "all is as it should be")
    yield from _wrong([finding for finding in of_sources if not finding.ok])
    yield from (finding for finding in every[first:] if finding.source is None)


def _wrong(findings: list[Finding]) -> Iterator[Finding]:
    groups: dict[tuple[str, str, str], _Group] = {}
    for finding in findings:
        name = finding.source or ""
        alike = tuple(_alike(text, name) for text in (finding.what, finding.detail, finding.mend))
        groups.setdefault(alike, _Group(finding)).names.append(name)  # type: ignore[arg-type]
    of_check: dict[str, list[_Group]] = {}
    for (what, _, _), group in groups.items():
        of_check.setdefault(what, []).append(group)
    for found in of_check.values():
        found.sort(key=lambda group: -len(group.names))
        yield from (_told(group) for group in found[:_MOST_GROUPS])
        if left := found[_MOST_GROUPS:]:
            what = _check(left[0].first) or "table"
            n_left = sum(len(group.names) for group in left)
            yield Finding(
                f"{n_left:,} more sources",
                False,
                f"something else about the {what} of each",
                "pgoutlier doctor --all",
            )


def _alike(text: str, name: str) -> str:
    """The text without what differs from source to source: its name, which its tables have in theirs, and numbers."""
    return _NUMBER.sub("0", text.replace(name, "NAME"))


def _check(finding: Finding) -> str:
    return finding.what.removeprefix(finding.source or "").strip()


def _told(group: _Group) -> Finding:
    if len(group.names) == 1:
        return group.first
    shown, n_left = group.names[:_MOST_NAMED], len(group.names) - _MOST_NAMED
    named = ", ".join(shown) + (f" and {n_left:,} more" if n_left > 0 else "")
    what = f"{_check(group.first)} of {len(group.names):,} sources ({named})".strip()
    return replace(group.first, what=what)
