"""Writes what a browser reads: the page, its pictures, and the manifest that names them.

Everything in the site folder but the manifest, the scores and the page itself is immutable: a name
carries the digest of the content. ``latest.json`` is written last and by rename, and files that it no
longer names go only after that, so a reader sees a whole page whenever this process dies.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import xarray as xr

from nowcast import cube, maps
from nowcast.config import AgeLimits
from nowcast.cube import BadInput
from nowcast.grid import NORTH_UP, Grid
from nowcast.scores import derive, per_model
from nowcast.units import Quantity, quantity

MANIFEST, SCORES, MAPS = "latest.json", "scores.json", "maps/index.json"
UNFINISHED = ".new-"
SCHEMA = 1
LONGEST_SIDE = 1600
"""Pixels; larger grids are reduced, because a browser holds some fifty frames in memory."""
LATTICE = 33
"""Nodes per side of the longitude/latitude lattice that the page interpolates in."""
SKILL = ("csi", "pod", "far", "bias", "ssim", "mse", "mae")
UNIT_SIGNS = {"mm h-1": "mm/h", "kg m-2": "kg/m²", "degC": "°C", "1": ""}
"""CF units as people read them."""


def publish(observed: xr.Dataset, forecasts: xr.Dataset, scores: xr.Dataset | None, site: Path, *,
            title: str = "Precipitation nowcast", channel: str | None = None, products: Sequence[str] = (),
            thresholds: Sequence[float] | None = None, age: AgeLimits = AgeLimits(), keep_runs: int = 24,
            keep_observed: int = 36, replay: bool = False, retain: timedelta = timedelta(hours=6)) -> Path:  # fmt: skip
    """Brings the site folder up to date with the stores.

    Args:
        observed: Cube, opened lazily; only the newest frames are read.
        forecasts: Forecast store (run, lead_time, y, x); it may have no runs.
        scores: Score store (run, lead_time, threshold), or None.
        site: Folder served to browsers; made if it does not exist.
        title: Heading of the page.
        channel: Quantity shown; None is the first of the forecasts, or of the Cube.
        products: Names of the products in the order of the page, the first one opens; products that
            only the forecasts know follow.
        thresholds: Event limits offered by the skill chart; None: those of the scores.
        age: Minutes after which the page warns.
        keep_runs: Newest reference times kept on the page.
        keep_observed: Newest observed frames kept on the page.
        replay: Archived data: the page's clock stands at the newest frame.
        retain: Files that the manifest no longer names stay this long, for pages still open.

    Returns:
        The manifest ``latest.json``.

    Raises:
        BadInput: If the forecasts are on another grid than the observations, or nothing is observed.
    """
    name = channel or _channel(observed, forecasts)
    grid = Grid.of(observed)
    if not observed.sizes["time"]:
        raise BadInput("observed", "has no frames", "ingest some first")
    if forecasts.sizes["run"] and Grid.of(forecasts).digest != grid.digest:
        raise BadInput("forecasts", "are on another grid than the observations", "use a forecast store per grid")
    site.mkdir(parents=True, exist_ok=True)
    picture = Picture.of(name, grid)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        frames = _publish_observed(observed[name].isel(time=slice(-keep_observed, None)), site, picture, pool)
        runs = _publish_runs(forecasts, name, site, picture, pool, keep_runs)
    manifest = {
        "schema": SCHEMA, "page": _publish_page(site), "created": _iso(datetime.now(UTC)), "replay": replay,
        "title": title, "attribution": _attribution(observed), "cadence_s": observed.attrs.get("cadence_seconds"),
        "quantity": {"name": name, "unit": UNIT_SIGNS.get(picture.quantity.unit, picture.quantity.unit),
                     "long_name": picture.quantity.long_name},
        "base": _publish_base(site, grid, picture), "values": picture.manifest(), "colours": _colours(name),
        "age_minutes": {"amber": age.amber, "red": age.red},
        "observed": frames, "products": _products(products, runs), "runs": runs, "scores": None,
        "maps": _read(site / MAPS),
    }  # fmt: skip
    if scores is not None:
        _write(site / SCORES, _json(_skill(scores, thresholds, keep_runs)))
        manifest["scores"] = SCORES
    _write(site / MANIFEST, _json(manifest))
    _remove_unnamed(site, manifest, retain)
    return site / MANIFEST


# --- value pictures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """How a field becomes 8-bit grey levels: 0 no data, 1 below the lowest value, 2 to 255 values.

    The page colours and reads the levels itself, so one picture serves every colour table.
    """

    quantity: Quantity
    logarithmic: bool
    low: float
    high: float
    flip: tuple[bool, bool]
    """Rows, columns: turned so that the first pixel is in the north-west."""
    reduction: int
    """Pixels of the grid per pixel of the picture and side; the largest value is kept."""

    @classmethod
    def of(cls, name: str, grid: Grid) -> Picture:
        """The picture that suits a quantity's colour tables and a grid."""
        breaks = np.concatenate([maps.table_for(name, safe=safe).breaks for safe in (False, True)])
        logarithmic = quantity(name).scaling.kind == "decibel"
        low, top = float(breaks.min()), float(breaks.max())
        high = 2 * top if logarithmic else top + (top - low) / 10
        flip = (grid.orientation != NORTH_UP, bool(grid.x[0] > grid.x[-1]))
        return cls(quantity(name), logarithmic, low, high, flip, math.ceil(max(grid.shape) / LONGEST_SIDE))

    @property
    def table(self) -> np.ndarray:
        """Physical values of levels 2 to 255."""
        return (np.geomspace if self.logarithmic else np.linspace)(self.low, self.high, 254)

    def levels(self, field_YX: np.ndarray) -> np.ndarray:
        """Field in physical units, NaN = no data -> uint8 levels, north-west first."""
        low, high = np.float32(self.low), np.float32(self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.log(field_YX / low) / np.log(high / low) if self.logarithmic else (field_YX - low) / (high - low)
            level = np.rint(share * np.float32(253)) + 2
        np.minimum(level, 255, out=level)
        level[~(field_YX >= low)] = 1
        level[np.isnan(field_YX)] = 0
        rows, columns = (-1 if turned else 1 for turned in self.flip)
        return self._reduced(level.astype(np.uint8)[::rows, ::columns])

    def _reduced(self, level: np.ndarray) -> np.ndarray:
        """Largest level of every block: levels rise with the value, so no storm core is lost."""
        if self.reduction == 1:
            return np.ascontiguousarray(level)
        side = self.reduction
        padded = np.pad(level, [(0, -size % side) for size in level.shape])
        rows, columns = (size // side for size in padded.shape)
        return padded.reshape(rows, side, columns, side).max(axis=(1, 3))

    def png(self, field_YX: np.ndarray) -> bytes:
        """The levels as a PNG; run-length deflate is both the fastest and the smallest on rain."""
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        return cv2.imencode(".png", self.levels(field_YX), options)[1].tobytes()

    def key(self, *identity: object) -> str:
        """Eight digits that change with the content or with the meaning of the levels."""
        meaning = (self.quantity.name, self.low, self.high, self.flip, self.reduction, *identity)
        return _digest(json.dumps(meaning, default=str).encode())

    def manifest(self) -> dict[str, object]:
        return {"below": self.low, "table": [_round(value) for value in self.table],
                "logarithmic": self.logarithmic, "reduction": self.reduction}  # fmt: skip


def _publish_observed(frames: xr.DataArray, site: Path, picture: Picture, pool: ThreadPoolExecutor) -> list[dict]:
    folder = site / "observed"
    folder.mkdir(exist_ok=True)

    def write(index: int) -> dict:
        frame = frames.isel(time=index)
        stamp = _utc(frame["time"])
        # A store remembers the digests, so that frames published before are not read again.
        content = str(frame["digest"].values) if "digest" in frame.coords else cube.digest(frame.values)
        name = f"{stamp:%Y%m%dT%H%M%SZ}-{picture.key(content)}.png"
        if not (folder / name).exists():
            _write(folder / name, picture.png(frame.values))
        return {"time": _iso(stamp), "file": f"observed/{name}"}

    return list(pool.map(write, range(frames.sizes["time"])))


def _publish_runs(forecasts: xr.Dataset, name: str, site: Path, picture: Picture, pool: ThreadPoolExecutor,
                  keep: int) -> list[dict]:  # fmt: skip
    """Newest reference time first; the models of a run in the order of the store."""
    references = forecasts["forecast_reference_time"].values
    runs = []
    for reference in np.unique(references)[::-1][:keep]:
        rows = {str(forecasts["model"].values[row]): row for row in np.flatnonzero(references == reference)}
        models = [_publish_run(forecasts.isel(run=row), name, site, picture, pool) for row in rows.values()]
        runs.append({"reference_time": _iso(_utc(reference)), "models": models})
    return runs


def _publish_run(run: xr.Dataset, name: str, site: Path, picture: Picture, pool: ThreadPoolExecutor) -> dict:
    labels = {key: str(run[key].values) for key in ("model", "producer", "state", "reason") if key in run.coords}
    created = _utc(run["created"])
    entry = labels | {"created": _iso(created), "folder": None, "leads": []}
    if labels["state"] == "withheld":
        return entry
    origin = [str(run[key].values) for key in ("checkpoint", "snapshot", "input_frames") if key in run.coords]
    key = picture.key(*labels.values(), str(created), *origin)
    folder = site / "runs" / f"{_utc(run['forecast_reference_time']):%Y%m%dT%H%MZ}" / f"{labels['model']}-{key}"
    leads = [_minutes(lead) for lead in run["lead_time"].values]
    if not folder.exists():
        _write_folder(folder, pool.map(lambda row: (_lead_name(leads[row]), picture.png(run[name][row].values)),
                                       range(len(leads))))  # fmt: skip
    return entry | {"folder": folder.relative_to(site).as_posix(), "leads": leads,
                    "files": [_lead_name(lead) for lead in leads]}  # fmt: skip


def _lead_name(minutes: float) -> str:
    """+005.png; cadences that are not whole minutes keep their fraction: +005.75.png."""
    whole, dot, fraction = f"{minutes:g}".partition(".")
    return f"+{whole:0>3}{dot}{fraction}.png"


# --- what goes around the pictures ------------------------------------------------------------------


def _publish_page(site: Path) -> str:
    """Copies the page's own files where they differ; returns their digest, by which a page reloads itself."""
    contents = {item.name: item.read_bytes() for item in files("nowcast").joinpath("site").iterdir() if item.is_file()}
    for name, content in contents.items():
        target = site / name
        if not target.exists() or target.read_bytes() != content:
            _write(target, content)
    return _digest(b"".join(contents[name] for name in sorted(contents)))


def _publish_base(site: Path, grid: Grid, picture: Picture) -> str:
    """Boundaries and the longitude/latitude lattice in pixel coordinates; drawn once per grid."""
    name = f"base-{picture.key(grid.digest)}.json"
    if not (site / name).exists():
        _write(site / name, _json(_base(grid, picture)))
    return name


def _base(grid: Grid, picture: Picture) -> dict[str, object]:
    rows, columns = (math.ceil(size / picture.reduction) for size in grid.shape)
    y, x = (axis[::-1] if turned else axis for axis, turned in zip((grid.y, grid.x), picture.flip, strict=True))
    row_step, column_step = ((axis[-1] - axis[0]) / (axis.size - 1) * picture.reduction for axis in (y, x))
    left, top = x[0] - column_step / picture.reduction / 2, y[0] - row_step / picture.reduction / 2
    node_x, node_y = np.meshgrid(np.linspace(left, left + columns * column_step, LATTICE),
                                 np.linspace(top, top + rows * row_step, LATTICE))  # fmt: skip
    lon, lat = grid.lonlat(node_x, node_y)
    squeeze = math.cos(math.radians(float(y.mean()))) if grid.crs.is_geographic else 1.0
    lines: dict[str, list] = {}
    for line in maps.boundaries(grid):
        points = np.stack([(np.asarray(line.x) - left) / column_step, (np.asarray(line.y) - top) / row_step], axis=1)
        lines.setdefault(line.kind, []).append(np.round(points, 1).ravel().tolist())
    return {"width": columns, "height": rows, "aspect": _round(abs(row_step / column_step) / squeeze), "lines": lines,
            "lattice": {"nodes": LATTICE, "lon": _numbers(lon), "lat": _numbers(lat)}}  # fmt: skip


def _colours(name: str) -> dict[str, dict]:
    return {kind: {"name": table.name, "breaks": [_round(value) for value in table.breaks],
                   "colours": list(table.colours)}
            for kind, table in (("default", maps.table_for(name)), ("safe", maps.table_for(name, safe=True)))}  # fmt: skip


def _products(wanted: Sequence[str], runs: list[dict]) -> list[str]:
    """Configured names first; then those that only the forecasts know, newest run first."""
    return list(dict.fromkeys([*wanted, *(entry["model"] for run in runs for entry in run["models"])]))


def _attribution(observed: xr.Dataset) -> str:
    return " · ".join(str(observed.attrs[key]) for key in ("title", "source", "licence") if observed.attrs.get(key))


def _channel(observed: xr.Dataset, forecasts: xr.Dataset) -> str:
    shown = [str(name) for name, field in forecasts.data_vars.items() if field.dims[-2:] == ("y", "x")]
    return (shown or cube.channels(observed))[0]


def _skill(scores: xr.Dataset, thresholds: Sequence[float] | None, keep: int) -> dict[str, object]:
    """Scores of the newest verified runs, pooled and run by run; None where undefined."""
    if thresholds is not None:
        known = np.isclose(scores["threshold"].values[:, None], np.asarray(thresholds)).any(axis=1)
        scores = scores.isel(threshold=np.flatnonzero(known))
    scores = scores.isel(run=np.flatnonzero((scores["n"] > 0).any("lead_time").values)).load()
    reference = scores["forecast_reference_time"].values
    kept = np.unique(reference)[::-1][:keep]
    return {
        "rule": "Counts and sums are added over runs before dividing. "
                "Products are judged as they were issued, fallbacks included.",
        "thresholds": [_round(value) for value in scores["threshold"].values],
        "leads": [_minutes(lead) for lead in scores["lead_time"].values],
        "pooled": _by_model(scores.isel(run=np.isin(reference, kept))),
        "runs": [{"reference_time": _iso(_utc(time)), "models": _by_model(scores.isel(run=reference == time))}
                 for time in kept],
    }  # fmt: skip


def _by_model(scores: xr.Dataset) -> dict[str, dict]:
    """Per model: scores by lead, categorical ones by threshold and lead, with pixels and runs behind them."""
    if not scores.sizes["run"]:
        return {}
    pooled = per_model(scores)
    ratios = derive(pooled, SKILL, over=())
    results = {}
    for name in pooled["model"].values:
        one, n = ratios.sel(model=name), pooled.sel(model=name)
        results[str(name)] = {
            "pixels": n["n"].values.tolist(), "runs": n["runs"].values.tolist(),
            **{key: [_numbers(row) for row in one[key].transpose("threshold", "lead_time").values]
               if "threshold" in one[key].dims else _numbers(one[key].values) for key in SKILL},
        }  # fmt: skip
    return results


# --- writing, forgetting ----------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    temporary = path.with_name(UNFINISHED + path.name)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_folder(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    temporary = folder.with_name(UNFINISHED + folder.name)
    temporary.mkdir(parents=True, exist_ok=True)
    for name, content in contents:
        _write(temporary / name, content)
    temporary.rename(folder)


def _read(path: Path) -> dict | None:
    return json.loads(path.read_bytes()) if path.exists() else None


def _remove_unnamed(site: Path, manifest: Mapping, retain: timedelta) -> None:
    """Removes pictures that the manifest does not name and that nobody can be looking at any more."""
    named = {frame["file"] for frame in manifest["observed"]} | {manifest["base"]}
    named |= {entry["folder"] for run in manifest["runs"] for entry in run["models"] if entry["folder"]}
    limit = time.time() - retain.total_seconds()
    for pattern in ("base-*.json", "observed/*", "runs/*/*", "maps/*/*", f"**/{UNFINISHED}*"):
        for path in list(site.glob(pattern)):
            if path.relative_to(site).as_posix() not in named and path.exists() and path.stat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in site.glob("runs/*"):
        if not any(folder.iterdir()):
            folder.rmdir()


# --- numbers and times for JSON ---------------------------------------------------------------------


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _round(value: float, digits: int = 5) -> float:
    """Shortest number with so many significant digits; whole ones without a point."""
    short = float(f"{float(value):.{digits}g}")
    return int(short) if short.is_integer() else short


def _numbers(values: np.ndarray) -> list[float | None]:
    """Flat list; JSON has no NaN, so what is not finite becomes None."""
    return [_round(value, 7) if np.isfinite(value) else None for value in np.ravel(values)]


def _minutes(lead: np.timedelta64) -> float:
    return _round(lead / np.timedelta64(60, "s"))


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=4).hexdigest()


def _utc(stamp: xr.DataArray | np.datetime64) -> datetime:
    return np.asarray(stamp).astype("datetime64[s]").item().replace(tzinfo=UTC)


def _iso(stamp: datetime) -> str:
    return f"{stamp:%Y-%m-%dT%H:%M:%SZ}"
