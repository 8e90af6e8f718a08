"""Small files in the exact formats of the sources: layout, names, types and attributes are the real ones.

``SOURCES`` makes a readable folder for every reader; the functions below it make single files whose
contents a test chooses.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def blob(shape: tuple[int, int], peak: float = 1.0) -> np.ndarray:
    """A smooth cell, off centre: (row, column) float64 from 0 to ``peak``."""
    row, column = np.indices(shape) / np.array(shape)[:, None, None]
    return peak * np.exp(-((row - 0.4) ** 2 + (column - 0.6) ** 2) * 40)


# --- KNMI -----------------------------------------------------------------------------------------

KNMI_CORNERS = (0.0, 49.362, 0.0, 55.974, 10.856, 55.389, 9.009, 48.895)
KNMI_PROJECTION = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
KNMI_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def _knmi_time(time: np.datetime64) -> np.bytes_:
    day, clock = str(time.astype("datetime64[s]")).split("T")
    year, month, number = day.split("-")
    return np.bytes_(f"{number}-{KNMI_MONTHS[int(month) - 1]}-{year};{clock}.000")


def knmi(
    path: Path,
    *,
    end: str = "2010-08-26T00:05",
    minutes: int = 5,
    raw: np.ndarray | None = None,
    geo_parameter: str = "ACCUMULATED_PRECIPITATION_[MM]",
    formula: str = "GEO=0.01*PV+0.0",
    missing: int = 65535,
    outside: int = 65535,
    projection: str = KNMI_PROJECTION,
    corners: Iterable[float] | None = KNMI_CORNERS,
    images: int = 1,
) -> Path:
    """A KNMI composite of the standard area in pixels of 5 km: 153 rows, 140 columns."""
    if raw is None:
        raw = blob((153, 140), 400).astype(np.uint16)
        raw[:10, :10] = outside
    until = np.datetime64(end)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        overview = file.create_group("overview").attrs
        overview["product_datetime_start"] = np.array([_knmi_time(until - np.timedelta64(minutes, "m"))])
        overview["product_datetime_end"] = np.array([_knmi_time(until)])
        overview["number_image_groups"] = np.array([images], np.int32)
        where = file.create_group("geographic")
        where.attrs["geo_dim_pixel"] = np.bytes_("KM,KM")
        for name, value in (("number_rows", 153), ("number_columns", 140)):
            where.attrs[f"geo_{name}"] = np.array([value], np.int32)
        for name, number in (("row_offset", 730), ("column_offset", 0), ("pixel_size_x", 5), ("pixel_size_y", -5)):
            where.attrs[f"geo_{name}"] = np.array([number], np.float32)
        if corners is not None:
            where.attrs["geo_product_corners"] = np.array(list(corners), np.float32)
        where.create_group("map_projection").attrs["projection_proj4_params"] = np.bytes_(projection)
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_(geo_parameter)
        image.attrs["image_product_name"] = np.bytes_("RAD_NL25_RAU_H1.5_5mi")
        image.create_dataset("image_data", data=raw, compression="gzip")
        calibration = image.create_group("calibration").attrs
        calibration["calibration_formulas"] = np.bytes_(formula)
        calibration["calibration_missing_data"] = np.array([missing], np.int32)
        calibration["calibration_out_of_image"] = np.array([outside], np.int32)
    return path


def _knmi_source(root: Path) -> Path:
    for minute in ("00", "05", "10"):
        knmi(root / "2010" / "08" / f"RAD_NL25_RAP_5min_2010082601{minute}.h5", end=f"2010-08-26T01:{minute}")
    return root


# --- FMI ------------------------------------------------------------------------------------------


def fmi(
    path: Path,
    *,
    levels: np.ndarray | None = None,
    obstime: str = "201609281445",
    magic: str = "P5",
    topright: str = "34.903000 69.005000",
    kind: str = "stereographic",
) -> Path:
    """An FMI composite of the standard area in 61 rows, 38 columns; gzipped if the name ends so."""
    if levels is None:
        levels = blob((61, 38), 150).astype(np.uint8)
        levels[:4] = 255
    rows, columns = 61, 38
    header = f"""{magic}
# composite_area FIN
# projection_name SUOMI1
# radar KOR 1 21.6460 60.1280
# obstime {obstime}
# producttype CAPPI
# productname LOWEST
# param CorrectedReflectivity
# metersperpixel_x {999.674053 * 760 / columns:.6f}
# metersperpixel_y {999.62859 * 1226 / rows:.6f}
# projection radar {{
# type {kind}
# centrallongitude 25
# centrallatitude 90
# truelatitude 60
# bottomleft 18.600000 57.930000
# topright {topright}
# }}
{columns} {rows}
255
"""
    data = header.encode() + np.asarray(levels, np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def _fmi_source(root: Path) -> Path:
    for minute, end in (("45", ".gz"), ("50", "")):
        name = f"2016092814{minute}_fmi.radar.composite.lowest_FIN_SUOMI1.pgm{end}"
        fmi(root / name, obstime=f"2016092814{minute}")
    return root


# --- ODIM_H5 --------------------------------------------------------------------------------------

LAEA = {
    "projdef": "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84",
    "LL_lon": -10.434576838640398,
    "LL_lat": 31.746215319325056,
    "UL_lon": -39.5357864125034,
    "UL_lat": 67.02283275830867,
    "UR_lon": 57.81196475014995,
    "UR_lat": 67.62103710275053,
    "LR_lon": 29.421038635578032,
    "LR_lat": 31.98765027794496,
    "xscale": 100_000.0,
    "yscale": 100_000.0,
    "xsize": np.uint64(38),
    "ysize": np.uint64(44),
}
"""OPERA's area, in pixels of 100 km: 44 rows, 38 columns."""
DE1200 = {
    "projdef": "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +a=6378137 +b=6356752.3142451802 +no_defs "
    "+x_0=543196.83521776402 +y_0=3622588.8619310018",
    "LL_lon": 3.566994635,
    "LL_lat": 45.69642538,
    "UL_lon": 1.46330151,
    "UL_lat": 55.86208711,
    "UR_lon": 18.73161645,
    "UR_lat": 55.84543856,
    "LR_lon": 16.58086935,
    "LR_lat": 45.68460578,
    "xscale": 50_000.0,
    "yscale": 50_000.0,
    "xsize": 22,
    "ysize": 24,
}
"""DWD's area, in pixels of 50 km: 24 rows, 22 columns."""
SWISS = {
    "projdef": "+proj=somerc +lat_0=46.95240555555556 +lon_0=7.439583333333333 +k_0=1 +x_0=2600000 +y_0=1200000 "
    "+ellps=bessel +towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs",
    "LL_lon": 3.169,
    "LL_lat": 43.6301,
    "UL_lon": 2.6896,
    "UL_lat": 49.3767,
    "UR_lon": 12.4634,
    "UR_lat": 49.3654,
    "LR_lon": 11.9566,
    "LR_lat": 43.6201,
    "xscale": 10.0,
    "yscale": 10.0,
    "xsize": 71,
    "ysize": 64,
}
"""MeteoSwiss's area, in pixels of 10 km, which it states as 10: 64 rows, 71 columns."""
BELGIUM = {"UL_x": 300_000.0, "UL_y": 1_000_000.0, "xscale": 10_000.0, "yscale": 10_000.0, "xsize": 70, "ysize": 70}
LAMBERT_2008 = (
    "+proj=lcc +lat_1=49.83333333333334 +lat_2=51.16666666666666 +lat_0=50.797815 +lon_0=4.359215833333333 "
    "+x_0=649328 +y_0=665262 +ellps=GRS80 +towgs84=0,0,0,0,0,0,0 +units=m +no_defs"
)
ROOT = {"object": "COMP", "version": "H5rad 2.0", "source": "ORG:247", "date": "20180824", "time": "180000"}
PERIOD = {"startdate": "20180824", "starttime": "175000", "enddate": "20180824", "endtime": "180500"}


def odim(path: Path, data: np.ndarray, attrs: Mapping[str, Mapping[str, object]]) -> Path:
    """An ODIM_H5 file: ``dataset1/data1/data``, and the attributes of every group named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_0")
        file.create_dataset("dataset1/data1/data", data=data)
        for group, values in attrs.items():
            node = file.require_group(group)
            for name, value in values.items():
                if value is None:
                    continue
                node.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
    return path


def _period(time: str) -> dict[str, str]:
    """Ten minutes before to five minutes after a nominal time, as OPERA has them."""
    if len(time) != 6 or not "001000" <= time <= "235400":
        return PERIOD
    nominal = np.datetime64(f"2018-08-24T{time[:2]}:{time[2:4]}:{time[4:]}", "s")
    start, end = (str(nominal + minutes * 60)[11:].replace(":", "") for minutes in (-10, 5))
    return PERIOD | {"starttime": start, "endtime": end}


def odyssey(
    path: Path,
    *,
    time: str = "180000",
    data: np.ndarray | None = None,
    quantity: str = "RATE",
    root: Mapping[str, object] | None = None,
    **what: object,
) -> Path:
    """As OPERA's ODYSSEY wrote rain rates: the quantity beside the dataset, values already in mm/h."""
    if data is None:
        data = np.round(blob((44, 38), 20.0), 2)
        data[data < 0.1] = -8888000.0
        data[:3] = -9999000.0
    scaling = {"gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0}
    return odim(
        path,
        data,
        {
            "what": ROOT | {"time": time} | dict(root or {}),
            "where": LAEA,
            "dataset1/what": _period(time) | {"quantity": quantity, "product": "COMP"} | scaling | what,
            "dataset2/what": {"quantity": "QIND"},
        },
    )


def _odim_source(root: Path) -> Path:
    for nominal, start, end in (("1800", "1750", "1805"), ("1815", "1805", "1820"), ("1830", "1820", "1835")):
        name = f"T_PAAH21_C_EUOC_20180824{nominal}00.hdf"
        odyssey(root / name, time=f"{nominal}00", starttime=f"{start}00", endtime=f"{end}00")
    return root


# --- HKO-7 ----------------------------------------------------------------------------------------


def png(path: Path, levels: np.ndarray, mode: str = "L") -> Path:
    """A grey PNG in mode L, RGB, or P with the identity palette, as HKO-7 has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(levels, np.uint8))
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    image = image if image.mode == mode else image.convert(mode)
    image.save(path, dpi=(96, 96))
    return path


def hko7(
    root: Path, stamp: str, *, levels: np.ndarray | None = None, mode: str = "P", mask: np.ndarray | None = None
) -> Path:
    """A picture ``RADyymmddHHMM00.png`` in the folder of its day, and its mask where one is given."""
    if levels is None:
        levels = np.round(np.round(blob((480, 480), 70) * 2) / 2 * 255 / 70)
    day = Path("20" + stamp[:2], stamp[2:4], stamp[4:6])
    if mask is not None:
        packed = root / "radarPNG_mask" / day / f"RAD{stamp}00.mask"
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(zlib.compress(np.asarray(mask, bool).tobytes(), 2))
    return png(root / "radarPNG" / day / f"RAD{stamp}00.png", levels, mode)


def hko7_circle() -> np.ndarray:
    """Usable pixels: those within range of the radar."""
    row, column = np.indices((480, 480)) - 239.5
    return row**2 + column**2 < 238**2


def _hko7_source(root: Path) -> Path:
    for minute in ("00", "06", "12"):
        hko7(root, f"15051003{minute}", mask=hko7_circle())
    return root


# --- SEVIR ----------------------------------------------------------------------------------------

SEVIR_COLUMNS = (
    "id",
    "file_name",
    "file_index",
    "img_type",
    "time_utc",
    "minute_offsets",
    "episode_id",
    "event_id",
    "event_type",
    "llcrnrlat",
    "llcrnrlon",
    "urcrnrlat",
    "urcrnrlon",
    "proj",
    "size_x",
    "size_y",
    "height_m",
    "width_m",
    "data_min",
    "data_max",
    "pct_missing",
)
SEVIR_PROJECTION = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
SEVIR_OFFSETS = ":".join(str(minute) for minute in range(-120, 121, 5))
SEVIR_DTYPES = {"vil": np.uint8, "vis": np.int16, "ir069": np.int16, "ir107": np.int16}


def sevir_row(event: str, file_name: str, index: int, kind: str = "vil", **changes: object) -> dict[str, object]:
    """One row of the catalogue; the place is that of event S858968."""
    row = {
        "id": event,
        "file_name": file_name,
        "file_index": index,
        "img_type": kind,
        "time_utc": "2019-06-01 12:00:00",
        "minute_offsets": "" if kind == "lght" else SEVIR_OFFSETS,
        "episode_id": "",
        "event_id": event[1:] if event.startswith("S") else "",
        "event_type": "Hail",
        "llcrnrlat": 46.167805,
        "llcrnrlon": -94.760805,
        "urcrnrlat": 49.388668,
        "urcrnrlon": -89.263121,
        "proj": SEVIR_PROJECTION,
        "size_x": 384,
        "size_y": 384,
        "height_m": 384000.0,
        "width_m": 384000.0,
        "data_min": "",
        "data_max": "",
        "pct_missing": 0.0,
    }
    return row | changes


def sevir_catalog(root: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path = root / "CATALOG.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, SEVIR_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def sevir_file(path: Path, kind: str, images: np.ndarray, ids: Iterable[str], **options: object) -> Path:
    """An event file: ``id`` and a stack (event, row from the south, column, frame)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["id"] = np.array([event.encode() for event in ids])
        file.create_dataset(kind, data=images.astype(SEVIR_DTYPES[kind]), **options)
    return path


def sevir(
    root: Path,
    *,
    kind: str = "vil",
    side: int = 16,
    ids: Iterable[str] = ("S100001", "S100002"),
    rows: Callable[[list[dict]], list[dict]] = lambda rows: rows,
) -> Path:
    """A root with a catalogue and one file of ``kind``; ``rows`` may change the catalogue."""
    ids = list(ids)
    name = f"{kind}/2019/SEVIR_{kind.upper()}_STORMEVENTS_2019_0101_0630.h5"
    images = np.repeat(np.arange(1, len(ids) + 1)[:, None, None, None] * blob((side, side), 80)[..., None], 49, axis=-1)
    sevir_file(root / "data" / name, kind, images, ids, compression="gzip", chunks=(1, side, side, 49))
    sevir_catalog(root, rows([sevir_row(event, name, index, kind) for index, event in enumerate(ids)]))
    return root


# --- Shanghai-2020 --------------------------------------------------------------------------------


def shanghai_name(time: np.datetime64) -> str:
    stamp = "".join(character for character in str(time.astype("datetime64[s]")) if character.isdigit())
    return f"Z_RADR_I_Z9210_{stamp}_O_DOR_SA_CAP.png"


def shanghai(root: Path, example: str = "7", *, part: str = "train", start: str = "2015-06-17T03:11:09") -> Path:
    """One example of 10 + 10 pictures: 5 min 45 s apart, then 11 min 30 s."""
    steps = np.cumsum([0, *[345] * 9, *[690] * 10]).astype("timedelta64[s]")
    names = [shanghai_name(np.datetime64(start) + step) for step in steps]
    levels = blob((460, 460), 240).astype(np.uint8)
    levels[levels < 55] = 0
    for name in names:
        if not (root / part / "data" / name).exists():
            png(root / part / "data" / name, levels)
    folder = root / part / "examples" / example
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{example}-inputs-{part}.txt").write_text("\n".join(names[:10]) + "\n")
    (folder / f"{example}-targets-{part}.txt").write_text("\n".join(names[10:]) + "\n")
    return folder


def _shanghai_source(root: Path) -> Path:
    shanghai(root)
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "knmi": _knmi_source,
    "fmi-pgm": _fmi_source,
    "odim": _odim_source,
    "hko7": _hko7_source,
    "sevir": sevir,
    "shanghai2020": _shanghai_source,
}
"""Reader -> maker of a folder that it can read."""
