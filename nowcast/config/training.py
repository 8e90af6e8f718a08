"""Settings of a training: its windows of frames, its network, its loss, its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from nowcast.config.base import Frozen, check_known
from nowcast.core.units import MARSHALL_PALMER, QUANTITIES, Scaling
from nowcast.models import LOSSES, MODELS

OWN = "own"
"""Name of the loss of a network's paper."""


class ScalingSettings(Frozen):
    """How physical values become [0, 1]; see ``nowcast.core.units.Scaling``."""

    kind: Literal["linear", "decibel"]
    """``linear``: by the value; ``decibel``: by its logarithm, which shows light rain."""
    low: float
    """Value that becomes 0; lower ones do too."""
    high: float
    """Value that becomes 1; higher ones do too."""

    def build(self) -> Scaling:
        """Return the scaling that these settings describe."""
        return Scaling(self.kind, self.low, self.high)


class Span(Frozen):
    """Part of a store: all of it, a time range, one of its splits, or some of its sequences."""

    store: str
    """Cube store, folder or URL."""
    start: AwareDatetime | None = None
    """First time included; it needs its zone: 2016-09-28T14:00Z."""
    end: AwareDatetime | None = None
    """First time not included."""
    split: str | None = None
    """Only frames that their source assigns to this split: train, valid or test."""
    sequences: tuple[str, ...] = ()
    """Only sequences (events, persons, files) whose labels match one of these patterns: ``train/boxing/person0*``."""
    share: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None = None
    """Only a part of the sequences, whole ones in the order of the store: [0, 0.8], the first four fifths of those that
    are left. It divides clips whose times mean nothing."""
    quantity: str | None = None
    """Channel to read from this store if it is not the quantity of the windows: video with radar."""
    scaling: ScalingSettings | None = None
    """Scaling of that quantity; None: its own."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on how often this span is drawn, in addition to its size and ``temperature``."""

    @model_validator(mode="after")
    def _consistent(self) -> Span:
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        if self.share and self.share[0] >= self.share[1]:
            raise ValueError(f"share {list(self.share)} is empty: its first number must be the smaller one")
        if self.quantity is not None:
            check_known("quantity", self.quantity, QUANTITIES)
        return self


Objects = Annotated[int, Field(ge=1, le=3)]


class Moving(Frozen):
    """Clips generated on the fly from moving, bouncing images: Moving MNIST, or the same with any images."""

    images: Path
    """``train-images-idx3-ubyte.gz``, an ``.npy`` of grey images, or a folder of pictures."""
    objects: Objects | Annotated[tuple[Objects, ...], Field(min_length=1)] = 2
    """Images in a clip; several numbers, such as [1, 2, 3]: one of them is drawn for each clip."""
    canvas: Annotated[int, Field(ge=8)] = 64
    """Side of the frames in pixels."""
    clips: Annotated[int, Field(ge=1)] = 10_000
    """Clips in an epoch. Training draws new ones in every epoch, validation has the same in all of them."""
    images_from: Annotated[int, Field(ge=0)] = 0
    """First image used."""
    images_to: Annotated[int, Field(ge=1)] | None = None
    """First image not used; None: all the rest."""
    seed: int = 0
    """Seed of the trajectories too: train, valid and test need different ones even if their images differ."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on how often these clips are drawn, as that of a span."""


class WindowSettings(Frozen):
    """Which windows of frames a network learns from."""

    quantity: str
    """Quantity forecast; stores that hold another are converted where a formula exists."""
    in_steps: Annotated[int, Field(ge=1)]
    """Frames of the past that the network reads."""
    out_steps: Annotated[int, Field(ge=1)]
    """Frames of the future that it makes."""
    stride: Annotated[int, Field(ge=1)] = 1
    """Frames between the starts of two windows."""
    channels: Literal[1, 3] = 1
    """Channels of a frame; 3: red, green and blue of a colour video, a single channel is repeated three times."""
    resize: Annotated[int, Field(ge=8)] | None = None
    """Side of the square that whole frames are resized to, before any crop; None: as they are."""
    crop: Annotated[int, Field(ge=8)] | None = None
    """Side of random square crops in pixels; None: whole frames."""
    crops_per_window: Annotated[int, Field(ge=1)] = 1
    """Crops cut from each decoded window."""
    rain_weight: Annotated[float, Field(ge=0)] = 1.0
    """Crops are drawn with probability 1 + rain_weight x (share of wet pixels / its mean)."""
    event_weight: Annotated[float, Field(ge=0)] = 0.0
    """Windows are drawn with probability 1 + event_weight x (mean rain / its mean over the span): the 1 keeps
    dry weather in. Drawing all intensities equally often is not offered: it makes networks invent storms."""
    temperature: Annotated[float, Field(ge=1)] = 1.0
    """A span is drawn with probability windows^(1 / temperature): 1 by its size, 100 all equally often."""
    most_missing: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A frame with a larger share of missing pixels counts as missing: no window contains it."""
    flips: bool = False
    """Flip and transpose at random: more data, though mirrored weather is that of the other hemisphere."""
    scaling: ScalingSettings | None = None
    """Scaling to [0, 1] of the quantity; None: its own."""

    @model_validator(mode="after")
    def _quantity_exists(self) -> WindowSettings:
        check_known("quantity", self.quantity, QUANTITIES)
        return self


class TrainerSettings(Frozen):
    """Settings of the optimisation."""

    epochs: Annotated[int, Field(ge=1)] = 100
    """Training ends after so many passes; validation follows each of them."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Training ends after this time, validations included, unless the epochs end it before; None: no limit."""
    batches_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """Batches of the training between two validations; None: every window once."""
    valid_batches: Annotated[int, Field(ge=1)] | None = None
    """Batches of the validation, always the same ones; None: every window once."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Crops (or windows) per batch on one device."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per step of the optimiser: a step uses batch_size x accumulate x devices x nodes crops."""
    wet_weight: Annotated[float, Field(ge=0)] = 0.0
    """The error of a pixel is weighted 1 + wet_weight x its scaled observation: most pixels are dry, and an unweighted
    mean lets rain fade out of the forecast. Compare Shi et al. (2017), arXiv:1706.03458, section 3.4."""
    optimiser: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """What turns gradients into steps: torch's optimiser of this name."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Largest factor on the steps of the optimiser; ``schedule`` changes it over the training."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of Adam's running means of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """What Adam, AdamW and RMSprop add to the root of the squared gradient before they divide by it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the last step that SGD and RMSprop make again."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Pull of all weights towards 0: with ``adamw`` apart from the gradient, with the others as a part of it."""
    schedule: Literal["constant", "step", "cosine", "linear", "plateau", "one-cycle"] = "plateau"
    """How the learning rate changes. All but the last two span the training, by epochs or minutes, whichever ends it;
    ``plateau`` lowers it when the validation loss stalls, ``one-cycle`` raises it over 30 % of the steps and lowers it
    over the rest."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training over which the rate rises from 0, before the schedule."""
    hold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training, warm-up included, after which ``cosine`` and ``linear`` begin to lower the rate."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training at which schedule ``step`` multiplies the rate by ``gamma``."""
    step_epochs: Annotated[int, Field(ge=1)] | None = None
    """Instead of ``milestones``: schedule ``step`` multiplies the rate by ``gamma`` every so many epochs."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor on the rate in schedule ``step``."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor on the rate in schedule ``plateau``."""
    plateau_patience: Annotated[int, Field(ge=0)] = 4
    """Epochs without a lower validation loss that schedule ``plateau`` waits for before it lowers the rate."""
    lowest_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the learning rate below which ``step``, ``cosine`` and ``linear`` do not go: they are cut off there."""
    eta_min: Annotated[float, Field(ge=0)] | None = None
    """Learning rate that ``cosine`` and ``linear`` reach at the end, instead of 0 or ``lowest_rate``."""
    patience: Annotated[int, Field(ge=1)] = 20
    """Epochs without a lower validation loss before training stops."""
    clip_value: Annotated[float, Field(gt=0)] | None = None
    """Gradient values are clipped to +- this."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient norm is clipped to this."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is validated and kept; None: none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Bits of the numbers: ``mixed`` computes most layers with 16, which GPUs do faster."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device; ``auto``: a GPU where there is one."""
    devices: int | Literal["auto"] = "auto"
    """Devices used on each machine; ``auto``: all GPUs, or one process on a CPU."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines. The same command runs on each of them, started by Slurm or torchrun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work: ``ddp`` keeps the whole network on each of them, ``fsdp`` a part of it."""
    compile: bool = False
    """Network and loss are compiled by torch.compile: minutes at the start, then less time per step on GPUs."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10
    """``last.ckpt`` is written after every epoch, and in long ones this often."""
    log_every: Annotated[int, Field(ge=1)] = 5
    """Steps between two rows of the logs."""
    mlflow: str | None = None
    """MLflow to report to, in addition to the logs in the run folder: ``http://host:5000``, or a folder; needs
    ``pip install 'nowcast-radar[mlflow]'``."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that read and cut windows; 0: the training does it itself."""
    seed: int = 0
    """Seed of all that is drawn: first weights, order of the windows, crops, sampling."""

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
        if (self.schedule == "step") != bool(self.milestones or self.step_epochs):
            raise ValueError("schedule step and milestones, or step_epochs, need each other")
        if self.milestones and self.step_epochs:
            raise ValueError("milestones and step_epochs exclude each other")
        if self.step_epochs and self.minutes:
            raise ValueError("step_epochs counts epochs, and minutes end the training by time; use milestones")
        if self.momentum and self.optimiser not in ("sgd", "rmsprop"):
            raise ValueError(f"momentum is for sgd and rmsprop; optimiser {self.optimiser} has betas")
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> TrainerSettings:
        falls = self.schedule in ("cosine", "linear")
        if (self.hold or self.eta_min is not None) and not falls:
            raise ValueError(f"hold and eta_min are for cosine and linear; schedule {self.schedule} has none")
        if self.eta_min is not None and self.lowest_rate:
            raise ValueError("eta_min and lowest_rate exclude each other")
        if self.eta_min is not None and self.eta_min >= self.learning_rate:
            raise ValueError(f"eta_min {self.eta_min:g} is not below learning_rate {self.learning_rate:g}")
        return self


class LossTerm(Frozen):
    """One term of the training loss, see ``models/losses.py``."""

    name: str
    """Name in the table of losses; ``own``: that of the network's paper."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on this term in the sum."""
    limits: tuple[float, ...] = ()
    """Limits of a loss that has them, in the unit of ``quantity``."""
    quantity: str | None = None
    """Quantity of the limits; None: that of the windows."""
    zr: tuple[float, float] = MARSHALL_PALMER
    """a, b of Z = a R^b, where limits are rain rates and the windows reflectivity."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Other keywords of the loss."""

    @model_validator(mode="after")
    def _exists(self) -> LossTerm:
        check_known("loss", self.name, (*LOSSES, OWN))
        if self.quantity is not None:
            check_known("quantity", self.quantity, QUANTITIES)
        return self


def _as_terms(value: Any) -> Any:
    """Accept the name of a loss, or one loss, in place of a list of them."""
    value = {"name": value} if isinstance(value, str) else value
    return (value,) if isinstance(value, dict) else value


Loss = Annotated[tuple[LossTerm, ...], BeforeValidator(_as_terms)]
"""``mse``, or ``{name: balanced, limits: [2, 5, 10, 30]}``, or a list of such, which are added up."""


class Recipe(Frozen):
    """Everything that ``nowcast train`` needs."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Names the run and its checkpoint."""
    model: str
    """Name in the model table, with or without a size: ``convlstm:small``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Constructor keywords of the network."""
    train: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """Frames that are learned from."""
    valid: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """Frames whose loss decides which weights are kept and when the training ends; none of them may be in train."""
    windows: WindowSettings
    """How these frames become samples."""
    loss: Loss = ()
    """Compares forecast and observed frames; none: as in the network's paper. The rest of a network's training
    (scheduled sampling, regularisers) stays."""
    trainer: TrainerSettings = TrainerSettings()
    """Optimiser, schedule, length and machine of the training."""
    runs: Path = Path("runs")
    """Folder of the run folders: logs, checkpoints, the exported network."""
    start_from: Path | None = None
    """Checkpoint to start from: its options apply where none are given; weights of equal name and shape are loaded."""
    tuning: str | None = None
    """Which weights of ``start_from`` are fine-tuned, one of the network's ``tunings``: ``full``: all of them;
    ``prompt``: GS2PM's prompt alone, saved as a small file that refers to that checkpoint. None: a usual training."""

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
        """Ensemble members that are drawn of every sample in training, for an ensemble loss."""
        return max((int(term.options.get("members", 1)) for term in self.loss), default=1)

    @model_validator(mode="after")
    def _model_exists(self) -> Recipe:
        check_known("model", self.model, MODELS)
        if self.tuning and not self.start_from:
            raise ValueError(f"tuning {self.tuning} needs start_from, the checkpoint that is tuned")
        return self
