"""Writes the files of the page: its own, its images, and the manifest that names them.

Everything in the site folder but the manifest, the scores and the page's own files is immutable: a file name
contains the digest of the content. ``latest.json`` is written last and by rename, and files that it no
longer names are removed only after that, so the page is consistent even if this process ends at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast.config import AgeLimits
from nowcast.core import cube, provenance
from nowcast.core.cadence import contradictions, stated_cadence
from nowcast.core.cube import to_datetime
from nowcast.core.errors import BadInput
from nowcast.core.files import UNFINISHED, atomic_folder, write_atomic
from nowcast.core.grid import Grid
from nowcast.plotting import maps
from nowcast.plotting.levels import Picture, geography
from nowcast.verification.scores import derive, per_model

Json = dict[str, Any]
"""A JSON object."""
MANIFEST, SCORES, MAPS = "latest.json", "scores.json", "maps/index.json"
SCHEMA = 1
AGE = AgeLimits()
RECENT = 500
"""Newest frames that are compared with the input of the forecasts on the page."""
SKILL = ("csi", "pod", "far", "bias", "ssim", "mse", "mae")


def publish(
    observed: xr.Dataset,
    forecasts: xr.Dataset,
    scores: xr.Dataset | None,
    site: Path,
    *,
    title: str = "Precipitation nowcast",
    channel: str | None = None,
    products: Sequence[str] = (),
    thresholds: Sequence[float] | None = None,
    age: AgeLimits = AGE,
    keep_runs: int = 24,
    keep_observed: int = 36,
    replay: bool = False,
    retain: timedelta = timedelta(hours=6),
) -> Path:
    """Bring the site folder up to date with the stores.

    Args:
        observed: Cube, opened lazily; only the newest frames are read.
        forecasts: Forecast store (run, lead_time, y, x); it may have no runs.
        scores: Score store (run, lead_time, threshold), or None.
        site: Folder served to browsers; made if it does not exist.
        title: Heading of the page.
        channel: Channel shown; None is the first of the forecasts, or of the Cube.
        products: Names of the products in the order of the page, the first is shown at first; other products of
            the forecasts follow.
        thresholds: Thresholds offered by the skill chart; None: those of the scores.
        age: Minutes after which the page warns.
        keep_runs: Newest reference times kept on the page.
        keep_observed: Newest observed frames kept on the page.
        replay: Archived data: the page's clock is the time of the newest frame.
        retain: How long files that the manifest no longer names stay, for pages that are still open.

    Returns:
        Path of the manifest ``latest.json``.

    Raises:
        BadInput: If the forecasts are on another grid than the observations, or nothing is observed.
    """
    name, grid = channel or _channel(observed, forecasts), Grid.of(observed)
    if not observed.sizes["time"]:
        raise BadInput("observed", "has no frames", "ingest some first")
    if forecasts.sizes["run"] and Grid.of(forecasts).digest != grid.digest:
        raise BadInput("forecasts", "are on another grid than the observations", "use a forecast store per grid")
    site.mkdir(parents=True, exist_ok=True)
    picture = Picture.of(name, grid)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        frames = _publish_observed(observed[name].isel(time=slice(-keep_observed, None)), site, picture, pool)
        runs = _publish_runs(forecasts, name, site, picture, pool, keep_runs)
    _mark_corrected(runs, forecasts, observed)
    manifest = {
        "schema": SCHEMA,
        "page": _publish_page(site),
        "created": _iso(datetime.now(UTC)),
        "replay": replay,
        "title": title,
        "attribution": _attribution(observed),
        "cadence_s": observed.attrs.get("cadence_seconds"),
        "notes": _notes(observed),
        **_legend(site, name, grid, picture),
        "age_minutes": {"amber": age.amber, "red": age.red},
        "observed": frames,
        "products": _products(products, runs),
        "runs": runs,
        "scores": SCORES if scores is not None else None,
        "maps": _read(site / MAPS),
    }
    if scores is not None:
        write_atomic(site / SCORES, _json(_skill(scores, thresholds, keep_runs)))
    write_atomic(site / MANIFEST, _json(manifest))
    _remove_unnamed(site, manifest, retain)
    return site / MANIFEST


def _notes(observed: xr.Dataset) -> list[str]:
    """Say what the times of a live feed say against its stated step."""
    if "cadence_seconds" not in observed.attrs:
        return []
    return contradictions(observed["time"].values, **stated_cadence(observed.attrs))


def _legend(site: Path, name: str, grid: Grid, picture: Picture) -> Json:
    """Describe what the images show and how to colour them; publish their background."""
    return {
        "quantity": {"name": name, "unit": maps.table_for(name).unit, "long_name": picture.quantity.long_name},
        "base": _publish_base(site, grid, picture),
        "values": picture.manifest(),
        "colours": _colours(name),
    }


def publish_maps(
    observed: xr.Dataset,
    forecasts: xr.Dataset,
    site: Path,
    *,
    leads: Sequence[int] = (1, 6, 12),
    channel: str | None = None,
    product: str | None = None,
) -> list[Path]:
    """Draw the newest run as map images and a loop, for use outside the page, and name them in the manifest.

    Args:
        observed: Cube, opened lazily.
        forecasts: Forecast store.
        site: Folder served to browsers.
        leads: Lead times drawn as single images, counted from 1; the loop has all of them.
        channel: Channel drawn, as in ``publish``.
        product: Product drawn; None is the first of the newest runs.

    Returns:
        Paths of the images; none if the run was withheld or there is none yet.
    """
    name, index, drawn = channel or _channel(observed, forecasts), None, []
    run = _newest(forecasts, product)
    if run is not None and str(run["state"].values) != "withheld":
        reference = to_datetime(run["forecast_reference_time"])
        folder = site / "maps" / f"{reference:%Y%m%dT%H%MZ}" / _run_name(run, name, *leads)
        if not folder.exists():
            with atomic_folder(folder) as aside:
                for file, content in _draw_maps(observed, run[name], leads):
                    (aside / file).write_bytes(content)
        drawn = sorted(folder.iterdir())
        links = [{"file": path.relative_to(site).as_posix(), "text": path.stem} for path in drawn]
        index = {"reference_time": _iso(reference), "model": str(run["model"].values), "files": links}
    write_atomic(site / MAPS, _json(index))
    if manifest := _read(site / MANIFEST):
        write_atomic(site / MANIFEST, _json(manifest | {"maps": index}))
    return drawn


# --- images -----------------------------------------------------------------------------------------


def _publish_observed(frames: xr.DataArray, site: Path, picture: Picture, pool: ThreadPoolExecutor) -> list[Json]:
    folder = site / "observed"
    folder.mkdir(exist_ok=True)

    def write(index: int) -> Json:
        frame = frames.isel(time=index)
        stamp = to_datetime(frame["time"])
        # A store keeps the digests, so that frames published before are not read again.
        content = str(frame["digest"].values) if "digest" in frame.coords else cube.digest(frame.values)
        name = f"{stamp:%Y%m%dT%H%M%SZ}-{_digest(_json([picture.meaning, content]))}.png"
        if not (folder / name).exists():
            write_atomic(folder / name, picture.png(frame.values))
        return {"time": _iso(stamp), "file": f"observed/{name}"}

    return list(pool.map(write, range(frames.sizes["time"])))


def _publish_runs(
    forecasts: xr.Dataset, name: str, site: Path, picture: Picture, pool: ThreadPoolExecutor, keep: int
) -> list[Json]:
    """Publish runs, the newest reference time first, the models of each in the order of the store."""
    references = forecasts["forecast_reference_time"].values
    runs = []
    for reference in np.unique(references)[::-1][:keep]:
        rows = {str(forecasts["model"].values[row]): row for row in np.flatnonzero(references == reference)}
        models = [_publish_run(forecasts.isel(run=row), name, site, picture, pool) for row in rows.values()]
        runs.append({"reference_time": _iso(to_datetime(reference)), "models": models})
    return runs


def _publish_run(run: xr.Dataset, name: str, site: Path, picture: Picture, pool: ThreadPoolExecutor) -> Json:
    known = [key for key in ("model", "producer", "state", "reason", "checkpoint") if key in run.coords]
    labels = {key: str(run[key].values) for key in known}
    created = to_datetime(run["created"])
    entry: Json = labels | {"created": _iso(created), "folder": None, "leads": []}
    entry["bridged"] = provenance.bridged(str(run["input_frames"].values)) if "input_frames" in run.coords else []
    entry["revised"] = str(run["revised"].values) if "revised" in run.coords else ""
    if labels["state"] == "withheld":
        return entry
    folder = (
        site / "runs" / f"{to_datetime(run['forecast_reference_time']):%Y%m%dT%H%MZ}" / _run_name(run, picture.meaning)
    )
    leads = [_minutes(lead) for lead in run["lead_time"].values]
    if not folder.exists():
        with atomic_folder(folder) as aside:
            pictures = pool.map(lambda row: picture.png(run[name][row].values), range(len(leads)))
            for lead, content in zip(leads, pictures, strict=True):
                (aside / _lead_name(lead)).write_bytes(content)
    return entry | {
        "folder": folder.relative_to(site).as_posix(),
        "leads": leads,
        "files": [_lead_name(lead) for lead in leads],
    }


def _mark_corrected(runs: list[Json], forecasts: xr.Dataset, observed: xr.Dataset) -> None:
    """List in every entry the input frames that were corrected, or came, after the forecast was made."""
    if "digest" not in observed.coords or "input_frames" not in forecasts.coords:
        return
    there = provenance.digests(observed["time"].values[-RECENT:], observed["digest"].values[-RECENT:])
    references = forecasts["forecast_reference_time"].values
    shown = np.flatnonzero(np.isin(references, np.unique(references)[::-1][: len(runs)]))
    models, frames = forecasts["model"].values, forecasts["input_frames"].values
    inputs = {(_iso(to_datetime(references[row])), str(models[row])): str(frames[row]) for row in shown}
    for run in runs:
        for entry in run["models"]:
            entry["corrected"] = provenance.changed(inputs[run["reference_time"], entry["model"]], there)


def _run_name(run: xr.Dataset, *meaning: object) -> str:
    """Name a run by its model and a digest of its provenance, so that the fields of old runs are not read again."""
    origin = ("model", "producer", "state", "reason", "created", "checkpoint", "snapshot", "input_frames")
    words = [str(run[key].values) for key in origin if key in run.coords]
    return f"{run['model'].values}-{_digest(_json([*words, *map(str, meaning)]))}"


def _newest(forecasts: xr.Dataset, product: str | None) -> xr.Dataset | None:
    reference = forecasts["forecast_reference_time"].values
    wanted = np.full(reference.shape, True) if product is None else forecasts["model"].values == product
    rows = np.flatnonzero(wanted & np.isin(reference, np.unique(reference)[-1:]))
    return forecasts.isel(run=rows[0 if product is None else -1]) if rows.size else None


def _draw_maps(observed: xr.Dataset, run: xr.DataArray, leads: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """Draw the chosen lead times as (name, PNG), and a loop that begins with the observed frame of the run."""
    painter = maps.MapPainter(Grid.of(observed), str(run.name), source=_attribution(observed))
    start = observed[str(run.name)].sel(time=run["forecast_reference_time"].values, method="nearest")
    frames = [start, *(run.isel(lead_time=step) for step in range(run.sizes["lead_time"]))]
    drawn = [painter.png(frame.values, caption=maps.Caption.of(frame)) for frame in frames]
    for step in leads:
        if step < len(drawn):
            yield _lead_name(_minutes(run["lead_time"].values[step - 1])), drawn[step]
    yield "loop.gif", maps.loop(drawn)


def _lead_name(minutes: float) -> str:
    """Name the file of a lead time in minutes: ``+005.png``, or with a fraction ``+005.75.png``."""
    whole, dot, fraction = f"{minutes:g}".partition(".")
    return f"+{whole:0>3}{dot}{fraction}.png"


# --- the rest of the page ---------------------------------------------------------------------------


def _publish_page(site: Path) -> str:
    """Copy the page's own files where they differ; an open page reloads itself when their digest changes."""
    shipped = files(__package__).joinpath("site").iterdir()
    contents = {item.name: item.read_bytes() for item in shipped if item.is_file()}
    for name, content in contents.items():
        target = site / name
        if not target.exists() or target.read_bytes() != content:
            write_atomic(target, content)
    return _digest(b"".join(contents[name] for name in sorted(contents)))


def _publish_base(site: Path, grid: Grid, picture: Picture) -> str:
    """Write boundaries and the longitude/latitude lattice in pixels, once per grid, and return the file's name."""
    name = f"base-{_digest(_json([picture.meaning, grid.digest]))}.json"
    if not (site / name).exists():
        write_atomic(site / name, _json(geography(grid, picture)))
    return name


def _colours(name: str) -> dict[str, Json]:
    tables = {"default": maps.table_for(name), "safe": maps.table_for(name, safe=True)}
    return {
        kind: {"name": table.name, "breaks": [_round(value) for value in table.breaks], "colours": table.colours}
        for kind, table in tables.items()
    }


def _products(wanted: Sequence[str], runs: list[Json]) -> list[str]:
    """List the configured products, then those that only the forecasts have, newest run first."""
    return list(dict.fromkeys([*wanted, *(entry["model"] for run in runs for entry in run["models"])]))


def _attribution(observed: xr.Dataset) -> str:
    return " · ".join(str(observed.attrs[key]) for key in ("title", "source", "licence") if observed.attrs.get(key))


def _channel(observed: xr.Dataset, forecasts: xr.Dataset) -> str:
    shown = [str(name) for name, field in forecasts.data_vars.items() if field.dims[-2:] == ("y", "x")]
    return (shown or cube.channels(observed))[0]


def _skill(scores: xr.Dataset, thresholds: Sequence[float] | None, keep: int) -> dict[str, object]:
    """Derive the scores of the newest verified runs, pooled and run by run; None where undefined."""
    if thresholds is not None:
        known = np.isclose(scores["threshold"].values[:, None], np.asarray(thresholds)).any(axis=1)
        scores = scores.isel(threshold=np.flatnonzero(known))
    scores = scores.isel(run=np.flatnonzero((scores["n"] > 0).any("lead_time").values)).load()
    reference = scores["forecast_reference_time"].values
    kept = np.unique(reference)[::-1][:keep]
    scores = scores.isel(run=np.isin(reference, kept))
    issued = scores.assign_coords(state=("run", ["ok"] * scores.sizes["run"]))  # fallbacks count for their product
    each = scores.assign(runs=(scores["n"] > 0).astype(np.int64))
    rows = list(zip(reference[np.isin(reference, kept)], scores["model"].values, _ratios(each, "run"), strict=True))
    return {
        "rule": "Counts and sums are added over runs before dividing. "
        "Products are judged as they were issued, fallbacks included.",
        "thresholds": [_round(value) for value in scores["threshold"].values],
        "leads": [_minutes(lead) for lead in scores["lead_time"].values],
        "pooled": _by_model(per_model(issued)) if kept.size else {},
        "runs": [
            {
                "reference_time": _iso(to_datetime(time)),
                "models": {str(model): ratios for start, model, ratios in rows if start == time},
            }
            for time in kept
        ],
    }


def _by_model(pooled: xr.Dataset) -> dict[str, Json]:
    return dict(zip(pooled["model"].values.tolist(), _ratios(pooled, "model"), strict=True))


def _ratios(sums: xr.Dataset, along: str) -> list[Json]:
    """Derive scores per row: by lead time, categorical ones by threshold too, with the pixels and runs compared."""
    ratios = derive(sums, SKILL, over=())
    columns = {key: ratios[key].transpose(along, ..., "lead_time").values for key in SKILL}
    support = [
        {"pixels": n.tolist(), "runs": runs.tolist()}
        for n, runs in zip(sums["n"].values, sums["runs"].values, strict=True)
    ]
    return [row | {key: _numbers(values[at]) for key, values in columns.items()} for at, row in enumerate(support)]


# --- reading and removing files ---------------------------------------------------------------------


def _read(path: Path) -> Json | None:
    found: Json | None = json.loads(path.read_bytes()) if path.exists() else None
    return found


def _remove_unnamed(site: Path, manifest: Mapping[str, Any], retain: timedelta) -> None:
    """Remove images that the manifest does not name and that are older than an open page may need."""
    named = {frame["file"] for frame in manifest["observed"]} | {manifest["base"]}
    named |= {entry["folder"] for run in manifest["runs"] for entry in run["models"] if entry["folder"]}
    named |= {entry["file"].rpartition("/")[0] for entry in (manifest["maps"] or {"files": []})["files"]}
    limit = time.time() - retain.total_seconds()
    for pattern in ("base-*.json", "observed/*", "runs/*/*", "maps/*/*", f"**/{UNFINISHED}*"):
        for path in list(site.glob(pattern)):
            if path.relative_to(site).as_posix() not in named and path.exists() and path.stat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in (*site.glob("runs/*"), *site.glob("maps/*")):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# --- numbers and times for JSON ---------------------------------------------------------------------


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _round(value: float, digits: int = 5) -> float:
    """Round to some significant digits; whole numbers become int."""
    short = float(f"{float(value):.{digits}g}")
    return int(short) if short.is_integer() else short


def _numbers(values: np.ndarray) -> list[Any]:
    """Convert an array to nested lists; JSON has no NaN, so values that are not finite become None."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [_round(value, 7) if np.isfinite(value) else None for value in values]


def _minutes(lead: np.timedelta64) -> float:
    return _round(lead / np.timedelta64(60, "s"))


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=4).hexdigest()


def _iso(stamp: datetime) -> str:
    return f"{stamp:%Y-%m-%dT%H:%M:%SZ}"
