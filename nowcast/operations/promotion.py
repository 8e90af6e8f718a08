"""Register checkpoints for a chain, compare them by their live forecasts, and promote the better one.

The champion is judged by the products that it makes, the challengers by their shadow runs. Two models are compared
on the lead times that were verified against the same frame, over the same number of pixels, in runs that neither
left to a fallback.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import CHAMPION, Operations
from nowcast.core.cube import channels
from nowcast.core.errors import ConfigError, ForecastError, RegistryError
from nowcast.forecasting.fallback import OK
from nowcast.forecasting.run import check_fits
from nowcast.operations.comparison import BETTER, Comparison, Pair, assess
from nowcast.operations.stores import Stores
from nowcast.registry import checkpoint
from nowcast.registry.registry import Registry
from nowcast.store import ForecastStore, FrameStore, ScoreStore
from nowcast.verification.run import keys


def open_registry(settings: Operations) -> Registry:
    """Open the registry of a chain.

    Raises:
        ConfigError: If the chain has none.
    """
    if settings.registry is None:
        raise ConfigError(f"{settings.title}: its operations file names no registry; set registry: var/models.")
    return Registry(settings.registry)


def shadow_stores(settings: Operations) -> Stores:
    """Return the stores of the shadow forecasts and their scores, kept in the registry, apart from the products."""
    folder = open_registry(settings).folder
    return Stores(FrameStore(settings.store), ForecastStore(folder / "forecasts"), ScoreStore(folder / "scores"))


def register(settings: Operations, path: str | Path, *, name: str | None = None, why: str = "") -> str:
    """Register a checkpoint that can forecast from the frames of the chain; return its name.

    Args:
        settings: The chain.
        path: A checkpoint file.
        name: Name in the registry; None: made of its recipe and its digest.
        why: Reason, kept in the journal.

    Raises:
        RegistryError: If it was made for other frames, or its name is taken.
        BadInput: If it is not a checkpoint of nowcast.
    """
    registry, file = open_registry(settings), checkpoint.find(path)
    model = checkpoint.load(file)
    frames = FrameStore(settings.store)
    if frames.exists():
        cube = frames.read()
        step = int(cube.attrs.get("cadence_seconds") or model.cadence_seconds or 0)
        try:
            check_fits(model, quantity=settings.quantity or channels(cube)[0], cadence_seconds=step)
        except ForecastError as error:
            raise RegistryError(f"{file}: {error}; register it for another chain.") from None
    digest = registry.register(file, name=name, why=why)
    return registry.standing.names[digest]


def compare(settings: Operations, challenger: str, against: str = CHAMPION) -> Comparison:
    """Compare one registered checkpoint with another.

    Args:
        settings: The chain; ``promotion`` holds score and rules.
        challenger: Name, or beginning of a digest.
        against: Name, beginning of a digest, or ``champion``.

    Raises:
        RegistryError: If a name is unknown.
    """
    registry = open_registry(settings)
    digests = [registry.find(word) for word in (against, challenger)]
    names = registry.standing.names
    pair = _pair(*(_live_sums(settings, digest) for digest in digests), minutes=settings.promotion.block_minutes)
    return assess(names[digests[1]], names[digests[0]], pair, rules=settings.promotion)


def promote(settings: Operations, challenger: str, *, force: bool = False, why: str = "") -> str:
    """Make a challenger the champion if it is better; return the recorded reason.

    Args:
        settings: The chain; ``promotion`` holds score and rules.
        challenger: Name, or beginning of a digest.
        force: Promote whatever the scores are.
        why: Reason, kept in the journal; a forced promotion needs one.

    Raises:
        RegistryError: If it is not better, or that is not known yet, or a forced promotion has no reason.
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


def _live_sums(settings: Operations, digest: str) -> xr.Dataset | None:
    """Read the sums (run, lead_time, threshold) of all forecasts of a checkpoint, products and shadow forecasts."""
    places = [Stores.of(settings), shadow_stores(settings)]
    parts = [_sums_of_runs(digest, stores) for stores in places if stores.forecasts.exists() and stores.scores.exists()]
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


def _sums_of_runs(digest: str, stores: Stores) -> xr.Dataset:
    """Read the sums of the runs in one pair of stores that a checkpoint made itself."""
    runs, table = stores.forecasts.read(), stores.scores.read()
    own = (runs["checkpoint"].values == digest) & (runs["state"].values == OK)
    wanted = {key for key, its in zip(keys(runs), own, strict=True) if its}
    return table.isel(run=[row for row, key in enumerate(keys(table)) if key in wanted]).load()


def _pair(first: xr.Dataset | None, second: xr.Dataset | None, *, minutes: float) -> Pair | None:
    """Pair the common runs of two models, zero where not scored on the same pixels; None where there are none."""
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
    """Rename ``run`` to ``window``, drop its coordinates, and set sums that do not count to zero."""
    plain = sums.drop_vars(
        ["observed_digest", *(name for name, coord in sums.coords.items() if coord.dims == ("run",))]
    )
    return plain.where(alike.drop_vars(alike.coords), 0).rename(run="window")
