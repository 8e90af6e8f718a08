"""Maps, colour tables, boundaries, charts and loops."""

import io

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from nowcast.core.grid import Grid
from nowcast.core.units import QUANTITIES, Scaling
from nowcast.plotting import boundaries, maps
from nowcast.plotting.charts import skill_chart
from nowcast.plotting.colormaps import COLOUR_TABLES, ColourTable, rgb, table_for
from nowcast.plotting.maps import HEADER, LEAST, MARGIN, Caption, MapPainter, loop
from nowcast.verification.scores import sums
from tests.paths import REAL_DATA, needs_real

STEREOGRAPHIC = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752 +x_0=0 +y_0=0"
KNMI = Grid.regular(STEREOGRAPHIC, (765, 700), upper_left=(0, -3650000), pixel=(1000, 1000))
COARSE = Grid.regular(STEREOGRAPHIC, (80, 70), upper_left=(0, -3650000), pixel=(10000, 10000))
SCALE = 8
"""Pixels per cell of the coarse grid: its longer side is brought to 640."""
AMERICA = Grid.regular("EPSG:4326", (70, 140), upper_left=(230, 55), pixel=(0.5, 0.5))
NOW = np.datetime64("2010-08-26T06:10")
MINUTE = np.timedelta64(1, "m")


def forecast(state="ok", producer="convlstm", reason=""):
    return Caption(NOW + 25 * MINUTE, state, "convlstm", producer, reason, NOW, NOW + 3 * MINUTE)


def opened(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def painter():
    return MapPainter(COARSE, "rainfall_rate", source="KNMI, CC BY 4.0")


@pytest.fixture
def field():
    """Dry, with a square of 12 mm/h, and no data in the uppermost rows."""
    values = np.zeros(COARSE.shape, np.float32)
    values[30:40, 30:40] = 12
    values[:10] = np.nan
    return values


def pixel(picture, row, column):
    """The middle of a cell of the coarse grid."""
    return picture[HEADER + SCALE * row + SCALE // 2, MARGIN + SCALE * column + SCALE // 2]


# --- colours


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("safe", [False, True])
def test_every_quantity_has_a_table(name, safe):
    table = table_for(name, safe=safe)
    assert table.quantity == name and len(set(table.colours)) == len(table.breaks)


@pytest.mark.parametrize("name", [name for name in COLOUR_TABLES if name.endswith("-safe")])
def test_safe_tables_darken_from_class_to_class(name):
    lightness = COLOUR_TABLES[name].palette[1:] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < -3).all()


def test_unknown_quantity_lists_the_known():
    with pytest.raises(ValueError, match="known: rainfall_rate"):
        table_for("snow")


def test_a_table_needs_a_colour_per_break():
    with pytest.raises(ValueError, match="one colour per break"):
        ColourTable("x", "vil", "kg/m²", (1.0, 2.0), ("#000000",))


def test_classes_begin_at_their_break():
    values = np.float32([np.nan, -5, 0, 0.07, 0.08, 0.15, 0.16, 159, 160, 1e4])
    assert table_for("rainfall_rate").classes(values).tolist() == [0, 0, 0, 0, 1, 1, 2, 16, 17, 17]


@given(arrays(np.float32, 20, elements=st.floats(0, 300, width=32)))
def test_stronger_rain_never_has_a_lower_class(values):
    assert (np.diff(table_for("rainfall_rate").classes(np.sort(values)).astype(int)) >= 0).all()


# --- boundaries


def test_arcs_of_two_countries_are_borders():
    lines = boundaries.boundaries(KNMI)
    assert {line.kind for line in lines} == {"coast", "border"}
    assert all(line.x.shape == line.y.shape and line.x.size > 1 for line in lines)
    # The border of the Netherlands and Germany passes Nieuweschans, 7.21 E 53.18 N.
    x, y = KNMI.project(7.21, 53.18)
    borders = [line for line in lines if line.kind == "border"]
    assert min(np.hypot(line.x - x, line.y - y).min() for line in borders) < 5000


def test_lines_end_just_outside_the_grid():
    for line in boundaries.boundaries(KNMI):
        assert line.x.min() > -40e3 and line.x.max() < 740e3
        assert line.y.min() > -4455e3 and line.y.max() < -3610e3


def test_longitudes_beyond_180_and_straight_borders():
    """MRMS counts longitudes from 0 to 360; the 49th parallel has few points and must be drawn whole."""
    lines = boundaries.boundaries(AMERICA)
    x, y = (np.concatenate([getattr(line, axis) for line in lines if line.kind == "border"]) for axis in "xy")
    along = np.sort(x[(abs(y - 49) < 0.02) & (x > 238) & (x < 264)])
    assert along[0] < 239 and along[-1] > 263 and np.diff(along).max() < 1


def test_boundaries_are_computed_once_per_grid():
    assert boundaries.boundaries(KNMI) is boundaries.boundaries(
        Grid.regular(STEREOGRAPHIC, (765, 700), upper_left=(0, -3650000), pixel=(1000, 1000))
    )


def test_an_ocean_has_no_lines():
    pacific = Grid.regular("EPSG:4326", (10, 10), upper_left=(-135, -30), pixel=(0.1, 0.1))
    assert boundaries.boundaries(pacific) == []


PLACES = {(5.18, 52.10): 1, (3.5, 53.5): 0, (178.0, -17.8): 1, (-179.0, -19.5): 0, (0.0, -89.0): 1, (0.0, 89.0): 0}


@pytest.mark.parametrize(("place", "expected"), PLACES.items(), ids=str)
def test_land_and_sea(place, expected):
    lon, lat = np.meshgrid(place[0] + np.linspace(-0.02, 0.02, 5), place[1] + np.linspace(-0.02, 0.02, 5))
    assert boundaries.land(lon, lat) == pytest.approx(expected)


def test_beyond_the_edge_of_the_earth_is_no_land():
    disc = Grid.regular("+proj=geos +h=35785831 +lon_0=20", (40, 40), upper_left=(-6e6, 6e6), pixel=(3e5, 3e5))
    lon, lat = disc.lonlat(*np.meshgrid(disc.x, disc.y))
    share = boundaries.land(lon, lat)
    assert share[0, 0] == 0 and share[20, 20] == 1
    assert all(np.isfinite(line.x).all() for line in boundaries.boundaries(disc))


# --- maps


def test_picture_has_the_size_of_grid_and_frame(painter, field):
    picture = opened(painter.png(field, caption=Caption(NOW)))
    assert picture.shape == (640 + 62 + 28, 560 + 2 * 14 + 88, 3)


def test_rain_dry_and_no_data_look_different(painter, field):
    picture = opened(painter.png(field, caption=Caption(NOW)))
    assert (pixel(picture, 35, 35) == rgb("#f2e51d")).all()
    assert (pixel(picture, 14, 20) == rgb(maps.SEA)).all()
    assert (pixel(picture, 50, 60) == rgb(maps.LAND)).all()
    uncovered = picture[HEADER + 40 : HEADER + 60, 100:120].reshape(-1, 3)
    assert uncovered.max() < rgb(maps.SEA).min()


def test_no_data_is_hatched(painter):
    nothing = np.full(COARSE.shape, np.nan, np.float32)
    picture = opened(painter.png(nothing, caption=Caption(NOW))).astype(int)
    row = picture[HEADER + 45, MARGIN + 20 : MARGIN + 20 + 36].sum(axis=1)
    assert (row[:9] == row[9:18]).all() and np.ptp(row) > 30


def test_same_input_same_bytes(painter, field):
    first = painter.png(field, caption=forecast())
    painter.png(field * 2, caption=forecast("withheld", "", "no data"))
    assert painter.png(field, caption=forecast()) == first


def test_south_up_grids_are_turned(painter, field):
    turned = Grid(COARSE.crs, COARSE.y[::-1], COARSE.x[::-1])
    other = MapPainter(turned, "rainfall_rate", source="KNMI, CC BY 4.0")
    assert other.png(field[::-1, ::-1], caption=Caption(NOW)) == painter.png(field, caption=Caption(NOW))


def test_a_reduced_map_keeps_the_largest_value():
    wide = Grid.regular(STEREOGRAPHIC, (60, 4400), upper_left=(0, -3650000), pixel=(100, 100))
    values = np.zeros(wide.shape, np.float32)
    values[29, 2201] = 200
    picture = opened(MapPainter(wide, "rainfall_rate").png(values, caption=Caption(NOW)))
    panel = picture[HEADER : HEADER + LEAST, MARGIN : MARGIN + 1100]  # columns 4 to 1, rows drawn 4 times
    assert (panel == rgb("#7a1c9c")).all(axis=2).sum() == 4


@pytest.mark.parametrize("size", [0.001, 0.1, 3.7])
@pytest.mark.parametrize("corner", [(-140.0, -30.0), (179.5, 1.0), (0.0, 89.0), (359.9, 45.05)])
def test_any_place_and_size_can_be_drawn(size, corner):
    grid = Grid.regular("EPSG:4326", (12, 12), upper_left=corner, pixel=(size / 12, size / 12))
    assert opened(MapPainter(grid, "vil").png(np.zeros(grid.shape), caption=Caption(NOW))).shape[2] == 3


def test_degrees_are_drawn_true_to_shape():
    picture = opened(MapPainter(AMERICA, "rainfall_rate").png(np.zeros(AMERICA.shape), caption=Caption(NOW)))
    height, width = picture.shape[0] - 90, picture.shape[1] - 116
    assert width / height == pytest.approx(2 * np.cos(np.radians(37.5)), rel=0.01)


@pytest.mark.parametrize(
    ("caption", "badge", "words"),
    [
        (Caption(NOW), "OBSERVED", "radar"),
        (forecast(), "FORECAST  +25 min", "convlstm  ·  run 26 Aug 06:10 UTC, made 3 min later  ·  OK"),
        (forecast("fallback", "extrapolation"), "FALLBACK  +25 min", "FALLBACK"),
        (forecast("withheld", ""), "WITHHELD  +25 min", "WITHHELD"),
    ],
)
def test_captions(caption, badge, words):
    assert caption.badge == badge and caption.origin.endswith(words)


def test_warnings_give_the_reason():
    assert forecast().warning == ""
    fallback = forecast("fallback", "extrapolation", "no checkpoint")
    assert fallback.warning == "FALLBACK  extrapolation in place of convlstm: no checkpoint"
    assert forecast("withheld", "", "newest frame is 40 min old").warning.endswith(
        "convlstm: newest frame is 40 min old"
    )


def test_a_warning_covers_the_top_of_the_map(painter, field):
    picture = opened(painter.png(field, caption=forecast("fallback", "extrapolation", "reason " * 60)))
    assert (picture[HEADER + 1, MARGIN : MARGIN + 560] == rgb(maps.BADGES["fallback"])).all()
    assert (picture[:, -5:] == 255).all()


def test_unknown_state_lists_the_known():
    with pytest.raises(ValueError, match="known: observed, ok"):
        forecast("late")


def test_long_ages_are_readable():
    late = Caption(NOW, "ok", "convlstm", "convlstm", "", NOW - 150 * MINUTE, NOW)
    assert late.badge == "FORECAST  +2.5 h" and "made 2.5 h later" in late.origin


def test_how_late_archived_data_was_computed_says_nothing():
    assert "later" not in Caption(NOW, "ok", "a", "a", "", NOW, NOW + 5000 * 1440 * MINUTE).origin


def test_captions_are_read_from_cubes_and_forecasts():
    observed = xr.DataArray(np.zeros((2, 2)), dims=("y", "x"), coords={"time": NOW.astype("M8[ns]")})
    assert Caption.of(observed) == Caption(NOW)
    labels = {"state": "fallback", "model": "convlstm", "producer": "extrapolation", "reason": "late"}
    times = {"forecast_reference_time": NOW.astype("M8[ns]"), "created": (NOW + 3 * MINUTE).astype("M8[ns]")}
    frame = observed.drop_vars("time").assign_coords(labels | times | {"lead_time": np.timedelta64(25, "m")})
    assert Caption.of(frame) == forecast("fallback", "extrapolation", "late")


@needs_real("knmi")
def test_real_radar_is_drawn():
    with h5py.File(max((REAL_DATA / "knmi").rglob("*.h5"))) as file:
        raw = file["image1/image_data"][:]
    values = np.where(raw == 65535, np.nan, raw * 0.12).astype(np.float32)
    painter = MapPainter(KNMI, "rainfall_rate")
    picture = opened(painter.png(values, caption=Caption(NOW)))
    assert picture.shape == (765 + 90, 700 + 116, 3)


# --- charts and loops


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    fields = rng.gamma(0.5, 4, (2, 6, 40, 40)).astype(np.float32)
    table = sums(*fields, thresholds=(0.1, 1.0), scaling=Scaling("linear", 0, 100))
    dims = ("run", "lead_time", "threshold")
    return xr.Dataset(
        {name: (dims[: values.ndim + 1], np.stack([values, values])) for name, values in table.items()},
        coords={
            "threshold": ("threshold", [0.1, 1.0], {"units": "mm h-1"}),
            "lead_time": np.arange(1, 7) * np.timedelta64(300, "s"),
            "model": ("run", np.asarray(["a", "b"], object)),
            "state": ("run", np.asarray(["ok", "ok"], object)),
        },
    )


@pytest.mark.parametrize(("score", "threshold"), [("csi", 1.0), ("mae", None), ("ssim", None)])
def test_skill_chart_is_a_picture(scores, score, threshold):
    content = skill_chart(scores, score=score, threshold=threshold)
    assert opened(content).shape == (528, 880, 3)
    assert skill_chart(scores, score=score, threshold=threshold) == content


def test_a_chart_of_nothing_is_drawn(scores):
    assert opened(skill_chart(scores * 0, score="csi", threshold=0.1)).shape == (528, 880, 3)


def test_a_categorical_chart_needs_its_threshold(scores):
    with pytest.raises(ValueError, match=r"csi needs a threshold; stored: 0\.1, 1"):
        skill_chart(scores, score="csi")


def test_loop_plays_all_frames_and_rests_on_the_last(painter, field):
    frames = [painter.png(field * step, caption=Caption(NOW + step * MINUTE)) for step in range(3)]
    with Image.open(io.BytesIO(loop(frames, seconds=0.2))) as animation:
        durations = []
        for index in range(animation.n_frames):
            animation.seek(index)
            durations.append(animation.info["duration"])
        assert animation.format == "GIF" and durations == [200, 200, 800]
        last = np.asarray(animation.convert("RGB")).astype(int)
    assert abs(last - opened(frames[-1])).mean() < 2


@pytest.mark.parametrize("shape", [(1000, 2), (2, 1000), (2, 2), (3, 4000)])
def test_strips_are_drawn_wide_enough_for_what_is_beside_them(shape):
    grid = Grid.regular(STEREOGRAPHIC, shape, upper_left=(0, -3650000), pixel=(1000, 1000))
    field = np.zeros(shape, np.float32)
    field[-1, -1] = 12
    picture = opened(MapPainter(grid, "rainfall_rate").png(field, caption=forecast()))
    height, width = picture.shape[0] - HEADER, picture.shape[1] - 2 * MARGIN
    assert height >= 240
    assert width >= 240
