"""Names of quarters, months and weeks, as offices of statistics write them -> the date on which they begin.

`1990-Q1`, `Q1 1990`, `2020-M01`, `2020-W05` and `2020-W05-3` of ISO 8601. Other text is left as it is.
"""

from __future__ import annotations

import re
from datetime import date

YEAR_FIRST = re.compile(r"(?P<year>\d{4})[- ]?(?P<kind>[QMW])(?P<number>\d{1,2})(?:-?(?P<day>[1-7]))?")
YEAR_LAST = re.compile(r"(?P<kind>[QMW])(?P<number>\d{1,2})[-/ ]?(?P<year>\d{4})(?P<day>)")


ANY = "[QMW]"  # a letter without which a text names no period


def first_day(text: str) -> str:
    """The first day of a period as ISO 8601, or the text itself if it names none."""
    found = YEAR_FIRST.fullmatch(text) or YEAR_LAST.fullmatch(text)
    if found is None:
        return text
    year, number, day = int(found["year"]), int(found["number"]), found["day"]
    try:
        if found["kind"] == "W":
            return date.fromisocalendar(year, number, int(day or 1)).isoformat()
        month = number if found["kind"] == "M" else 3 * number - 2
        return text if day else date(year, month, 1).isoformat()
    except ValueError:
        return text
