"""Settings of a benchmark: networks trained with the same budget and compared."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from nowcast.config.base import Frozen, check_known
from nowcast.config.load import load
from nowcast.config.training import (
    Loss,
    Moving,
    Recipe,
    Span,
    TrainerSettings,
    WindowSettings,
)
from nowcast.models import MODELS

PROTOCOLS = {
    "moving-mnist": ("mse", "mae", "psnr", "ssim", "sharpness", "lpips"),
    "kth": ("mse", "psnr", "ssim", "lpips"),
    "openstl": ("mse", "mae", "rmse", "psnr", "ssim", "lpips"),
    "gs2pm": ("mse", "psnr", "ssim", "lpips"),
    "hko7": ("csi", "hss", "pod", "far", "mse", "mae", "b_mse", "b_mae", "gdl"),
    "sevir": ("csi_m", "csi", "pod", "sucr", "bias", "mse", "mae"),
}
"""Protocol -> its scores, as ``nowcast.verification.protocols`` computes them, which a test compares."""
BUDGETED = {"epochs", "minutes", "batches_per_epoch", "patience", "seed"}
"""Settings of the trainer that a benchmark sets for all networks."""
OPTIMISATION = {
    "optimiser",
    "learning_rate",
    "betas",
    "eps",
    "momentum",
    "weight_decay",
    "schedule",
    "warm_up",
    "hold",
    "milestones",
    "step_epochs",
    "gamma",
    "plateau_factor",
    "plateau_patience",
    "lowest_rate",
    "eta_min",
    "wet_weight",
    "clip_value",
    "clip_norm",
    "ema_decay",
}
"""Settings of the trainer that a network takes from its recipe."""


def _as_names(value: Any) -> Any:
    """Accept one name in place of a list of them."""
    return (value,) if isinstance(value, str) else value


Published = dict[str, dict[str, float]]
"""Protocol -> name of a score -> figure of a published table: ``{openstl: {mse: 23.97, ssim: 0.9462}}``."""


def check_published(figures: Published) -> None:
    """Refuse figures of a table that no protocol makes.

    Raises:
        ValueError: Lists the known protocols or scores.
    """
    for protocol, scores in figures.items():
        check_known("protocol", protocol, PROTOCOLS)
        for name in scores:
            check_known("score", name.partition("≥")[0], PROTOCOLS[protocol])


def _filled_in(value: Any, domain: str) -> Any:
    """Replace ``{domain}`` in all texts of nested settings."""
    if isinstance(value, dict):
        return {key: _filled_in(inner, domain) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled_in(inner, domain) for inner in value]
    return value.replace("{domain}", domain) if isinstance(value, str) else value


class Budget(Frozen):
    """Length of every network's training, in steps or in minutes."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the optimiser; None: by minutes."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Time, validations included; None: by steps."""
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


class Participant(Frozen):
    """A network that takes part in a benchmark."""

    model: str | None = None
    """Name in the model table, with or without a size: ``convlstm:small``; None: that of the recipe."""
    recipe: str | None = None
    """Recipe whose model, options, loss and ``OPTIMISATION`` settings apply."""
    checkpoint: str | None = None
    """Trained weights that are scored as they are: nothing is trained."""
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Label in the table; None: the model, ``convlstm-small``, or the name of the checkpoint."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Constructor keywords of the network, in addition to those of the recipe."""
    loss: Loss | None = None
    """Loss that it trains with, as in a recipe; None: that of the recipe."""
    trainer: TrainerSettings = TrainerSettings()
    """Settings of this network alone."""
    published: Published = Field(default_factory=dict)
    """Figures of its paper, shown beside ours in the table of a protocol."""

    @model_validator(mode="after")
    def _has_a_model(self) -> Participant:
        check_published(self.published)
        if self.checkpoint and self.model_fields_set - {"checkpoint", "name", "published"}:
            raise ValueError("a checkpoint is scored as it is; leave everything but its name out")
        if not (self.model or self.recipe or self.checkpoint):
            raise ValueError("name a model, a recipe or a checkpoint")
        if self.model:
            check_known("model", self.model, MODELS)
        return self


class Domain(Frozen):
    """One of several data sets that a benchmark is repeated on."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """What ``{domain}`` stands for in the stores and checkpoints of the benchmark."""
    published: dict[str, Published] = Field(default_factory=dict)
    """Figures of published tables of this domain, by the name of a network."""


class Benchmark(Frozen):
    """Everything that ``nowcast benchmark`` needs: networks trained with the same budget, and one table of scores."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Names the folder of the results."""
    networks: Annotated[tuple[Participant, ...], Field(min_length=1)]
    """Networks that are compared."""
    references: tuple[str, ...] = ("persistence", "extrapolation")
    """Models without weights that are scored with the networks. Of radar, only pixels that all of them cover are
    compared; of pictures all pixels are, and those that a reference leaves out count as black."""
    train: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """Frames that all networks learn from."""
    valid: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """The weights with the lowest loss here are kept."""
    test: Annotated[tuple[Span | Moving, ...], Field(min_length=1)]
    """Frames that are scored, whole; none of them may be in train or valid."""
    windows: WindowSettings
    """How frames become samples."""
    test_stride: Annotated[int, Field(ge=1)] | None = None
    """Frames between the starts of two test windows; None: as in training."""
    budget: Budget
    """Length of every training."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each network is trained once with each seed."""
    trainer: TrainerSettings = TrainerSettings()
    """Settings of all networks, except what a network or the budget sets."""
    thresholds: tuple[float, ...] | None = None
    """Thresholds in the quantity's unit; None: the quantity's own."""
    protocol: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = ()
    """Published tables whose scores are made too, in tables of their own: ``moving-mnist``, ``kth``, ``openstl``,
    ``gs2pm``, ``hko7`` or ``sevir``, or several of them; see ``nowcast.verification.protocols``."""
    lpips: bool = False
    """Score the perceptual distance too, also for the protocols; needs its weights."""
    block_minutes: Annotated[float, Field(gt=0)] = 60
    """Length of the bootstrap blocks within a sequence, in minutes: neighbouring windows are not independent."""
    domains: tuple[Domain, ...] = ()
    """Data sets that all of this is repeated on, each with its own table, under ``runs/name``: ``{domain}`` in stores,
    pictures and checkpoints is replaced by the name of each."""
    runs: Path = Path("runs")
    """Folder of the results and of the run folders."""

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        for name in self.references:
            check_known("reference", name, MODELS)
        for name in self.protocol:
            check_known("protocol", name, PROTOCOLS)
        names = [*self.references, *(network.name for network in self.participants)]
        if len(set(names)) < len(names):
            raise ValueError(f"two rows share a name: {', '.join(map(str, names))}")
        for span in self.test:
            if (span.quantity if isinstance(span, Span) else "intensity") not in (None, self.windows.quantity):
                raise ValueError(f"test is scored in {self.windows.quantity}, and a span of it is not")
        for domain in self.domains:
            for network, figures in domain.published.items():
                check_known(f"network of {domain.name}", network, list(map(str, names)))
                check_published(figures)
        return self

    def of(self, domain: Domain) -> Benchmark:
        """Return the benchmark of one of the ``domains``."""
        values = _filled_in(self.model_dump(mode="json", exclude_unset=True, exclude={"domains"}), domain.name)
        for network, participant in zip(values["networks"], self.participants, strict=True):
            network["published"] = domain.published.get(str(participant.name), participant.published)
        return Benchmark.model_validate(values | {"name": domain.name, "runs": self.runs / self.name})

    @cached_property
    def participants(self) -> tuple[Participant, ...]:
        """The networks with every setting resolved: name, model, options, and training."""
        return tuple(self._complete(network) for network in self.networks)

    def _complete(self, network: Participant) -> Participant:
        if network.checkpoint:
            return network.model_copy(update={"name": network.name or Path(network.checkpoint).stem})
        recipe = load(Recipe, network.recipe) if network.recipe else None
        model = network.model or (recipe.model if recipe else "")
        options = (recipe.options if recipe else {}) | network.options
        shared, own = (settings.model_dump(exclude_unset=True) for settings in (self.trainer, network.trainer))
        if fixed := BUDGETED & (shared.keys() | own.keys()):
            raise ValueError(f"{model}: the budget sets {', '.join(sorted(fixed))} of the trainer")
        optimisation = recipe.trainer.model_dump(include=OPTIMISATION) if recipe else {}
        trainer = TrainerSettings.model_validate(shared | optimisation | own | self._budget_settings())
        loss = network.loss if network.loss is not None else (recipe.loss if recipe else ())
        name = network.name or model.replace(":", "-")
        shown = network.published
        return Participant(model=model, options=options, name=name, loss=loss, trainer=trainer, published=shown)

    def _budget_settings(self) -> dict[str, Any]:
        every, endless = self.budget.validate_every, 10**6
        epochs = self.budget.steps // every if self.budget.steps else endless
        return {"epochs": epochs, "minutes": self.budget.minutes, "batches_per_epoch": every, "patience": endless}

    def recipe(self, participant: Participant, *, seed: int) -> Recipe:
        """Return the recipe that trains one of the ``participants``."""
        trainer = participant.trainer.model_copy(update={"seed": seed})
        return Recipe(
            name=f"{participant.name}-{seed}",
            model=str(participant.model),
            options=participant.options,
            loss=participant.loss or (),
            train=self.train,
            valid=self.valid,
            windows=self.windows,
            trainer=trainer,
            runs=self.runs / self.name,
        )
