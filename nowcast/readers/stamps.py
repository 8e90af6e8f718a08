"""Times that are written as text: in names of files, in tags and attributes, in headers. Always UTC when read.

A time with a zone is moved to UTC: ``Z``, ``+02:00``, ``UTC+8``, ``CEST``, ``Europe/Berlin``. One whose zone is not
known, or stands for several (``CST``, ``LT``), is refused: to take it for UTC would shift frames by hours. A time
without zone is UTC.

24:00 is the first moment of the next day, and so is a leap second, which no clock here knows.
"""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from nowcast.core.errors import BadInput

STAMP = re.compile(
    r"(?<!\d)(?P<year>(?:19|20)\d\d)([-_.:/]?)(?P<month>[01]\d)\2(?P<day>[0-3]\d)(?P<between>[-_.T ]?)"
    r"(?P<hour>[0-2]\d)([-_.:]?)(?P<minute>[0-5]\d)(?:\7(?P<second>[0-5]\d|60))?(?!\d)",
    re.IGNORECASE,
)
SPOKEN = re.compile(
    r"(?<!\d)(?P<day>\d{1,2})[- ](?P<month>[A-Za-z]{3})[a-z]*[- ,]+(?P<year>(?:19|20)\d\d)(?P<between>[ T;,]+)"
    r"(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?!\d)"
)
"""``26-AUG-2010;00:05:00.000``, ``Sat, 01 Jun 2024 12:05:00 +0200``; month names do not depend on the locale."""
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
HOURS = {
    **{"Z": 0.0, "UTC": 0.0, "GMT": 0.0, "UT": 0.0, "ZULU": 0.0},
    **{"CET": 1.0, "MEZ": 1.0, "CEST": 2.0, "MESZ": 2.0, "EET": 2.0, "EEST": 3.0, "MSK": 3.0},
    **{"HKT": 8.0, "SGT": 8.0, "AWST": 8.0, "JST": 9.0, "KST": 9.0, "ACST": 9.5, "AEST": 10.0, "AEDT": 11.0},
    **{"NZST": 12.0, "NZDT": 13.0, "EDT": -4.0, "CDT": -5.0, "MDT": -6.0, "PDT": -7.0},
}
"""Zones whose name stands for one only."""
UNCLEAR = {"EST", "CST", "MST", "PST", "IST", "BST", "AST", "WST", "LT", "LST", "LOC", "LOCAL"}
"""Names that stand for several zones: Chinese and American, Indian and Israeli, whichever is local."""
SMALL = {"utc", "gmt", "cet", "cest", "mez", "mesz", "eet", "eest", "jst", "kst", "hkt"}
"""Zones that a name of a file may have in small letters; others are words, too."""
OFFSET = r"(?:UTC|GMT|UT)?\s?(?P<sign>[-+\u2212])(?P<hours>\d{1,2})(?::?(?P<minutes>[0-5]\d))?"
IN_NAME = re.compile(
    r"(?:[ _]?(?:UTC|GMT|UT)(?P<sign>[-+])(?P<hours>\d{1,2})|(?P<sign2>[-+])(?P<hours2>\d\d))"
    r"(?::?(?P<minutes>[0-5]\d))?(?![\dA-Za-z:])"
)
WORD = re.compile(r"[ _-]?([A-Za-z]+)(?![A-Za-z0-9])")
LATEST, EARLIEST = 14 * 60, -12 * 60
"""Minutes by which clocks on Earth are before and behind UTC at most."""


def moment(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> np.datetime64:
    """Make a time of its parts, which are in UTC.

    Raises:
        ValueError: If there is no such time.
    """
    whole = hour == 24 and not (minute or second)
    leap = second == 60 and minute == 59
    if not (0 <= minute < 60 and (0 <= hour < 24 or whole) and (0 <= second < 60 or leap)):
        raise ValueError(f"no time of day: {hour}:{minute}:{second}")
    midnight = np.datetime64(f"{year:04}-{month:02}-{day:02}", "s")
    return midnight + np.timedelta64(3600 * hour + 60 * minute + second, "s")


def in_name(name: str, where: object = "") -> np.datetime64 | None:
    """Find the first time in the name of a file, yyyymmddHHMM[SS] with or without separators; None if there is none.

    Raises:
        BadInput: If its zone is not clear.
    """
    for match in STAMP.finditer(name):
        time = _moment(match)
        if time is not None:
            return time - np.timedelta64(_zone_in_name(name, match, where or name), "m")
    return None


def told(text: str, where: object) -> np.datetime64 | None:
    """Find the time in a text that tells nothing else, such as a tag; None if there is none.

    Raises:
        BadInput: If what follows the time is no known zone.
    """
    for pattern in (STAMP, SPOKEN):
        for match in pattern.finditer(text):
            time = _moment(match)
            if time is not None:
                rest = re.sub(r"^[.,]\d+", "", text[match.end() :]).strip(" ()[];")
                return time - np.timedelta64(_offset(rest, time, text, where), "m")
    return None


def _moment(match: re.Match[str]) -> np.datetime64 | None:
    """Make the time that was found; None if it is none, such as one in February 30."""
    parts = match.groupdict(default="0")
    month = parts["month"].upper()
    try:
        number = MONTHS.index(month) + 1 if month.isalpha() else int(month)
        hour, minute, second = (int(parts[key]) for key in ("hour", "minute", "second"))
        return moment(int(parts["year"]), number, int(parts["day"]), hour, minute, second)
    except ValueError:
        return None


def _zone_in_name(name: str, match: re.Match[str], where: object) -> int:
    """Minutes by which the clock of a time in a name is before UTC; what else follows it is no zone."""
    rest = name[match.end() :]
    if found := IN_NAME.match(rest):
        sign, hours = found["sign"] or found["sign2"], found["hours"] or found["hours2"]
        clock = f"{match['hour']}{match['minute']}"
        stated = _minutes(sign, hours, found["minutes"])
        if sign == "-" and found["sign2"]:  # of a period, a date or a number, but for the form of ISO 8601
            if match["between"] not in ("T", "t") or not found["minutes"]:
                return 0
            if ":" not in found[0] and f"{hours}{found['minutes']}" > clock:
                raise _unclear(where, found[0], name)
        if stated is None:
            raise _unclear(where, found[0], name)
        return stated
    word = WORD.match(rest)
    if not word:
        return 0
    if word[1] in UNCLEAR or word[1].lower() == "local":
        raise _unclear(where, word[1], name)
    known = word[1] in HOURS or word[1].lower() in SMALL or word[0] == "z"
    return round(60 * HOURS[word[1].upper()]) if known else 0


def _offset(rest: str, time: np.datetime64, text: str, where: object) -> int:
    """Minutes by which the clock of a time is before UTC, of all that is written behind it."""
    if not rest or re.fullmatch(r"0?0(:?00)?", rest):
        return 0
    if rest.upper() in HOURS:
        return round(60 * HOURS[rest.upper()])
    found = re.fullmatch(OFFSET, rest, re.IGNORECASE)
    stated = _minutes(found["sign"], found["hours"], found["minutes"]) if found else _of_place(rest, time)
    if stated is None:
        raise _unclear(where, rest, text)
    return stated


def _minutes(sign: str, hours: str, minutes: str | None) -> int | None:
    size = 60 * int(hours) + int(minutes or 0)
    stated = size if sign == "+" else -size
    return stated if EARLIEST <= stated <= LATEST else None


def _of_place(name: str, time: np.datetime64) -> int | None:
    """Minutes of a zone of the IANA's data base, ``Europe/Berlin``; None if unknown or in the hour that comes twice."""
    if not re.fullmatch(r"[A-Za-z_]+/[A-Za-z0-9_+/-]+", name):
        return None
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
    clock = time.astype(datetime)
    offsets = {clock.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)}
    first = offsets.pop()
    return None if offsets or first is None else round(first.total_seconds() / 60)


def _unclear(where: object, zone: str, text: str) -> BadInput:
    return BadInput(
        where,
        f"gives a time in the zone {zone.strip(' _')!r}, which is not clear ({text!r})",
        "write it in UTC or with +HH:MM",
    )
