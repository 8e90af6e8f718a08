"""Settings of an operational chain: its feed, its products, its scores, its page."""

from __future__ import annotations

import re
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
    """Limits of the quality checks on incoming frames, see ``nowcast.ingestion.quality.FLAGS``."""

    most_missing: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A frame is mostly missing if a larger share of its pixels is; masks and coverage edges alone reach 0.5."""
    coverage_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Coverage is partial if the missing share exceeds the lowest of the sequence by more than this."""
    jump: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Change of the share of wet pixels from one frame to the next that is too large for weather."""
    speckle: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the wet pixels without a wet neighbour above which a frame is speckled."""
    limits: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Quantity -> lowest and highest plausible value, where not the usual ones."""
    clip: dict[str, float] = Field(default_factory=dict)
    """Quantity -> value that larger ones are set to. The only change made to data, and it is flagged."""
    clock_slack_minutes: Annotated[float, Field(ge=0)] = 10
    """Minutes that a frame's time may be ahead of the clock."""

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
    """Folder (or file, or glob pattern) in which new frames appear."""
    product: str = ""
    """Which product to take where several come, by words of what ``nowcast show`` calls it: ``RW``, ``sum of 60 min``;
    others are left out. Empty: all, but a store holds one product, and another one is refused."""
    cadence_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds between frames; None: found from their times. Only for feeds too irregular for that."""
    quality: QualitySettings = QualitySettings()
    """Quality checks on incoming frames."""


class Product(Frozen):
    """One forecast made every cycle."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name on the page and in file names."""
    model: str
    """Name in the model table, a checkpoint file, ``champion``, or ``registry:FOLDER`` for that of another chain."""
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds that its network may take before the fallback takes its place; None: those of the chain."""


class Shadow(Frozen):
    """Shadow forecasts of challengers: after the page is published, in a separate process, not shown on the page."""

    budget_seconds: Annotated[float, Field(gt=0)] = 60
    """Time for all challengers together; they are stopped earlier if the next cycle is due."""
    every_minutes: Annotated[int, Field(ge=1)] | None = None
    """Forecast only from frames whose time is a multiple of this; None: whenever products are made."""


class Promotion(Frozen):
    """When a challenger counts as better than the champion."""

    score: Literal["csi", "ets", "hss", "ssim", "mse", "mae"] = "csi"
    """Score in which it has to be better."""
    threshold: float | None = None
    """Threshold of csi, ets and hss, one that is scored; None: the lowest."""
    first_lead_minutes: Annotated[float, Field(ge=0)] = 0
    """Shortest lead time that counts."""
    last_lead_minutes: Annotated[float, Field(gt=0)] | None = None
    """Lead times from first to last are pooled; None: up to the longest."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the two-sided bootstrap interval that must exclude zero: 0.95 leaves 0.025 in each tail."""
    least_runs: Annotated[int, Field(ge=1)] = 100
    """Runs that both models must have made."""
    least_blocks: Annotated[int, Field(ge=2)] = 10
    """Blocks of time with scored events: neighbouring runs see the same rain, and a few showers prove little."""
    block_minutes: Annotated[float, Field(gt=0)] = 180
    """Length of such a block; about the time over which weather is correlated."""
    automatic: bool = False
    """Promote the first challenger that is better, tested once a day: every further test can give a false positive."""


class AgeLimits(Frozen):
    """Age of the newest frame, in minutes, from which the page warns."""

    amber: Annotated[float, Field(gt=0)] = 12
    """From here on the frame is late."""
    red: Annotated[float, Field(gt=0)] = 25
    """From here on the page is not to be trusted as the present."""

    @model_validator(mode="after")
    def _ordered(self) -> AgeLimits:
        if self.red <= self.amber:
            raise ValueError(f"red ({self.red:g}) must come after amber ({self.amber:g})")
        return self


class Operations(Frozen):
    """One operational chain: a feed, its products, its scores, its page."""

    title: str
    """Heading of the page."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] | None = None
    """Name of the domain, which its deployments bear: ``cycle/knmi``; None: that of this file without ``.yaml``."""
    page_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port at which ``nowcast up`` serves the page; None: 8000, or the next one that is free."""
    feed: Feed
    """Reader and folder of the frames, and their quality checks."""
    store: str
    """Cube store, folder or URL."""
    forecasts: str
    """Forecast store."""
    scores: str
    """Score store."""
    site: Path
    """Folder that the page is published to."""
    products: Annotated[tuple[Product, ...], Field(min_length=1)]
    """Forecasts of every cycle, in the order of the page; the first is the official one, shown when the page opens."""
    fallback: tuple[str, ...] = ("extrapolation", "persistence")
    """Models tried in this order when a product's own model cannot run; if none can, the product is withheld."""
    leads: Annotated[int, Field(ge=1)] = 12
    """Number of lead times, at the feed's cadence."""
    quantity: str | None = None
    """Channel to forecast; None: the store's first."""
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a network may take before the fallback takes its place; None: half the step of the feed, 300 at
    most. All networks together have four fifths of the step."""
    memory_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """Memory that the process of the networks may take; None: four fifths of what is free on the machine."""
    thresholds: tuple[float, ...] | None = None
    """Thresholds scored, in the quantity's unit; None: the quantity's own."""
    lpips: bool = False
    """Score the perceptual distance too; needs its weights, and a second per frame on a CPU."""
    every_minutes: Annotated[float, Field(gt=0)] = 5
    """How often the cycle looks for a new frame."""
    issue_every_minutes: Annotated[int, Field(ge=1)] | None = None
    """Forecast only from frames whose time is a multiple of this; None: from every frame."""
    netcdf: Path | None = None
    """Folder for one CF NetCDF file per run, by date; None: none."""
    map_leads: tuple[int, ...] = (1, 6, 12)
    """Lead times, counted from 1, drawn as map images every cycle; the page itself needs none."""
    age: AgeLimits = AgeLimits()
    """When the page warns of an old frame."""
    keep_runs: Annotated[int, Field(ge=1)] = 24
    """Reference times that stay on the page."""
    keep_observed: Annotated[int, Field(ge=1)] = 36
    """Observed frames that stay on the page."""
    keep_versions_days: Annotated[float, Field(gt=0)] = 14
    """Versions of the stores older than this are removed once a day; the newest content stays."""
    registry: Path | None = None
    """Folder of registered checkpoints, see ``nowcast.registry.registry``; None: the chain has none."""
    shadow: Shadow = Shadow()
    """Forecasts of challengers."""
    promotion: Promotion = Promotion()
    """When a challenger becomes the champion."""
    replay: bool = False
    """True for archived data: old frames are not reported as late, and the page says REPLAY."""

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

    def domain(self, file: str | Path) -> str:
        """Return the name of the domain: the one that is set, or that of its operations file."""
        return self.name or re.sub(r"[^a-z0-9]+", "-", Path(file).stem.lower()).strip("-") or "domain"

    @cached_property
    def makers(self) -> tuple[Product, ...]:
        """The products, with the model ``champion`` resolved to this chain's registry."""
        own = {"model": f"{REGISTRY}{self.registry}"}
        return tuple(
            product.model_copy(update=own) if product.model == CHAMPION else product for product in self.products
        )
