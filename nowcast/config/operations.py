"""Settings of an operational chain: its feed, its products, its scores, its page."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from nowcast.config.base import Frozen, check_known
from nowcast.core.units import QUANTITIES
from nowcast.models import MODELS

CHAMPION = "champion"
"""Model of a product: whatever is champion of the chain's registry at the time."""
REGISTRY = "registry:"
"""Beginning of a model name that stands for the champion of a registry: ``registry:var/knmi/models``."""


class QualitySettings(Frozen):
    """What is noted of a frame at the door, see ``nowcast.ingestion.quality.FLAGS``."""

    most_missing: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A frame is mostly missing where a larger share of its pixels is. Masks and rims alone take up to 0.5."""
    coverage_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Coverage is partial where the missing share is larger than the lowest of the sequence by more than this."""
    jump: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Change of the share of wet pixels from one frame to the next that is no weather."""
    speckle: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the wet pixels without a wet neighbour above which a frame is speckled."""
    limits: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Lowest and highest value of a quantity that can be weather, where not the usual ones."""
    clip: dict[str, float] = Field(default_factory=dict)
    """Quantity -> value that larger ones are set to. The only change ever made to data, and it is flagged."""
    clock_slack_minutes: Annotated[float, Field(ge=0)] = 10
    """How far in the future a frame may be."""

    @model_validator(mode="after")
    def _quantities_exist(self) -> QualitySettings:
        for name in {*self.limits, *self.clip}:
            check_known("quantity", name, QUANTITIES)
        return self


class Feed(Frozen):
    """Where frames come from."""

    reader: str
    """Name of a reader, see ``nowcast.readers.READERS``; ``auto`` finds it."""
    source: Path
    """Folder (or file, or glob) that frames land in."""
    quality: QualitySettings = QualitySettings()
    """What is checked at the door."""


class Product(Frozen):
    """One forecast made every cycle."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """What the page and the files call it."""
    model: str
    """Name in the model table, a checkpoint file, ``champion``, or ``registry:FOLDER`` for that of another chain."""


class Shadow(Frozen):
    """How challengers forecast: after the page is published, in a process of their own, unseen."""

    budget_seconds: Annotated[float, Field(gt=0)] = 60
    """All challengers together are stopped after this, and in any case before the next cycle is due."""
    every_minutes: Annotated[int, Field(ge=1)] | None = None
    """Only from frames at round multiples of this; None: whenever products are made."""


class Promotion(Frozen):
    """When a challenger counts as better than the champion."""

    score: Literal["csi", "ets", "hss", "ssim", "mse", "mae"] = "csi"
    threshold: float | None = None
    """Event limit of csi, ets and hss, one that is scored; None: the lowest."""
    first_lead_minutes: Annotated[float, Field(ge=0)] = 0
    last_lead_minutes: Annotated[float, Field(gt=0)] | None = None
    """Lead times in between are pooled; None: to the end."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Share of the draws that must lie on one side of no difference, of both tails: 0.95 leaves 0.025 on each."""
    least_runs: Annotated[int, Field(ge=1)] = 100
    """Runs that both made."""
    least_blocks: Annotated[int, Field(ge=2)] = 10
    """Blocks of time with something to score: neighbouring runs see the same rain, and a few showers prove little."""
    block_minutes: Annotated[float, Field(gt=0)] = 180
    """Length of such a block; about as long as weather stays alike."""
    automatic: bool = False
    """Promote the first challenger that is better, looked at once a day: every further look is a chance to err."""


class AgeLimits(Frozen):
    """When the page warns, minutes since the newest frame."""

    amber: Annotated[float, Field(gt=0)] = 12
    red: Annotated[float, Field(gt=0)] = 25

    @model_validator(mode="after")
    def _ordered(self) -> AgeLimits:
        if self.red <= self.amber:
            raise ValueError(f"red ({self.red:g}) must come after amber ({self.amber:g})")
        return self


class Operations(Frozen):
    """One operational chain: a feed, its products, its scores, its page."""

    title: str
    """Shown on the page."""
    feed: Feed
    store: str
    """Cube store, folder or URL."""
    forecasts: str
    """Forecast store."""
    scores: str
    """Score store."""
    site: Path
    """Folder that the page is published to."""
    products: Annotated[tuple[Product, ...], Field(min_length=1)]
    """In order; the first is the official one that the page opens with."""
    fallback: tuple[str, ...] = ("extrapolation", "persistence")
    """Models tried in this order when a product's own model cannot run; then it is withheld."""
    leads: Annotated[int, Field(ge=1)] = 12
    """Forecast frames, at the feed's cadence."""
    quantity: str | None = None
    """Channel to forecast; None: the store's first."""
    thresholds: tuple[float, ...] | None = None
    """Event limits scored, in the quantity's unit; None: the quantity's own."""
    lpips: bool = False
    """Score the perceptual distance too; needs its weights, and a second per frame on a CPU."""
    every_minutes: Annotated[float, Field(gt=0)] = 5
    """How often the cycle looks for a new frame."""
    issue_every_minutes: Annotated[int, Field(ge=1)] | None = None
    """Forecast only from frames at round multiples of this; None: from every frame."""
    netcdf: Path | None = None
    """Folder for one CF NetCDF file per run, by date; None: none."""
    map_leads: tuple[int, ...] = (1, 6, 12)
    """Lead steps drawn as map pictures every cycle; the page itself needs none."""
    age: AgeLimits = AgeLimits()
    keep_runs: Annotated[int, Field(ge=1)] = 24
    """Reference times that stay on the page."""
    keep_observed: Annotated[int, Field(ge=1)] = 36
    """Observed frames that stay on the page."""
    keep_versions_days: Annotated[float, Field(gt=0)] = 14
    """Versions of the stores older than this are forgotten once a day; their newest content stays."""
    registry: Path | None = None
    """Folder of registered checkpoints, see ``nowcast.registry.registry``; None: the chain has none."""
    shadow: Shadow = Shadow()
    promotion: Promotion = Promotion()
    replay: bool = False
    """True for archived data: frames from long ago are not late, and the page says REPLAY."""

    @model_validator(mode="after")
    def _consistent(self) -> Operations:
        for name in self.fallback:
            check_known("fallback model", name, MODELS)
        if self.quantity is not None:
            check_known("quantity", self.quantity, QUANTITIES)
        names = [product.name for product in self.products]
        if len(set(names)) < len(names):
            raise ValueError(f"two products share a name: {', '.join(names)}")
        if self.registry is None and any(product.model == CHAMPION for product in self.products):
            raise ValueError("a product is made by the champion, and registry names no folder")
        return self

    @cached_property
    def makers(self) -> tuple[Product, ...]:
        """The products with ``champion`` spelt out as that of this chain's registry."""
        own = {"model": f"{REGISTRY}{self.registry}"}
        return tuple(
            product.model_copy(update=own) if product.model == CHAMPION else product for product in self.products
        )
