"""Features over the rows before, of many rows at once: every path computes them here, from a database or a file.

Rows come in order, entity by entity. A window is a stretch of them, from `low` to the row itself, which is left out.
What is asked of a stretch is put together from blocks of 1, 2, 4, ... rows, each made once: so a window of a million
rows costs twenty times one of a single row, and no sum is the difference of two larger ones, which would lose digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pgoutlier.db.past import entries
from pgoutlier.db.past.entries import Past

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


# How the two counts of risk are one number: rows * COUNT_UNIT + frauds, which the version makes a share of.
COUNT_UNIT = 2.0**26
# Of a sum of both signs: 36 bits of the largest value of the entity, of up to 65,536 rows 52.
_LEADING_BITS = 36
# A mean or a spread that is smaller, against the size of the values, is what is left of their last digits.
_LEAST_MEAN, _LEAST_SPREAD = 1e-12, 1e-14
# Rows times what is known of those before them, at once.
_MOST_PAIRS = 5_000_000


@dataclass(frozen=True, eq=False)
class Known:
    """What came to be known of which rows, when: k changes of the number of frauds, by place.

    places (k,): of the rows, which do not fall. since (k,): from when on, as their times are. changes (k,): 1 or -1.
    """

    places: Places
    since: npt.NDArray[Any]
    changes: Vector

    @staticmethod
    def of_labels(is_fraud: npt.NDArray[np.bool_], dtype: np.dtype[Any]) -> Known:
        """Of rows (m,) that a label says are fraud, which a row sees from the delay on."""
        places = np.flatnonzero(is_fraud)
        ever = np.iinfo(dtype).min if dtype.kind == "i" else -np.inf
        return Known(places, np.full(len(places), ever, dtype=dtype), np.ones(len(places)))


@dataclass(frozen=True, eq=False)
class Rows:
    """m rows, those of one entity together, by (time, key) there.

    entities (m,): int64, which do not fall. times (m,): float64, or int64 in so many units_per_second. values: by
    column, (m,) float64, NaN where there is none. codes: by column, (m,) int64, equal where the values are; -1 where
    there is none. known: of frauds among them.
    """

    entities: Places
    times: npt.NDArray[Any]
    units_per_second: int
    values: Mapping[str, Vector] = field(default_factory=dict)
    codes: Mapping[str, Places] = field(default_factory=dict)
    known: Known | None = None

    def __len__(self) -> int:
        return len(self.entities)


def compute(
    wanted: Sequence[tuple[Past, str]], rows: Rows, places: Places
) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """(n, k) of the rows at these places (n,): the k features wanted, each with the column that it takes.

    And which of the rows (n,) have more before them in a window than are looked at.
    """
    found = np.empty((len(places), len(wanted)))
    if len(places) == 0:
        return found, np.empty(0, np.bool_)
    kernel = _Kernel(rows, places)
    for column, (past, name) in enumerate(wanted):
        found[:, column] = kernel.feature(past, name)
    return found, kernel.is_cut_short


def of_no_rows(past: Past, own: Vector) -> Vector:
    """What the feature is (n,) where there is nothing before. own (n,): the rows' values of the column it takes."""
    if past.function in ("mean", "min", "max", "lag"):
        return own
    if past.function in ("z", "diff"):
        return np.where(np.isnan(own), np.nan, 0.0)
    if past.function == "ratio":
        return np.where(np.isnan(own), np.nan, 1.0)
    fixed = {"is_new": 1.0, "since_last": float(past.window_seconds)}
    return np.full(len(own), fixed.get(past.function, 0.0))


@dataclass(frozen=True)
class _Moments:
    """Of n stretches how many values there are, their sum, mean, sum of squared differences from it, and how far above
    the mean the row's own value is, (n,) each."""

    number: Vector
    total: Vector
    mean: Vector
    squares: Vector
    above: Vector


class _Kernel:
    """Keeps what several features need."""

    def __init__(self, rows: Rows, places: Places) -> None:
        self._rows, self._places = rows, places
        begins = np.flatnonzero(np.diff(rows.entities, prepend=rows.entities[0] - 1))
        self._first = begins[np.searchsorted(begins, places, side="right") - 1]
        self.is_cut_short = np.zeros(len(places), dtype=np.bool_)
        self._lows: dict[int, Places] = {}
        self._moments: dict[tuple[str, int], _Moments] = {}
        self._earlier: dict[str, Places] = {}

    def feature(self, past: Past, column: str) -> Vector:
        match past.function:
            case "count":
                return (self._places - self._low(past)).astype(np.float64)
            case "since_last":
                return self._since_last(past)
            case "lag" | "diff":
                return self._by_steps(past, column)
            case "min" | "max":
                return self._extreme(past, column)
            case "is_new":
                return (self._equal_before(column)[self._places] < self._low(past)).astype(np.float64)
            case "distinct":
                return self._distinct(past, column)
            case "risk":
                return self._risk(past)
        return self._of_moments(past, column)

    def _low(self, past: Past) -> Places:
        """Where the window of each row begins, (n,)."""
        found = self._lows.get(past.window_seconds)
        if found is None:
            rows, places = self._rows, self._places
            reach = past.window_seconds * rows.units_per_second
            found = _first_since(rows, places, self._first, rows.times[places] - reach)
            found = self._bounded(found)
            self._lows[past.window_seconds] = found
        return found

    def _bounded(self, low: Places) -> Places:
        """So that no more rows are looked at than there may be."""
        least = self._places - entries.MOST_ROWS
        self.is_cut_short |= low < least
        return np.maximum(low, least)

    def _risk(self, past: Past) -> Vector:
        rows, places = self._rows, self._places
        now, units = rows.times[places], rows.units_per_second
        low = _first_since(rows, places, self._first, now - past.reach_seconds * units)
        low = self._bounded(low)
        # The rows of the very moment are old enough.
        after = _first_since(rows, places, self._first, now - past.delay_seconds * units, behind=True)
        high = np.maximum(low, after)
        return (high - low) * COUNT_UNIT + self._frauds(low, high)

    def _frauds(self, low: Places, high: Places) -> Vector:
        """How many of each stretch are known to be fraud at the time of its row, (n,)."""
        known, found = self._rows.known, np.zeros(len(low))
        if known is None or not len(known.places):
            return found
        first, last = np.searchsorted(known.places, low), np.searchsorted(known.places, high)
        ends = np.cumsum(last - first)
        begin = 0
        while begin < len(low):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + _MOST_PAIRS, side="right")))
            number = (last - first)[begin:end]
            who = np.repeat(np.arange(begin, end), number)
            which = np.arange(len(who)) + np.repeat(
                first[begin:end] - (ends[begin:end] - number - before), number
            )
            told = known.since[which] <= self._rows.times[self._places[who]]
            found += np.bincount(who[told], weights=known.changes[which[told]], minlength=len(low))
            begin = end
        return found

    def _since_last(self, past: Past) -> Vector:
        before = np.maximum(self._places - 1, 0)
        times = self._rows.times
        gaps = (times[self._places] - times[before]) / self._rows.units_per_second
        longest = float(past.window_seconds)
        return np.where(self._places > self._first, np.minimum(gaps, longest), longest)

    def _by_steps(self, past: Past, column: str) -> Vector:
        values = self._rows.values[column]
        own, before = values[self._places], self._places - past.steps
        found = np.where(before >= self._first, values[np.maximum(before, 0)], np.nan)
        found = np.where(np.isfinite(found), found, own)
        return found if past.function == "lag" else own - found

    def _extreme(self, past: Past, column: str) -> Vector:
        values = self._rows.values[column]
        smallest = past.function == "min"
        pick, none = (np.minimum, np.inf) if smallest else (np.maximum, -np.inf)
        missing = ~np.isfinite(values)
        found = np.full(len(self._places), none)
        seen = np.zeros(len(self._places), dtype=np.bool_)
        levels = zip(
            _levels(np.where(missing, none, values), none, pick),
            _levels((~missing).astype(np.int8), 0, np.maximum),
            strict=False,
        )
        for (block, some), pieces in zip(levels, _pieces(self._low(past), self._places), strict=False):
            for who, where in pieces:
                found[who] = pick(found[who], block[where])
                seen[who] |= some[where] > 0
        return np.where(seen, found, values[self._places])

    def _of_moments(self, past: Past, column: str) -> Vector:
        found, own = self._moments_of(past, column), self._rows.values[column][self._places]
        n = found.number
        if past.function == "sum":
            return found.total
        nothing = of_no_rows(past, own)
        with np.errstate(all="ignore"):
            if past.function == "mean":
                return np.where(n > 0, found.mean, nothing)
            if past.function == "std":
                return np.where(n > 1, np.sqrt(found.squares / np.maximum(n - 1, 1)), 0.0)
            if past.function == "ratio":
                return np.where((n > 0) & (found.mean != 0), own / found.mean, nothing)
            spread = np.sqrt((found.squares + np.square(found.mean)) / (n + 1))
            # All of them 0: as far as so many rows can tell.
            none = np.sign(own) * np.sqrt(n + 1)
            return np.where(n > 0, np.where(spread > 0, found.above / spread, none), nothing)

    def _moments_of(self, past: Past, column: str) -> _Moments:
        which = column, past.window_seconds
        found = self._moments.get(which)
        if found is None:
            found = self._moments[which] = _moments(
                self._rows.values[column], self._rows.entities, self._low(past), self._places
            )
        return found

    def _equal_before(self, column: str) -> Places:
        """Of every row the last one before it that has its value, of the same entity, (m,); -1 if there is none."""
        found = self._earlier.get(column)
        if found is None:
            codes, entities = self._rows.codes[column], self._rows.entities
            order = np.lexsort((codes, entities))
            same = (codes[order][1:] == codes[order][:-1]) & (entities[order][1:] == entities[order][:-1])
            found = np.full(len(codes), -1)
            found[order[1:][same]] = order[:-1][same]
            self._earlier[column] = found
        return found

    def _distinct(self, past: Past, column: str) -> Vector:
        """Those of the stretch whose value no other before them in it has."""
        codes, low = self._rows.codes[column], self._low(past)
        size = len(codes) + 1
        # Shifted, so that none before is 0. One without a value is never the first to have it.
        earlier = np.where(codes >= 0, self._equal_before(column) + 1, size)
        found = np.zeros(len(low))
        for level, pieces in enumerate(_pieces(low, self._places)):
            width = 1 << level
            n_blocks = -(-len(earlier) // width)
            padded = np.full(n_blocks * width, size)
            padded[: len(earlier)] = earlier
            block = np.sort(padded.reshape(n_blocks, width), axis=1)
            in_order = (block + np.arange(n_blocks)[:, None] * (size + 1)).reshape(-1)
            for who, where in pieces:
                reached = np.searchsorted(in_order, where * (size + 1) + low[who] + 1)
                found[who] += reached - where * width
        return found


def _first_since(
    rows: Rows, places: Places, first: Places, since: npt.NDArray[Any], *, behind: bool = False
) -> Places:
    """The first row of each one's entity that is not before `since` (n,), or behind it; at most itself, (n,)."""
    low, high = first.copy(), places.copy()
    # All at once, each in its own stretch: so many steps as the longest has bits.
    while (open_ := low < high).any():
        middle = (low + high) // 2
        earlier = rows.times[middle] <= since if behind else rows.times[middle] < since
        low = np.where(open_ & earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return low


def _pieces(low: Places, high: Places) -> Iterator[Iterator[tuple[Places, Places]]]:
    """The stretches from low to high (n,), without the last, as blocks: for each size of block, which stretches have
    one of it, and its number. Sizes double."""
    left, right = low.copy(), high.copy()

    def of_this_size() -> Iterator[tuple[Places, Places]]:
        who = np.flatnonzero((left < right) & (left & 1 == 1))
        if len(who):
            yield who, left[who]
            left[who] += 1
        who = np.flatnonzero((left < right) & (right & 1 == 1))
        if len(who):
            right[who] -= 1
            yield who, right[who]

    while (left < right).any():
        yield of_this_size()
        left >>= 1
        right >>= 1


def _levels(
    values: npt.NDArray[Any], none: Any, join: Callable[[Any, Any], Any]
) -> Iterator[npt.NDArray[Any]]:
    """The values of blocks of 1, 2, 4, ... rows."""
    while True:
        yield values
        if len(values) % 2:
            values = np.append(values, none)
        values = join(values[::2], values[1::2])


def _moments(values: Vector, entities: Places, low: Places, high: Places) -> _Moments:
    """Digits are not lost to where a stretch begins: what is 0 but for these is 0.

    Squares are of differences from a value of the entity, which are small where those from 0 are large and alike.
    """
    known = np.isfinite(values)
    plain = np.where(known, values, 0.0)
    begins = np.flatnonzero(np.diff(entities, prepend=entities[0] - 1))
    of_entity = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(values)))
    least = np.minimum.reduceat(np.where(known, values, np.inf), begins)
    most = np.maximum.reduceat(np.where(known, values, -np.inf), begins)
    # The value nearest to 0, from which none differs by digits that it does not have itself.
    nearest = np.where(least > 0, least, np.where(most < 0, most, 0.0))
    centre = np.where(np.isfinite(nearest), nearest, 0.0)[of_entity]
    parts = (known.astype(np.float64), np.where(known, plain - centre, 0.0), np.zeros(len(values)))
    with np.errstate(all="ignore"):
        number, shifted, squares, *totals = _summed((*parts, *_in_parts(plain, begins, of_entity)), low, high)
        total, n = np.sum(totals, axis=0), np.maximum(number, 1)
        mean = total / n
        size = np.sqrt(squares / n + np.square(mean))
        size = np.where(np.isfinite(size), size, 0.0)
        total = np.where(np.abs(mean) < _LEAST_MEAN * size, 0.0, total)
        squares = np.where(np.sqrt(squares / n) < _LEAST_SPREAD * size, 0.0, squares)
        own = values[high]
        above = np.where(centre[high] == 0, own - total / n, own - centre[high] - shifted / n)
        above = np.where(np.abs(above) < _LEAST_SPREAD * np.maximum(np.abs(own), size), 0.0, above)
        return _Moments(number, total, total / n, squares, above)


def _in_parts(values: Vector, begins: Places, of_entity: Places) -> tuple[Vector, ...]:
    """The values (m,) as sums whose parts can be added up in any order: leading digits, of which no sum is rounded, and
    the rest. Where none is negative no digits are lost anyway."""
    if (values >= 0).all():
        return (values,)
    largest = np.maximum.reduceat(np.abs(values), begins)
    unit = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1.0))) - _LEADING_BITS)[of_entity]
    leading = np.where(np.isfinite(unit) & (unit > 0), np.round(values / unit) * unit, values)
    return leading, values - leading


def _summed(block: tuple[Vector, ...], low: Places, high: Places) -> list[Vector]:
    """Of the stretches from low to high (n,), without the last, what `_joined` makes of all their rows, (n,) each."""
    found = [np.zeros(len(low)) for _ in block]
    for pieces in _pieces(low, high):
        for who, where in pieces:
            joined = _joined(tuple(part[who] for part in found), tuple(part[where] for part in block))
            for part, new in zip(found, joined, strict=True):
                part[who] = new
        if len(block[0]) % 2:
            block = tuple(np.append(part, 0.0) for part in block)
        block = _joined(tuple(part[::2] for part in block), tuple(part[1::2] for part in block))
    return found


def _joined(one: tuple[Vector, ...], other: tuple[Vector, ...]) -> tuple[Vector, ...]:
    """Numbers, sums and squared differences from the mean of both together, and any further sums.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    n, m = one[0], other[0]
    both = n + m
    difference = other[1] / np.maximum(m, 1) - one[1] / np.maximum(n, 1)
    squares = one[2] + other[2] + np.square(difference) * (n * m / np.maximum(both, 1))
    further = (a + b for a, b in zip(one[3:], other[3:], strict=True))
    return both, one[1] + other[1], squares, *further
