"""Times written as text: whatever follows one is understood or refused, in all readers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.errors import BadInput
from nowcast.readers import Item, geotiff, odim, stamps
from tests import fixtures, sources_gridded

clocks = st.integers(631_152_000, 3_786_912_000).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
)
offsets = st.integers(-12 * 4, 14 * 4).map(lambda quarters: 15 * quarters)
"""Minutes."""
spellings = st.sampled_from(
    ["{0}{1:02}:{2:02}", "{0}{1:02}{2:02}", " {0}{1:02}:{2:02}", "UTC{0}{1}:{2:02}", " GMT{0}{1:02}{2:02}"]
)
forms = st.sampled_from(
    ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y%m%d%H%M%S", "%Y:%m:%d %H:%M:%S", "%d-%b-%Y %H:%M:%S"]
)


def seconds(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")


@given(clocks, forms)
def test_a_time_without_zone_is_utc(clock: datetime, form: str) -> None:
    assert stamps.told(clock.strftime(form), "a") == seconds(clock.replace(tzinfo=UTC))
    assert stamps.told(clock.strftime(form) + "Z", "a") == seconds(clock.replace(tzinfo=UTC))


@given(clocks, forms, offsets, spellings)
def test_the_offset_is_used(clock: datetime, form: str, offset: int, spelling: str) -> None:
    zone = spelling.format("-" if offset < 0 else "+", abs(offset) // 60, abs(offset) % 60)
    there = clock.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert stamps.told(clock.strftime(form) + zone, "a") == seconds(there)


@given(clocks, st.sampled_from(sorted(stamps.HOURS)), st.sampled_from(["{}", " {}", " ({})"]))
def test_names_of_zones_are_used(clock: datetime, zone: str, form: str) -> None:
    found = stamps.told(clock.isoformat() + form.format(zone), "a")
    assert found == seconds(clock.replace(tzinfo=timezone(timedelta(hours=stamps.HOURS[zone]))))


@given(clocks, st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), max_size=12))
def test_what_follows_is_understood_or_refused(clock: datetime, rest: str) -> None:
    """No rest is ignored: what is given back is the time and what the rest says."""
    try:
        found = stamps.told(f"{clock.isoformat()}{rest}", "a")
    except BadInput as refusal:
        assert "which is not clear" in str(refusal) and "\n" not in str(refusal)
        return
    digits = any(character.isdigit() for character in rest)
    if found is not None and not digits and not set(rest.upper().split()) & set(stamps.HOURS):
        assert not any(character.isalpha() for character in rest) or found != seconds(clock.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-06-01T12:05:00.000000000", "2024-06-01T12:05"),
        ("2024-06-01 12:05 Europe/Berlin", "2024-06-01T10:05"),
        ("2024-01-01T12:05[Europe/Berlin]", "2024-01-01T11:05"),
        ("Sat, 01 Jun 2024 12:05:00 +0200", "2024-06-01T10:05"),
        ("26-AUG-2010;00:05:00.000", "2010-08-26T00:05"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00"),
        ("2017-01-01T00:59:60+01:00", "2017-01-01T00:00"),
        ("20240601 2400", "2024-06-02T00:00"),
        ("2024-12-31T24:00:00", "2025-01-01T00:00"),
        ("2024-06-01T12:05:00\u221203:00", "2024-06-01T15:05"),
        ("2024-06-01T24:01", None),
        ("2024-06-01T12:00:60", None),
        ("yesterday", None),
    ],
)
def test_told(text: str, time: str | None) -> None:
    assert stamps.told(text, "a") == (time and np.datetime64(time))


@pytest.mark.parametrize(
    "zone", ["CST", "IST", "LT", " EST", "+25:00", "PM", "-13:00", "Mars/Base", " local time", "/2024-06-01T12:10", "X"]
)
def test_what_is_not_clear_is_refused(zone: str) -> None:
    with pytest.raises(BadInput, match=r"a: gives a time in the zone .*; write it in UTC or with \+HH:MM"):
        stamps.told(f"2024-06-01T12:05{zone}", "a")


def test_the_hour_that_comes_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="not clear"):
        stamps.told("2024-10-27 02:30 Europe/Berlin", "a")


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("202406011205+0200_rr.tif", "10:05"),
        ("rr_20240601T1205+02:00.tif", "10:05"),
        ("rr_20240601T120500-0330.tif", "15:35"),
        ("rr_202406011205_UTC+8.tif", "04:05"),
        ("rr_202406011205UTC-5.tif", "17:05"),
        ("202406011205_CEST.tif", "10:05"),
        ("202406011205cest_rr.tif", "10:05"),
        ("202406011205-JST-rr.tif", "03:05"),
        ("202406011205Z_rr.tif", "12:05"),
        ("202406011205_FINUTM.tif", "12:05"),
        ("202406011205_10min_rr.tif", "12:05"),
        ("202406011205-rr.tif", "12:05"),
        ("202406011205_west_rr.tif", "12:05"),
        ("20240601-1205-1210_rr.tif", "12:05"),
        ("2024-06-01-12-05_ROMA_SRI.tif", "12:05"),
        ("20240601T1205-1210_rr.tif", None),
        ("202406011205_CST.tif", None),
        ("202406011205_LT.tif", None),
        ("202406011205_local.tif", None),
        ("202406011205+2500.tif", None),
    ],
)
def test_zones_in_names(name: str, time: str | None) -> None:
    if time is None:
        with pytest.raises(BadInput, match="not clear"):
            stamps.in_name(name)
    else:
        assert stamps.in_name(name) == np.datetime64(f"2024-06-01T{time}")


# --- in files -------------------------------------------------------------------------------------


def rain(path: Path, tags: dict[str, str]) -> str:
    for name in (path, path.with_name("rr_202406010000.tif")):  # the other tells the step
        sources_gridded.tiff(name, np.zeros((8, 9), np.float32), units="mm/h", tags=tags if name == path else {})
    return str(geotiff.read(Item(path))["time"].values[0])[:16]


@pytest.mark.parametrize("zone", ["+02:00", " +0200", " CEST", " UTC+2", " Europe/Berlin"])
@pytest.mark.parametrize("tag", ["time", "valid_time", "Observation time", "TIFFTAG_DATETIME"])
def test_of_geotiff(tag: str, zone: str, tmp_path: Path) -> None:
    name = "rr.tif" if tag == "TIFFTAG_DATETIME" else "rr_202406011215.tif"
    assert rain(tmp_path / name, {tag: f"2024-06-01 12:05:00{zone}"}) == "2024-06-01T10:05"
    with pytest.raises(BadInput, match=r"rr.*\.tif: gives a time in the zone 'XYZ'"):
        rain(tmp_path / name, {tag: "2024-06-01 12:05 XYZ"})


@pytest.mark.parametrize(
    ("day", "clock", "time"),
    [
        ("20240601", "240000", "2024-06-02T00:00"),
        ("20161231", "235960", "2017-01-01T00:00"),
        ("20240601", "1205", "2024-06-01T12:05"),
        (20240601, 500, "2024-06-01T00:05"),
        ("2024-06-01", "12:05:00Z", "2024-06-01T12:05"),
        ("20240601", "120500+0200", "2024-06-01T10:05"),
    ],
)
def test_of_odim(day: object, clock: object, time: str, tmp_path: Path) -> None:
    period = {f"{edge}{what}": value for edge in ("start", "end") for what, value in (("date", day), ("time", clock))}
    path = fixtures.odyssey(tmp_path / "a.h5", root={"date": day, "time": clock}, **period)
    assert odim.read(Item(path))["time"].values[0] == np.datetime64(time)


@pytest.mark.parametrize("clock", ["noon", "256161"])
def test_of_odim_refused(clock: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.h5: states the time '20180824 .*; report it to the producer"):
        odim.read(Item(fixtures.odyssey(tmp_path / "a.h5", root={"time": clock})))
