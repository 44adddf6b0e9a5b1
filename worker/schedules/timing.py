"""When a schedule runs next: intervals, and crontabs in a time zone."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.tables import CRONTAB_PATTERN, LONGEST_INTERVAL_SECONDS, SHORTEST_INTERVAL_SECONDS

_CRONTAB = re.compile(CRONTAB_PATTERN, re.IGNORECASE)


@dataclass(frozen=True)
class Timing:
    """An interval in seconds, or a crontab and the IANA name of its time zone; made by `interval` or `crontab`."""

    every_seconds: float | None = None
    crontab: str | None = None
    time_zone: str = "UTC"

    def after(self, moment: datetime, *, due: datetime | None = None) -> datetime:
        """The first run strictly after the moment, in UTC, however many were missed until then.

        due: the tick that has just come; intervals keep its beat. A crontab keeps to the clocks of its zone: a time
        that they skip comes as soon as they have, one that they show twice comes once, unless hour or minute
        begin with a star. Raises ScheduleError if a crontab comes no more.
        """
        if self.every_seconds is not None:
            return _next_of_interval(self.every_seconds, moment, due)
        found = None
        start = moment.astimezone(ZoneInfo(self.time_zone))
        for found in CronSim(self.crontab or "", start):
            if found.astimezone(UTC) > moment:
                return found.astimezone(UTC)
        raise ScheduleError(f"The crontab {self.crontab!r} names a day that never comes.")

    def __str__(self) -> str:
        if self.every_seconds is not None:
            return f"every {self.every_seconds:g} s"
        return f"{self.crontab} {self.time_zone}"


def _next_of_interval(every_seconds: float, moment: datetime, due: datetime | None) -> datetime:
    due = due or moment
    n_passed = math.floor((moment - due).total_seconds() / every_seconds) + 1
    found = due + timedelta(seconds=every_seconds * max(1, n_passed))
    # Rounding to microseconds may have brought it back to the moment itself.
    return (found if found > moment else moment + timedelta(seconds=every_seconds)).astimezone(UTC)


def interval(every_seconds: float) -> Timing:
    """Raises ScheduleError if it is out of bounds."""
    if not SHORTEST_INTERVAL_SECONDS <= every_seconds <= LONGEST_INTERVAL_SECONDS:
        raise ScheduleError(
            f"An interval of {every_seconds:g} s cannot be kept; take one from {SHORTEST_INTERVAL_SECONDS:g} s to"
            f" {LONGEST_INTERVAL_SECONDS // 86_400} d."
        )
    return Timing(every_seconds=every_seconds)


def crontab(text: str, time_zone: str = "UTC") -> Timing:
    """Five fields, in the clock of a time zone. Raises ScheduleError if either cannot be read, or no day fits."""
    plain = " ".join(text.split())
    if not _CRONTAB.fullmatch(plain):
        raise ScheduleError(
            f"{text!r} is no crontab; write minute, hour, day of month, month and day of week, such as '0 3 * * *' or"
            " '*/15 8-18 * * mon-fri'."
        )
    check_time_zone(time_zone)
    made = Timing(crontab=plain, time_zone=time_zone)
    try:
        made.after(datetime.now(UTC))
    except CronSimError as error:
        field = str(error).removeprefix("Bad ").replace("-", " ")
        raise ScheduleError(
            f"The crontab {plain!r} cannot be read: mend its {field}; a range goes from the smaller to the larger"
            " value, and a day has to be one of its month."
        ) from None
    return made


def check_time_zone(name: str) -> None:
    """Raises ScheduleError, naming the nearest, if there is no such zone."""
    if name in _zones():
        return
    folded = {zone.lower(): zone for zone in _zones()}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"Did you mean {folded[near[0]]}?" if near else "Write one such as UTC or Europe/Berlin."
    raise ScheduleError(f"There is no time zone {name!r}. {hint}")


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    # "Factory" and "localtime" mean something else on each machine.
    return frozenset(available_timezones() - {"Factory", "localtime"})
