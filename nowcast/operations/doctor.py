"""Check machine, packages, settings and stores, and say what to fix."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from nowcast.config import CHAMPION, REGISTRY, Operations
from nowcast.core.cube import check as check_cube
from nowcast.core.cube import to_datetime
from nowcast.core.errors import BadInput, ConfigError, StoreError
from nowcast.core.provenance import stamp
from nowcast.forecasting.run import CADENCE_TOLERANCE
from nowcast.ingestion import memory
from nowcast.models import MODELS, model_class
from nowcast.operations import cycle, promotion
from nowcast.operations.stores import Stores
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.registry.registry import Registry, champion_file
from nowcast.store import FrameStore, Store
from nowcast.web.publish import MANIFEST

PACKAGES = (
    "torch",
    "lightning",
    "xarray",
    "zarr",
    "icechunk",
    "prefect",
    "fastapi",
    "sqlalchemy",
    "opencv-python-headless",
)
DISK_GIB = 5
PREFECT_BREAKS = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
"""First versions that prefect 3.8 fails with; with SQLAlchemy 2.1 its schedules stop without an error."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    found: str
    ok: bool = True
    remedy: str = ""


def examine(config: str | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Check the machine, and an operational chain if one is named.

    Args:
        config: Operations file, or the name of a shipped one; None: the machine alone.
        overrides: Changes to it, as ``key=value``: those that the chain runs with.
    """
    chain = _chain(config, overrides) if config else _not_named()
    return [*_machine(), *_packages(), *chain]


def _not_named() -> Iterator[Finding]:
    yield Finding("chain", "not looked at: no operations file is named")


def _machine() -> Iterator[Finding]:
    yield Finding(
        "python", f"{platform.python_version()} at {sys.prefix}", sys.version_info >= (3, 11), "use 3.11 or newer"
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; networks run on the CPU"
    yield Finding("GPU", gpu)
    yield _disk("disk", [Path.cwd()])


def _disk(what: str, folders: Sequence[Path]) -> Finding:
    """Check the free space of a disk, and that its folders can be written."""
    there = {folder: _existing(folder) for folder in folders}
    free = shutil.disk_usage(there[folders[0]]).free / 2**30
    names = ", ".join(map(str, folders))
    if shut := [str(folder) for folder, found in there.items() if not os.access(found, os.W_OK | os.X_OK)]:
        return Finding(what, f"{', '.join(shut)} cannot be written", False, "make it writable for this user")
    return Finding(what, f"{free:.1f} GiB free for {names}", free > DISK_GIB, f"free {DISK_GIB} GiB, or work elsewhere")


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _disks(settings: Operations) -> Iterator[Finding]:
    """Check each disk that the chain writes to, once; object stores are not looked at."""
    places = [settings.store, settings.forecasts, settings.scores]
    local = [Path(place) for place in places if "://" not in place] + [settings.site]
    local += [folder for folder in (settings.netcdf, settings.registry) if folder]
    disks: dict[int, list[Path]] = {}
    for folder in local:
        disks.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        yield _disk("disk", folders)
    if remote := [place for place in places if "://" in place]:
        yield Finding("disk", f"not looked at: {', '.join(remote)}")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "missing", False, "pip install -c constraints.txt nowcast-radar")
            continue
        limit = PREFECT_BREAKS.get(name)
        parts = tuple(int(part) for part in found.split(".")[:2])
        fine = limit is None or parts < limit
        yield Finding(name, found, fine, f"pip install -c constraints.txt {name}: prefect 3.8 breaks with this one")


def _chain(config: str, overrides: Sequence[str]) -> Iterator[Finding]:
    try:
        settings = cycle.load(config, overrides)
    except ConfigError as error:
        log.debug("%s is refused", config, exc_info=True)
        yield Finding("settings", str(error), False, "correct the file")
        return
    yield Finding("settings", f"{config} is valid")
    yield _feed(settings)
    yield from _disks(settings)
    yield from _models(settings)
    yield from _registry(settings)
    stores = Stores.of(settings)
    found = {name: _store(name, store) for name, store in stores._asdict().items()}
    yield from found.values()
    if found["frames"].ok:
        yield from _frames(settings, stores.frames)
    yield from _page(settings)


def _feed(settings: Operations) -> Finding:
    source = settings.feed.source
    remedy = "make the folder, or correct feed.source"
    if source.is_dir() and not os.access(source, os.R_OK | os.X_OK):
        return Finding("feed", f"{source} cannot be read", False, "open it to this user")
    pattern = str(source.relative_to(source.anchor))
    there = source.exists() or any(Path(source.anchor).glob(pattern))
    return Finding("feed", str(source), there, remedy)


def _fitting(name: str, card: Card, cadence: int | None) -> Finding:
    """Say whether a checkpoint is for the step of the feed; ``None`` is a feed that has no frames yet."""
    what, found = f"model {name}", f"{card.model}, {card.in_steps} -> {card.out_steps}, {card.cadence_seconds} s"
    if cadence is None:
        return Finding(what, f"{found}; the step of the feed is not known yet")
    close = abs(cadence - card.cadence_seconds) <= CADENCE_TOLERANCE * card.cadence_seconds
    fits = bool(close or model_class(card.model.partition(":")[0]).any_step)
    told = found if close else f"{found}, and a frame comes every {cadence} s"
    return Finding(what, told, fits, "train or tune one for this step; until then its fallback runs")


def _cadence(settings: Operations) -> int | None:
    """Read the step of the frames in the store, seconds; None: there are none, or they cannot be read."""
    frames = FrameStore(settings.store)
    try:
        return int(frames.read().attrs.get("cadence_seconds", 0)) or None if frames.exists() else None
    except (BadInput, StoreError, OSError):
        log.debug("%s cannot be read", frames, exc_info=True)
        return None


def _models(settings: Operations) -> Iterator[Finding]:
    cadence = _cadence(settings)
    for product in settings.products:
        if product.model in MODELS or product.model == CHAMPION:
            continue
        try:
            name = product.model
            card = checkpoint.read_card(champion_file(name) if name.startswith(REGISTRY) else checkpoint.find(name))
            yield _fitting(product.name, card, cadence)
        except BadInput as error:
            log.debug("%s cannot be loaded", product.model, exc_info=True)
            yield Finding(
                f"model {product.name}", str(error), False, "correct products.model; until then its fallback runs"
            )


def _registry(settings: Operations) -> Iterator[Finding]:
    """Check the files of champion and challengers, and compare the challengers."""
    if settings.registry is None:
        return
    registry = promotion.open_registry(settings)
    try:
        now = registry.standing
    except BadInput as error:
        log.debug("%s cannot be read", registry.folder, exc_info=True)
        yield Finding("registry", str(error), False, "restore the journal; until then champions' fallbacks run")
        return
    if now.champion is None:
        wanted = any(product.model == CHAMPION for product in settings.products)
        yield Finding("champion", "none", not wanted, "nowcast models promote; until then the fallback runs")
    for digest in ([now.champion] if now.champion else []) + now.challengers:
        yield _registered(settings, registry, digest)


def _registered(settings: Operations, registry: Registry, digest: str) -> Finding:
    now, path = registry.standing, registry.file(digest)
    what, whole = now.state(digest), path.exists() and checkpoint.file_digest(path) == digest
    found = f"{now.names[digest]}, {digest}"
    if what == "challenger":
        found += f", {_last_shadow(settings, now.names[digest])}"
        found += f"; {promotion.compare(settings, digest).conclusion}" if now.champion else ""
    return Finding(what, found, whole, f"{path} is missing or damaged: register it again")


def _last_shadow(settings: Operations, name: str) -> str:
    """Describe the newest shadow forecast of a challenger: time, state and reason."""
    forecasts = promotion.shadow_stores(settings).forecasts
    runs = forecasts.read() if forecasts.exists() else None
    if runs is None or not (own := runs["model"].values == name).any():
        return "no shadow forecast yet"
    last = int(np.flatnonzero(own)[-1])
    newest, time = runs.isel(run=last), runs["forecast_reference_time"].values[last]
    return f"{stamp(time)} {newest['state'].item()} {newest['reason'].item()}".strip()


def _store(name: str, store: Store) -> Finding:
    try:
        if not store.exists():
            return Finding(name, f"{store} does not exist yet")
        dataset = store.read()
        if "time" in dataset.dims:
            check_cube(dataset, store.path)
    except (BadInput, StoreError, OSError) as error:
        log.warning("%s cannot be read: %s", store, error, exc_info=True)
        return Finding(name, str(error), False, "restore the folder from a copy")
    steps = dataset.sizes.get("time", dataset.sizes.get("run", 0))
    return Finding(
        name, f"{store}: {steps} {'frames' if 'time' in dataset.dims else 'runs'}, {store.size() / 2**20:.1f} MiB"
    )


def _page(settings: Operations) -> Iterator[Finding]:
    """Compare the page with the store: a cycle that is not started, or hangs, leaves it behind."""
    manifest = settings.site / MANIFEST
    if not manifest.exists():
        yield Finding("page", f"{manifest} does not exist yet")
        return
    age = datetime.now(UTC) - datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
    late = age > timedelta(minutes=settings.age.red) and not settings.replay
    yield Finding(
        "page", f"published {age.total_seconds() / 60:.0f} min ago", not late, "look at the cycle's last runs"
    )


def _frames(settings: Operations, frames: FrameStore) -> Iterator[Finding]:
    """Check what comes in: the age of the newest frame, its step, and what was refused."""
    there, late = frames.exists(), True
    if there:
        age = _age(settings, frames)
        late = not age.ok
        yield age
        said = frames.contradictions()
        wrong = bool(said and settings.feed.cadence_seconds)  # a mere hint yields to the times
        yield Finding("step", "; ".join(said) or "as stated", not wrong, "correct or remove feed.cadence_seconds")
    if refused := memory.refusals(frames):
        count = "1 file" if len(refused) == 1 else f"{len(refused)} files"
        last = f"{count} of the feed, the last one: {refused[-1]}"
        yield Finding("refused", last, not late, "nothing else comes: see the reason, and correct feed or reader")


def _age(settings: Operations, frames: FrameStore) -> Finding:
    newest = to_datetime(frames.times()[-1])
    age = datetime.now(UTC) - newest
    late = age > timedelta(minutes=settings.age.red) and not settings.replay
    return Finding(
        "newest frame", f"{newest:%Y-%m-%d %H:%M}Z", not late, "nothing arrives: look at the feed and at the flow"
    )
