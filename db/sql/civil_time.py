"""Times as PostgreSQL counts them, and as the text that stands for them in a key.

PostgreSQL counts microseconds (dates: days) from 2000-01-01, in the proleptic Gregorian calendar, from 4713 BC to the
year 294276 (dates: 5874897; https://www.postgresql.org/docs/current/datatype-datetime.html), more than Python's
datetime holds.
The text is that of to_jsonb under TimeZone UTC: no setting of a session changes it.
"""

from __future__ import annotations

import re

_DAY = 86_400_000_000
# The first one that there is, and the one behind the last: IS_VALID_DATE and IS_VALID_TIMESTAMP in PostgreSQL's
# src/include/datatype/timestamp.h.
_DATES = range(-2_451_545, 2_145_031_949)
_TIMES = range(-2_451_545 * _DAY, 106_751_983 * _DAY)
_SPECIAL = {"infinity": 1, "-infinity": -1}
# From the first of March of the year 0 to 2000-01-01: years that begin in March end with the leap day.
_MARCH_OF_YEAR_0 = 730_425
_DAYS_IN_400_YEARS = 146_097
_TEXT = re.compile(
    r"\s*(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?)?)?"
    r"\s*(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?(?P<before_christ>\s+BC)?\s*",
    re.ASCII | re.IGNORECASE,
)


def to_text(count: int, kind: str) -> str:
    """Of microseconds (days of a date) since 2000-01-01; kind: timestamptz, timestamp or date."""
    last = 2 ** (31 if kind == "date" else 63)
    if count in (last - 1, -last):
        return "infinity" if count > 0 else "-infinity"
    days, rest = (count, 0) if kind == "date" else divmod(count, _DAY)
    year, month, day = _date(days)
    before_christ = year < 1
    text = f"{1 - year if before_christ else year:04}-{month:02}-{day:02}"
    if kind != "date":
        seconds, fraction = divmod(rest, 1_000_000)
        text += f"T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if kind == "timestamptz" and before_christ:
            text += f".{fraction:06}"  # as to_char prints it, see db.sql.keys
        elif fraction:
            text += f".{fraction:06}".rstrip("0")
    if kind == "timestamptz":
        text += "+00:00"
    return f"{text} BC" if before_christ else text


def canonical(text: str, kind: str) -> str:
    """The same moment as `to_text` writes it. Raises ValueError, with what is wrong, if it is none of this kind."""
    special = text.strip().lower()
    if special in _SPECIAL:
        return special
    found = _TEXT.fullmatch(text)
    form = "2026-01-31" if kind == "date" else "2026-01-31T12:00:00"
    if found is None:
        raise ValueError(f"write it as {form}{'+00:00' if kind == 'timestamptz' else ''}")
    parts = found.groupdict()
    if (kind == "timestamptz") != (parts["zone"] is not None):
        raise ValueError(
            f"say its offset from UTC: {form}+00:00"
            if kind == "timestamptz"
            else f"write it without one: {form}"
        )
    if kind == "date" and parts["hour"] is not None:
        raise ValueError(f"write it as {form}")
    year = int(parts["year"])
    if year == 0:
        raise ValueError("there is no year 0")
    days = _days(1 - year if parts["before_christ"] else year, int(parts["month"]), int(parts["day"]))
    if kind == "date":
        return to_text(_within(days, _DATES), kind)
    hour, minute, second = (int(parts[name] or 0) for name in ("hour", "minute", "second"))
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("there is no such time of day")
    seconds = (hour * 60 + minute) * 60 + second - _offset(parts["zone"])
    microseconds = int((parts["fraction"] or "").ljust(6, "0"))
    return to_text(_within(days * _DAY + seconds * 1_000_000 + microseconds, _TIMES), kind)


def _within(count: int, there_are: range) -> int:
    if count not in there_are:
        raise ValueError("PostgreSQL has no time so far away")
    return count


def _offset(zone: str | None) -> int:
    """Seconds east of UTC."""
    if zone is None or zone in "Zz":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = (int(digits[:2]) * 60 + int(digits[2:])) * 60
    return -seconds if zone[0] == "-" else seconds


def _date(days: int) -> tuple[int, int, int]:
    """Year (0 is 1 BC), month and day of a number of days since 2000-01-01."""
    era, of_era = divmod(days + _MARCH_OF_YEAR_0, _DAYS_IN_400_YEARS)
    year_of_era = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    from_march = (5 * of_year + 2) // 153
    month = from_march + 3 if from_march < 10 else from_march - 9
    return era * 400 + year_of_era + (month <= 2), month, of_year - (153 * from_march + 2) // 5 + 1


def _days(year: int, month: int, day: int) -> int:
    """The number of days since 2000-01-01. Raises ValueError if there is no such day."""
    from_march_of = year - (month <= 2)
    era, year_of_era = divmod(from_march_of, 400)
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + of_year
    days = era * _DAYS_IN_400_YEARS + of_era - _MARCH_OF_YEAR_0
    if not 1 <= month <= 12 or _date(days) != (year, month, day):
        raise ValueError("there is no such day")
    return days
