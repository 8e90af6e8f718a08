"""Who forecasts for a chain: checkpoints are registered, compared by what they forecast live, and promoted.

The champion's forecasts are those of the products that it makes, the challengers' come from their shadow runs.
Compared are lead times that both were scored on against the same frame, over the same number of pixels, in runs
that they made themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import CHAMPION, Operations
from nowcast.core.cube import channels
from nowcast.core.errors import ConfigError, ForecastError, RegistryError
from nowcast.forecasting import run as forecasting
from nowcast.forecasting.run import OK
from nowcast.operations.comparison import BETTER, Comparison, Pair, assess
from nowcast.operations.stores import Stores
from nowcast.registry import checkpoint
from nowcast.registry.registry import Registry
from nowcast.store import ForecastStore, FrameStore, ScoreStore
from nowcast.verification.run import keys


def open_registry(settings: Operations) -> Registry:
    """The registry of a chain.

    Raises:
        ConfigError: If it has none.
    """
    if settings.registry is None:
        raise ConfigError(f"{settings.title}: its operations file names no registry; set registry: var/models.")
    return Registry(settings.registry)


def shadow_stores(settings: Operations) -> Stores:
    """Where the challengers' forecasts and their scores lie: beside their files, so that nothing disturbs products."""
    folder = open_registry(settings).folder
    return Stores(FrameStore(settings.store), ForecastStore(folder / "forecasts"), ScoreStore(folder / "scores"))


def register(settings: Operations, path: str | Path, *, name: str | None = None, why: str = "") -> str:
    """Registers a checkpoint that can forecast from the frames of the chain; returns its name.

    Args:
        settings: The chain.
        path: A checkpoint file.
        name: What it is called; None: after its recipe and its digest.
        why: A remark.

    Raises:
        RegistryError: If it was made for other frames, or its name is taken.
        BadInput: If it is not a checkpoint of ours.
    """
    registry, file = open_registry(settings), checkpoint.find(path)
    model = checkpoint.load(file)
    frames = FrameStore(settings.store)
    if frames.exists():
        cube = frames.read()
        step = int(cube.attrs.get("cadence_seconds") or model.cadence_seconds or 0)
        try:
            forecasting.check_fits(model, quantity=settings.quantity or channels(cube)[0], cadence_seconds=step)
        except ForecastError as error:
            raise RegistryError(f"{file}: {error}; register it for another chain.") from None
    digest = registry.register(file, name=name, why=why)
    return registry.standing.names[digest]


def compare(settings: Operations, challenger: str, against: str = CHAMPION) -> Comparison:
    """Judges one registered checkpoint by another.

    Args:
        settings: The chain; ``promotion`` says what counts.
        challenger: Name, or beginning of a digest.
        against: The same, or ``champion``.

    Raises:
        RegistryError: If a name is unknown.
    """
    registry = open_registry(settings)
    digests = [registry.find(word) for word in (against, challenger)]
    names = registry.standing.names
    pair = _pair(*(_live(settings, digest) for digest in digests), minutes=settings.promotion.block_minutes)
    return assess(names[digests[1]], names[digests[0]], pair, rules=settings.promotion)


def promote(settings: Operations, challenger: str, *, force: bool = False, why: str = "") -> str:
    """Makes a challenger the champion if it is better; returns the reason that was recorded.

    Args:
        settings: The chain; ``promotion`` says what counts as better.
        challenger: Name, or beginning of a digest.
        force: Whatever the scores say.
        why: The reason; a forced promotion needs one.

    Raises:
        RegistryError: If it is not shown to be better.
    """
    registry = open_registry(settings)
    digest, champion = registry.find(challenger), registry.standing.champion
    if force and not why:
        raise RegistryError("a promotion against the scores needs a reason; give one with --reason.")
    if champion in (None, digest):
        registry.promote(digest, over=champion, why=why or "the first champion")
        return why or "the first champion"
    comparison = compare(settings, digest)
    if comparison.outcome != BETTER and not force:
        raise RegistryError(f"{comparison}; to promote it all the same: --force --reason '...'.")
    registry.promote(digest, over=champion, why=why or str(comparison), evidence=comparison.facts)
    return why or str(comparison)


def _live(settings: Operations, digest: str) -> xr.Dataset | None:
    """Sums (run, lead_time, threshold) of all that a checkpoint forecast, as a product or in the shadow."""
    places = [Stores.of(settings), shadow_stores(settings)]
    parts = [_of(digest, stores) for stores in places if stores.forecasts.exists() and stores.scores.exists()]
    parts = [part for part in parts if part.sizes["run"]]
    return (
        xr.concat(
            parts,
            "run",
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="inner",
            combine_attrs="override",
        )
        if parts
        else None
    )


def _of(digest: str, stores: Stores) -> xr.Dataset:
    runs, table = stores.forecasts.read(), stores.scores.read()
    own = (runs["checkpoint"].values == digest) & (runs["state"].values == OK)
    wanted = {key for key, its in zip(keys(runs), own, strict=True) if its}
    return table.isel(run=[row for row, key in enumerate(keys(table)) if key in wanted]).load()


def _pair(first: xr.Dataset | None, second: xr.Dataset | None, *, minutes: float) -> Pair | None:
    """What both forecast, where it was scored alike; None where there is no common run."""
    if first is None or second is None:
        return None
    places = [{key[:2]: row for row, key in enumerate(keys(sums))} for sums in (first, second)]
    common = sorted(places[0].keys() & places[1].keys())
    if not common:
        return None
    first, second = (
        sums.isel(run=[place[key] for key in common]) for sums, place in zip((first, second), places, strict=True)
    )
    both = (first["n"] > 0) & (second["n"] > 0)
    alike = both & (first["n"] == second["n"]) & (first["observed_digest"] == second["observed_digest"])
    length = np.timedelta64(round(60 * minutes), "s")
    blocks = np.asarray([f"{event} {(time - np.datetime64(0, 's')) // length}" for time, event in common])
    return Pair(_masked(first, alike), _masked(second, alike), blocks, int((both & ~alike).sum()))


def _masked(sums: xr.Dataset, alike: xr.DataArray) -> xr.Dataset:
    """Plain sums over the axis ``window``, zero where they do not count."""
    plain = sums.drop_vars(
        ["observed_digest", *(name for name, coord in sums.coords.items() if coord.dims == ("run",))]
    )
    return plain.where(alike.drop_vars(alike.coords), 0).rename(run="window")
