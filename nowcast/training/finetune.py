"""A checkpoint and the store of a domain -> the recipe that fits the one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

from nowcast import config
from nowcast.config import Recipe
from nowcast.core.cube import channels
from nowcast.core.errors import ConfigError
from nowcast.models import model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.store import FrameStore

METHODS = {"vp": "prompt", "fp": "full"}
"""Words of the GS2PM code -> ``Recipe.tuning``: the visual prompt alone, or full parameters."""
HELD_OUT = 0.2
"""Share of the frames, the newest, that are validated on where nothing else is said."""
CROP = 128
"""Side of the crops of frames that are larger, where the checkpoint does not say what it saw."""
EVERY = 100
"""Most steps between two validations."""
RADAR = ("rainfall_rate", "reflectivity")
"""Each can be made of the other."""


def domain_recipe(
    base: str | Path,
    domain: str,
    *,
    method: str = "vp",
    recipe: str | None = None,
    valid_from: datetime | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    changes: Mapping[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
) -> Recipe:
    """The recipe of a tuning; what it does not say is as the checkpoint was trained.

    Args:
        base: Checkpoint, or a prompt file over one.
        domain: Cube store whose frames it is fitted to.
        method: One of ``METHODS``.
        recipe: Recipe whose trainer applies; None: the shipped one of the method, ``training/gs2pm-vp.yaml``.
        valid_from: First time that is validated on, and not trained on; None: the newest fifth of the frames.
        minutes: Training ends after this time.
        steps: Or after so many steps.
        changes: Dotted keys and values that apply to the recipe: ``{"trainer.batch_size": 4}``.
        overrides: More of them, as words: ``trainer.batch_size=4``.

    Raises:
        ConfigError: Unknown method, a store without times on both sides of ``valid_from``, refused settings.
        BadInput: If the checkpoint is none.
    """
    path = checkpoint.find(base)
    card = checkpoint.read_card(path)
    frames = FrameStore(domain)
    split = valid_from or _newest(frames)
    model = card.model.partition(":")[0]
    _check_method(model, method)
    known: dict[str, Any] = {
        "name": f"{model}-{Path(domain.rstrip('/')).parent.name or 'domain'}-{method}",
        "model": card.model,
        "options": {},
        "start_from": str(path),
        "tuning": METHODS[method],
        "windows": _windows(card, frames.read()),
        "train": [{"store": domain, "end": split.isoformat()}],
        "valid": [{"store": domain, "start": split.isoformat()}],
        **{f"trainer.{key}": value for key, value in budget(minutes, steps).items()},
    }
    words = config.words(known | dict(changes or {}))
    return config.load(Recipe, recipe or f"training/gs2pm-{method}.yaml", [*words, *overrides])


def _check_method(model: str, method: str) -> None:
    known = [word for word, tuning in METHODS.items() if tuning in model_class(model).tunings]
    if method not in known:
        raise ConfigError(f"{model} cannot be tuned by {method!r}; known: {', '.join(known)}.")


def budget(minutes: float | None, steps: int | None) -> dict[str, Any]:
    """Settings of the trainer that end it after so many minutes, or steps."""
    if steps is None:
        return {} if minutes is None else {"minutes": minutes, "epochs": 10**6}
    every = min(EVERY, steps)
    return {"epochs": -(-steps // every), "batches_per_epoch": every, "minutes": minutes}


def _newest(frames: FrameStore) -> datetime:
    """Time from which on a fifth of the frames lies."""
    times = frames.times()
    return times[int((1 - HELD_OUT) * times.size)].item().replace(tzinfo=UTC)


def _windows(card: Card, cube: xr.Dataset) -> dict[str, Any]:
    """As the network was trained, in the quantity of the domain."""
    held = channels(cube)
    before: Any = dict(card.recipe.get("windows") or {})  # type: ignore[call-overload]
    same = card.quantity in held or (card.quantity in RADAR and set(held) & set(RADAR))
    quantity = card.quantity if same else held[0]
    sides = cube.sizes["y"], cube.sizes["x"]
    crop = min(before.get("crop") or CROP, *sides)
    kept = {key: value for key, value in before.items() if key in ("crops_per_window", "rain_weight", "resize")}
    whole = before.get("resize") or max(sides) <= crop
    return {
        **kept,
        "quantity": quantity,
        "in_steps": card.in_steps,
        "out_steps": card.out_steps,
        "channels": card.channels,
        "scaling": card.scaling.model_dump() if same else None,
        **({"crop": None, "crops_per_window": 1} if whole else {"crop": crop}),
    }
