"""Settings: frozen pydantic models, read from YAML, valid or refused in one sentence.

A field's documentation stands under the field; its value stands in ``configs/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nowcast.core.units import MARSHALL_PALMER, QUANTITIES, Scaling
from nowcast.models import LOSSES, MODELS

OWN = "own"
"""Name of the loss of a network's paper."""
Settings = TypeVar("Settings", bound="Frozen")


class ConfigError(ValueError):
    """A settings file or override that is refused; one sentence per mistake."""


class TrainingError(RuntimeError):
    """A training that cannot go on; one sentence says why, and what to do."""


class Frozen(BaseModel):
    """Base of all settings: nothing may be changed later, unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _known(kind: str, name: str, names: Iterable[str]) -> None:
    if name.partition(":")[0] not in names:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}")


# --- operations -----------------------------------------------------------------------------------

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
    limits: dict[str, tuple[float, float]] = {}
    """Lowest and highest value of a quantity that can be weather, where not the usual ones."""
    clip: dict[str, float] = {}
    """Quantity -> value that larger ones are set to. The only change ever made to data, and it is flagged."""
    clock_slack_minutes: Annotated[float, Field(ge=0)] = 10
    """How far in the future a frame may be."""

    @model_validator(mode="after")
    def _quantities_exist(self) -> QualitySettings:
        for name in {*self.limits, *self.clip}:
            _known("quantity", name, QUANTITIES)
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
            _known("fallback model", name, MODELS)
        if self.quantity is not None:
            _known("quantity", self.quantity, QUANTITIES)
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


# --- training -------------------------------------------------------------------------------------


class ScalingSettings(Frozen):
    """How physical values become [0, 1]; see ``nowcast.core.units.Scaling``."""

    kind: Literal["linear", "decibel"]
    low: float
    high: float

    def build(self) -> Scaling:
        return Scaling(self.kind, self.low, self.high)


class Span(Frozen):
    """Part of a store: all of it, a stretch of time, one of its splits, some of its sequences."""

    store: str
    start: AwareDatetime | None = None
    """First time taken; a date needs its zone: 2016-09-28T14:00Z."""
    end: AwareDatetime | None = None
    """First time not taken."""
    split: str | None = None
    """Only frames that their source counts among these: train, valid or test."""
    sequences: tuple[str, ...] = ()
    """Only sequences (events, persons, files) whose labels match one of these patterns: ``train/boxing/person0*``."""
    quantity: str | None = None
    """What to take from this store where it is not the quantity of the windows: video beside radar."""
    scaling: ScalingSettings | None = None
    """Of that quantity; None: its own."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often this span is drawn, compared with what its size and ``temperature`` give it."""

    @model_validator(mode="after")
    def _consistent(self) -> Span:
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        if self.quantity is not None:
            _known("quantity", self.quantity, QUANTITIES)
        return self


class Moving(Frozen):
    """Clips made on the fly from images that move and bounce: Moving MNIST, and its like from any images."""

    images: Path
    """``train-images-idx3-ubyte.gz``, an ``.npy`` of grey images, or a folder of pictures."""
    objects: Annotated[int, Field(ge=1, le=3)] = 2
    """Images in a clip."""
    canvas: Annotated[int, Field(ge=8)] = 64
    """Side of the frames in pixels."""
    clips: Annotated[int, Field(ge=1)] = 10_000
    """Clips in an epoch."""
    images_from: Annotated[int, Field(ge=0)] = 0
    """First image taken."""
    images_to: Annotated[int, Field(ge=1)] | None = None
    """First image not taken; None: all the rest."""
    seed: int = 0
    """Train, valid and test need different ones, of whatever images: it is also that of their ways."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """See ``Span.weight``."""


class WindowSettings(Frozen):
    """Which windows of frames a network learns from."""

    quantity: str
    """Quantity forecast; stores that hold another are converted where a formula exists."""
    in_steps: Annotated[int, Field(ge=1)]
    out_steps: Annotated[int, Field(ge=1)]
    stride: Annotated[int, Field(ge=1)] = 1
    """Frames between the starts of two windows."""
    channels: Literal[1, 3] = 1
    """3: red, green and blue of a colour video; what has one channel is given three times."""
    resize: Annotated[int, Field(ge=8)] | None = None
    """Side of the square that whole frames are resized to, before any crop; None: as they are."""
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side of random square crops in pixels; None: whole frames."""
    crops_per_window: Annotated[int, Field(ge=1)] = 1
    """Crops cut from a window once it is decoded."""
    rain_weight: Annotated[float, Field(ge=0)] = 1.0
    """Crops are drawn with probability 1 + rain_weight x (share of wet pixels / its mean)."""
    event_weight: Annotated[float, Field(ge=0)] = 0.0
    """Windows are drawn with probability 1 + event_weight x (mean rain / its mean over the span): the floor keeps
    dry weather in. Drawing all intensities alike is not offered: it makes networks invent storms."""
    temperature: Annotated[float, Field(ge=1)] = 1.0
    """Of several spans one is drawn with probability windows^(1 / temperature): 1 by their size, 100 all alike."""
    most_missing: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A frame with a larger share of missing pixels is not there: no window crosses it."""
    flips: bool = False
    """Mirror and transpose at random: weather of the other hemisphere, but more of it."""
    scaling: ScalingSettings | None = None
    """None: the quantity's own."""

    @model_validator(mode="after")
    def _quantity_exists(self) -> WindowSettings:
        _known("quantity", self.quantity, QUANTITIES)
        return self


class TrainerSettings(Frozen):
    """How the weights are found."""

    epochs: Annotated[int, Field(ge=1)] = 100
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Training ends after this time, validations included, if the epochs have not ended it; None: no limit."""
    batches_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """None: every window once."""
    valid_batches: Annotated[int, Field(ge=1)] | None = None
    """Batches of the validation, always the same ones; None: every window once."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Crops (or windows) that one device takes at once."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per step of the optimiser, which then follows from batch_size x accumulate x devices x nodes crops."""
    wet_weight: Annotated[float, Field(ge=0)] = 0.0
    """The error of a pixel counts 1 + wet_weight x its scaled observation: most pixels are dry, and an even mean
    lets rain fade out of the forecast. Compare Shi et al. (2017), arXiv:1706.03458, section 3.4."""
    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decays of Adam's running means, of the gradient and of its square."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "step", "cosine", "plateau", "one-cycle"] = "plateau"
    """Of the learning rate. The first three are laid out over the training, by epochs or minutes, whichever end it;
    ``plateau`` halves it where validation stalls."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training over which the rate rises from 0, before the schedule."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training at which schedule ``step`` multiplies the rate by ``gamma``."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    lowest_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the learning rate below which ``step`` and ``cosine`` do not go."""
    patience: Annotated[int, Field(ge=1)] = 20
    """Epochs without a better validation loss before training stops."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Gradient values are clipped to +- this."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient norm is clipped to this."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running mean of the weights that is validated and kept; None: none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    """Of one machine."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines. The same command runs on each of them, started by Slurm or torchrun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """For several devices: ``ddp`` keeps the network on all of them, ``fsdp`` a part of it on each."""
    compile: bool = False
    """Network and loss are compiled by torch.compile: minutes at the start, then less time per step on GPUs."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10
    """``last.ckpt`` is written after every epoch, and in long ones this often."""
    log_every: Annotated[int, Field(ge=1)] = 5
    """Steps between two rows of the logs."""
    mlflow: str | None = None
    """MLflow to report to beside the logs in the run folder: ``http://host:5000``, or a folder; needs
    ``pip install 'nowcast-radar[mlflow]'``."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept: less memory, more time."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes."""
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainerSettings:
        if self.clip_value and self.clip_norm:
            raise ValueError("clip_value and clip_norm exclude each other")
        if self.strategy == "fsdp" and (self.ema_decay or self.precision == "16-mixed"):
            raise ValueError("ema_decay and precision 16-mixed need whole weights, of which fsdp has parts; use ddp")
        if self.minutes and self.schedule == "one-cycle":
            raise ValueError(
                "schedule one-cycle is laid out over steps, and minutes do not say how many; use cosine with warm_up"
            )
        if self.warm_up and self.schedule in ("plateau", "one-cycle"):
            raise ValueError(f"warm_up is for constant, step and cosine; schedule {self.schedule} has none")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule step and milestones need each other")
        return self


class LossTerm(Frozen):
    """One part of what training makes small, see ``models/losses.py``."""

    name: str
    """Name in the table of losses; ``own``: that of the network's paper."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """It counts this much beside other parts."""
    limits: tuple[float, ...] = ()
    """Of a loss that has limits, in the unit of ``quantity``."""
    quantity: str | None = None
    """What limits are given in; None: the quantity of the windows."""
    zr: tuple[float, float] = MARSHALL_PALMER
    """a, b of Z = a R^b, where limits are rain rates and the windows reflectivity."""
    options: dict[str, Any] = {}
    """Its other keywords."""

    @model_validator(mode="after")
    def _exists(self) -> LossTerm:
        _known("loss", self.name, (*LOSSES, OWN))
        if self.quantity is not None:
            _known("quantity", self.quantity, QUANTITIES)
        return self


def _terms(value: Any) -> Any:
    """A name stands for a loss, and a loss for a sum of one."""
    value = {"name": value} if isinstance(value, str) else value
    return (value,) if isinstance(value, dict) else value


Loss = Annotated[tuple[LossTerm, ...], BeforeValidator(_terms)]
"""``mse``, or ``{name: balanced, limits: [2, 5, 10, 30]}``, or a list of such, which are added up."""


class Recipe(Frozen):
    """Everything that ``nowcast train`` needs."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Names the run and its checkpoint."""
    model: str
    """Name in the model table, with or without a size: ``convlstm:small``."""
    options: dict[str, Any] = {}
    """Constructor keywords of the network."""
    train: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    valid: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    windows: WindowSettings
    loss: Loss = ()
    """What made and true frames are compared by; none: as the network's paper does. What else belongs to the training
    of a network (frames that are fed, regularisers) stays."""
    trainer: TrainerSettings = TrainerSettings()
    runs: Path = Path("runs")
    """Folder of run folders: logs, checkpoints, the exported network."""
    start_from: Path | None = None
    """Checkpoint to go on from: its network's options apply where none are given, weights that fit are taken over."""
    tuning: str | None = None
    """How the weights of ``start_from`` are fitted to these data, one of the network's ``tunings``: ``full``: all of
    them; ``prompt``: GS2PM's prompt alone, for a small file over that checkpoint. None: trained as from the start."""

    @field_validator("valid", mode="before")
    @classmethod
    def _no_random_split(cls, spans: Any) -> Any:
        if isinstance(spans, float | int | str):
            raise ValueError(
                "a share of the windows at random would hold frames that are trained on, since windows "
                "overlap; give spans: by start and end, by split, or by sequences"
            )
        return spans

    @property
    def members(self) -> int:
        """Forecasts that are drawn of every sample in training, for a loss of ensembles."""
        return max((int(term.options.get("members", 1)) for term in self.loss), default=1)

    @model_validator(mode="after")
    def _model_exists(self) -> Recipe:
        _known("model", self.model, MODELS)
        if self.tuning and not self.start_from:
            raise ValueError(f"tuning {self.tuning} needs start_from, the checkpoint that is tuned")
        return self


# --- comparing ------------------------------------------------------------------------------------

BUDGETED = {"epochs", "minutes", "batches_per_epoch", "patience", "seed"}
"""Settings of the trainer that a benchmark sets for all networks alike."""
WAY = {
    "optimiser",
    "learning_rate",
    "betas",
    "weight_decay",
    "schedule",
    "warm_up",
    "milestones",
    "gamma",
    "lowest_rate",
    "wet_weight",
    "clip_value",
    "clip_norm",
    "ema_decay",
}
"""Settings of the trainer that a network takes over from its recipe."""


class Budget(Frozen):
    """How long every network trains: so many steps, or so many minutes."""

    steps: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    validate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between two validations; the best of them is kept."""

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give steps or minutes, one of them")
        if self.steps and self.steps % self.validate_every:
            raise ValueError(
                f"{self.steps} steps are not a multiple of validate_every ({self.validate_every}), "
                "so the last of them would not be validated"
            )
        return self


class Entrant(Frozen):
    """A network that takes part in a benchmark."""

    model: str | None = None
    """Name in the model table, with or without a size: ``convlstm:small``; None: that of the recipe."""
    recipe: str | None = None
    """Recipe whose model, options, loss and way of optimising apply, see ``WAY``."""
    checkpoint: str | None = None
    """Trained weights that take part as they are: nothing is trained."""
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """In the table; None: the model, ``convlstm-small``, or the name of the checkpoint."""
    options: dict[str, Any] = {}
    """Constructor keywords of the network, beside those of the recipe."""
    loss: Loss | None = None
    """See ``Recipe.loss``; None: that of the recipe."""
    trainer: TrainerSettings = TrainerSettings()
    """What is set here applies to this network alone."""

    @model_validator(mode="after")
    def _has_a_model(self) -> Entrant:
        if self.checkpoint and self.model_fields_set - {"checkpoint", "name"}:
            raise ValueError("a checkpoint is scored as it is; leave everything but its name out")
        if not (self.model or self.recipe or self.checkpoint):
            raise ValueError("name a model, a recipe or a checkpoint")
        if self.model:
            _known("model", self.model, MODELS)
        return self


class Benchmark(Frozen):
    """Everything that ``nowcast benchmark`` needs: networks trained alike, and one table of how good they are."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    networks: Annotated[tuple[Entrant, ...], Field(min_length=1)]
    references: tuple[str, ...] = ("persistence", "extrapolation")
    """Models without weights that are scored beside the networks, on the pixels that all of them cover."""
    train: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    valid: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """The weights with the lowest loss here are kept."""
    test: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """What the table is made of; no frame of it may be in train or valid. Whole frames are scored."""
    windows: WindowSettings
    test_stride: Annotated[int, Field(ge=1)] | None = None
    """Frames between the starts of two test windows; None: as in training."""
    budget: Budget
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each network is trained once with each."""
    trainer: TrainerSettings = TrainerSettings()
    """Of all networks, but for what a network sets itself and what the budget sets."""
    thresholds: tuple[float, ...] | None = None
    """Event limits in the quantity's unit; None: the quantity's own."""
    lpips: bool = False
    """Score the perceptual distance too; needs its weights."""
    block_minutes: Annotated[float, Field(gt=0)] = 60
    """Neighbouring windows are not independent: the intervals are drawn from blocks of a sequence of this length."""
    runs: Path = Path("runs")

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        for name in self.references:
            _known("reference", name, MODELS)
        names = [*self.references, *(network.name for network in self.entrants)]
        if len(set(names)) < len(names):
            raise ValueError(f"two rows share a name: {', '.join(map(str, names))}")
        if self.windows.channels > 1:
            raise ValueError("one channel is scored; leave windows.channels out")
        for span in self.test:
            if (span.quantity if isinstance(span, Span) else "intensity") not in (None, self.windows.quantity):
                raise ValueError(f"test is scored in {self.windows.quantity}, and a span of it is not")
        return self

    @cached_property
    def entrants(self) -> tuple[Entrant, ...]:
        """The networks, complete: with name, model, options, and every setting of their training."""
        return tuple(self._complete(network) for network in self.networks)

    def _complete(self, network: Entrant) -> Entrant:
        if network.checkpoint:
            return network.model_copy(update={"name": network.name or Path(network.checkpoint).stem})
        recipe = load(Recipe, network.recipe) if network.recipe else None
        model = network.model or (recipe.model if recipe else "")
        options = (recipe.options if recipe else {}) | network.options
        shared, own = (settings.model_dump(exclude_unset=True) for settings in (self.trainer, network.trainer))
        if fixed := BUDGETED & (shared.keys() | own.keys()):
            raise ValueError(f"{model}: the budget sets {', '.join(sorted(fixed))} of the trainer")
        way = recipe.trainer.model_dump(include=WAY) if recipe else {}
        trainer = TrainerSettings.model_validate(shared | way | own | self._budgeted())
        loss = network.loss if network.loss is not None else (recipe.loss if recipe else ())
        name = network.name or model.replace(":", "-")
        return Entrant(model=model, options=options, name=name, loss=loss, trainer=trainer)

    def _budgeted(self) -> dict[str, Any]:
        every, endless = self.budget.validate_every, 10**6
        epochs = self.budget.steps // every if self.budget.steps else endless
        return {"epochs": epochs, "minutes": self.budget.minutes, "batches_per_epoch": every, "patience": endless}

    def recipe(self, entrant: Entrant, *, seed: int) -> Recipe:
        """How one of the ``entrants`` is trained."""
        trainer = entrant.trainer.model_copy(update={"seed": seed})
        return Recipe(
            name=f"{entrant.name}-{seed}",
            model=str(entrant.model),
            options=entrant.options,
            loss=entrant.loss or (),
            train=self.train,
            valid=self.valid,
            windows=self.windows,
            trainer=trainer,
            runs=self.runs / self.name,
        )


# --- files ----------------------------------------------------------------------------------------


def load(kind: type[Settings], path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads settings from a YAML file, with ``key=value`` overrides (``trainer.epochs=3``).

    Args:
        kind: Class of the settings.
        path: A file, or the name of one shipped in ``configs/``.
        overrides: Dotted keys and YAML values.

    Raises:
        ConfigError: One sentence per mistake: file, key, what is wrong, what is possible.
    """
    file = find(path)
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(values).__name__}.")
    return _validated(kind, values, overrides, file)


def override(kind: type[Settings], overrides: Sequence[str]) -> Settings:
    """Default settings with ``key=value`` overrides.

    Raises:
        ConfigError: One sentence per mistake.
    """
    return _validated(kind, {}, overrides, "settings")


def words(changes: Mapping[str, Any]) -> list[str]:
    """Dotted keys and plain values as overrides; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _validated(kind: type[Settings], values: dict, overrides: Sequence[str], file: object) -> Settings:
    for change in overrides:
        _set(values, change)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(file, kind, item) for item in error.errors())) from None


def find(path: str | Path) -> Path:
    """The file itself, or the one of that name shipped in ``configs/``.

    Raises:
        ConfigError: If there is neither; the message lists what is shipped.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = {str(file.relative_to(shipped_folder())): file for file in sorted(shipped_folder().rglob("*.yaml"))}
    name = str(path).removeprefix("configs/")
    if name not in shipped:
        raise ConfigError(f"{path}: no such file; shipped: {', '.join(shipped)}.")
    return shipped[name]


def shipped_folder() -> Path:
    """Folder of the YAML files that come with the package."""
    return Path(str(files("nowcast.configs") / "."))


def _set(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r}: overrides look like key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it.")
    values[last] = yaml.safe_load(text)


def _sentence(file: object, kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "settings"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(_keys(kind, item['loc'][:-1]))}"
    return f"{file}: {key}: {message}."


def _keys(kind: type[BaseModel], place: tuple) -> list[str]:
    """Keys allowed at a place of a settings tree."""
    for part in place:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _inner(kind.model_fields[part].annotation)
    return list(kind.model_fields)


def _inner(annotation: object) -> type[BaseModel]:
    """The settings class inside ``tuple[X, ...]``, ``X | None`` or ``X`` itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner(part) for part in getattr(annotation, "__args__", ()) if part is not type(None)]
    return next((part for part in found if part is not BaseModel), BaseModel)
