"""Trains a network from a recipe, with Lightning.

    nowcast train configs/training/convlstm-small.yaml
    nowcast train configs/training/convlstm-debug.yaml trainer.epochs=2

A run folder holds ``last.ckpt`` (to resume), ``best.safetensors`` and ``last.safetensors`` (to use),
the resolved recipe, and the logs as CSV and for TensorBoard. The random numbers of a step depend only on the seed,
its number and the process, so that a resumed run continues as if it had not been interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from nowcast.core.errors import ConfigError, TrainingError
from nowcast.core.torchvision_cpu import import_torchvision

import_torchvision()  # before Lightning, which imports it too

import lightning  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # noqa: E402

from nowcast.config import (  # noqa: E402
    OWN,
    LossTerm,
    Recipe,
    ScalingSettings,
    TrainerSettings,
)
from nowcast.core.machine import device_name  # noqa: E402
from nowcast.core.units import Scaling, convert  # noqa: E402
from nowcast.core.version import code_version  # noqa: E402
from nowcast.data.loader import Batch, Loader, Packed, Unpack, Windows, loader  # noqa: E402
from nowcast.data.sources import check_apart  # noqa: E402
from nowcast.models import Nowcaster, build, loss, model_class  # noqa: E402
from nowcast.models.losses import Loss, mse  # noqa: E402
from nowcast.registry import checkpoint  # noqa: E402
from nowcast.registry.checkpoint import Card, Model  # noqa: E402
from nowcast.training.callbacks import AtomicCheckpointIO, CheckpointOnSignal, NonFiniteGuard, short_of_memory  # noqa: E402
from nowcast.training.logging import InputWait, report, training_loggers  # noqa: E402
from nowcast.training.preemption import PauseForForecasts  # noqa: E402

BEST, LAST = "best", "last"
RESUME = f"{LAST}.ckpt"
STEP_TOLERANCE = 0.25
"""Relative difference of cadence allowed between training and validation data."""
CHANGEABLE = {
    "patience",
    "workers",
    "devices",
    "nodes",
    "accelerator",
    "strategy",
    "checkpointing",
    "compile",
    "checkpoint_minutes",
    "log_every",
    "mlflow",
}
"""Settings of the trainer that may change when a run is resumed."""
LENGTH = {"epochs", "minutes"}
"""Settings that may change too, if the schedule of the learning rate does not depend on them."""
OPEN_ENDED = {"constant", "plateau"}
"""Schedules that do not depend on the length of the training."""
Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it prints advertisements at every start


def train(recipe: Recipe, *, resume: bool = True, progress: Progress | None = None) -> Path:
    """Train the network of a recipe.

    Args:
        recipe: Network, data, trainer.
        resume: Resume from ``last.ckpt`` of a run of this name, if there is one.
        progress: Called after every epoch with epochs done, epochs in all, and the validation loss as text.

    Returns:
        The exported network with the best validation loss, ``<runs>/<name>/best.safetensors``.

    Raises:
        ConfigError: Training and validation data that overlap, or that contain no window.
        TrainingError: The training cannot continue: too little memory or disk space, a loss or gradient that is not
            finite, or SIGTERM.
    """
    recipe, begin = _resolved(recipe)
    folder = recipe.runs / recipe.name
    lightning.seed_everything(recipe.trainer.seed, verbose=False)  # the loader seeds itself
    fitting, held_out = _data(recipe)
    batches, held_out_batches = _loader(fitting, recipe, shuffle=True), _loader(held_out, recipe, shuffle=False)
    learner = _learner(recipe, begin, batches, fitting, held_out)
    last = folder / RESUME
    resume = resume and last.exists()
    if resume:
        _check_unchanged(recipe, folder)
    waits = InputWait(batches)
    extras: list[callbacks.Callback] = [learner.clock, waits, NonFiniteGuard(folder, fitting.names)]
    trainer = _trainer(recipe, folder, extras + ([Reporter(progress)] if progress else []), resume=resume)
    if trainer.is_global_zero:
        _write_recipe(recipe, folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _fit(trainer, learner, batches, held_out_batches, recipe, begin=last if resume else None)
    if trainer.is_global_zero:
        facts = _costs(trainer, learner.clock) | {"input_wait_share": round(waits.share, 4)}
        _export(recipe, folder, trainer, fitting, begin, facts)
    trainer.strategy.barrier("export")
    return folder / f"{BEST}.safetensors"


def _learner(recipe: Recipe, begin: Model | None, batches: Loader, fitting: Windows, held_out: Windows) -> Learner:
    clock = _clock(recipe.trainer)
    network = _network(recipe, begin)
    network.checkpointing = recipe.trainer.checkpointing
    network.loss = _chosen_loss(recipe, network, fitting.scaling)
    kind = ShardedLearner if recipe.trainer.strategy == "fsdp" else Learner
    return kind(
        network,
        recipe.trainer,
        batches.batch_sampler,
        clock,
        train=fitting.unpack,
        valid=held_out.unpack,
        members=recipe.members,
    )


def untrained(recipe: Recipe) -> tuple[Nowcaster, Card]:
    """Build the network of a recipe before its training, and its card."""
    recipe, begin = _resolved(recipe)
    lightning.seed_everything(recipe.trainer.seed, verbose=False)
    return _network(recipe, begin).eval(), _card(recipe, _data(recipe)[0], {})


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _fit(
    trainer: lightning.Trainer,
    learner: Learner,
    batches: Loader,
    held_out: Loader,
    recipe: Recipe,
    *,
    begin: Path | None,
) -> None:
    """Train; of an error that all processes raise, only the first process reports it."""
    try:
        trainer.fit(learner, batches, held_out, ckpt_path=begin)
    except TrainingError:
        if trainer.is_global_zero:
            raise
        raise SystemExit(0) from None
    except (MemoryError, RuntimeError) as error:
        if advice := short_of_memory(error, recipe):
            raise TrainingError(advice) from error
        raise


class Learner(lightning.LightningModule):
    """A network with its optimiser and schedule; the network computes its loss itself."""

    def __init__(
        self,
        network: Nowcaster,
        settings: TrainerSettings,
        batches: Sized,
        clock: callbacks.Timer,
        *,
        train: Unpack,
        valid: Unpack,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.members = members
        self.network, self.settings, self.batches, self.clock = network, settings, batches, clock
        self.unpack, self.unpack_valid = train, valid
        if settings.compile:
            network.compile()
            network.training_loss = torch.compile(network.training_loss)  # type: ignore[method-assign]
        self.progress = 0.0
        """Share of the training that is done, by steps or by time, whichever ends it."""

    @property
    def steps(self) -> int:
        """Steps of the whole training. Lightning's own count would start the loader before its state is restored."""
        return max(1, self.settings.epochs * math.ceil(len(self.batches) / self.settings.accumulate))

    def done(self, steps: int) -> float:
        """Return the share of the training that is done, by steps or by the first process's clock, the larger one."""
        limit = self.settings.minutes
        share = self.clock.time_elapsed() / (60 * limit) if limit else 0.0
        if limit and self._trainer:
            share = self.trainer.strategy.broadcast(share)
        return min(1.0, max(share, steps / self.steps))

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Update the progress, and seed torch by seed, epoch, batch and process."""
        self.progress = self.done(self.global_step)
        drawn = [self.settings.seed, self.current_epoch, index, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(drawn).generate_state(1, np.uint64)[0] >> 1))

    def on_after_batch_transfer(self, batch: Packed, index: int) -> Batch:
        """Convert a batch, which arrives as the stores keep it, to [0, 1] on the device."""
        unpacked: Batch = self.unpack(batch) if self.trainer.training else self.unpack_valid(batch)
        return unpacked

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute and log the loss of a batch."""
        past, future, weight = self._repeated(batch["past"], batch["future"], self._weight(batch))
        loss = self.network.training_loss(past, future, self.progress, weight)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["past"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the recipe's loss, or the squared error, of the forecast and of persistence."""
        past, future, measure = batch["past"], batch["future"], self.network.loss or mse
        still = past[:, -1:].expand_as(future)
        for name, forecast in (("valid_loss", self.network(past)), ("persistence_loss", still)):
            known = forecast.isfinite()  # advection leaves gaps at the border
            loss = measure(*self._repeated(forecast.nan_to_num(), future, self._weight(batch) * known))
            self.log(name, loss, prog_bar=name == "valid_loss", batch_size=len(past), sync_dist=True)

    def _repeated(self, *parts: Tensor) -> Iterator[Tensor]:
        """Repeat a batch once for every ensemble member."""
        return (part if self.members == 1 else part.repeat(self.members, 1, 1, 1, 1) for part in parts)

    def _weight(self, batch: Batch) -> Tensor:
        return batch["mask"] * (1 + self.settings.wet_weight * batch["future"])

    def configure_optimizers(self) -> Any:
        """Build the optimiser of the trained weights, and the schedule of its learning rate."""
        optimiser = _optimiser(self.settings, checkpoint.learned(self.network).values())
        return {"optimizer": optimiser, "lr_scheduler": self._schedule(optimiser)}

    def _schedule(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        rate, kinds = self.settings.learning_rate, torch.optim.lr_scheduler
        match self.settings.schedule:
            case "plateau":
                factor, patience = self.settings.plateau_factor, self.settings.plateau_patience
                lowering = kinds.ReduceLROnPlateau(optimiser, factor=factor, patience=patience)
                return {"scheduler": lowering, "monitor": "valid_loss"}
            case "one-cycle":
                return {"scheduler": kinds.OneCycleLR(optimiser, rate, total_steps=self.steps), "interval": "step"}
            case _:
                planned = kinds.LambdaLR(optimiser, lambda step: rate_share(self.settings, self.done(step), self.steps))
                return {"scheduler": planned, "interval": "step"}


class ShardedLearner(Learner):
    """A learner of which every process has a part of each weight, of its gradient and of the optimiser's state."""

    def configure_model(self) -> None:
        """Shard the network over the processes."""
        for weight in self.network.parameters():
            weight.data = weight.data.contiguous()  # other layouts cannot be sharded
        mesh: Any = self.device_mesh
        fully_shard(self.network, mesh=mesh["data_parallel"])
        register_fsdp_forward_method(self.network, "training_loss")


def _optimiser(settings: TrainerSettings, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimiser:
        case "sgd":
            return torch.optim.SGD(weights, rate, momentum=settings.momentum, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(weights, rate, eps=settings.eps, momentum=settings.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(weights, rate, betas=settings.betas, eps=settings.eps, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(weights, rate, betas=settings.betas, eps=settings.eps, weight_decay=decay)


def rate_share(settings: TrainerSettings, done: float, steps: int) -> float:
    """Compute the factor on the learning rate when this share of the training is done.

    Args:
        settings: Schedule and warm-up.
        done: Share of the training that is done, 0 to 1.
        steps: Steps of the whole training.
    """
    if done < settings.warm_up:
        return min(1.0, (done + 1 / steps) / settings.warm_up)
    match settings.schedule:
        case "step" if settings.step_epochs:
            epochs = math.floor((done + 0.5 / steps) * settings.epochs)  # shares are rounded
            share = settings.gamma ** (epochs // settings.step_epochs)
        case "step":
            share = settings.gamma ** sum(done >= milestone for milestone in settings.milestones)
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * _fallen(settings, done)))
        case "linear":
            share = 1 - _fallen(settings, done)
        case _:
            return 1.0
    end = (settings.eta_min or 0.0) / settings.learning_rate
    return max(settings.lowest_rate, end + (1 - end) * share)


def _fallen(settings: TrainerSettings, done: float) -> float:
    """Share of the way down of the learning rate that is behind."""
    start = max(settings.warm_up, settings.hold)
    return max(0.0, (done - start) / (1 - start))


class Reporter(callbacks.Callback):
    """Calls a function with the progress of the training."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Report epochs done, epochs in all, and the validation loss."""
        if not trainer.sanity_checking:
            loss = f"validation loss {float(trainer.callback_metrics['valid_loss']):.4g}"
            self.progress(trainer.current_epoch + 1, int(trainer.max_epochs or 1), loss)


def _data(recipe: Recipe) -> tuple[Windows, Windows]:
    missing = model_class(recipe.model).handles_missing
    fitting = Windows(recipe.train, recipe.windows, training=True, missing=missing)
    held_out = Windows(recipe.valid, recipe.windows, training=False, missing=missing)
    check_apart(fitting.sources, held_out.sources)
    steps = fitting.step_seconds, held_out.step_seconds
    if abs(steps[0] - steps[1]) > STEP_TOLERANCE * steps[0]:
        raise ConfigError(f"Train and valid have different steps ({steps[0]} and {steps[1]} s); use one.")
    return fitting, held_out


def _check_unchanged(recipe: Recipe, folder: Path) -> None:
    """Refuse to resume a run with other data or settings, since its card would be wrong."""
    before = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text())).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    for settings in (before, now):
        settings.pop("runs")
        kept = settings["trainer"]
        planned = kept["schedule"] not in OPEN_ENDED or kept["warm_up"]
        may_change = CHANGEABLE if planned else CHANGEABLE | LENGTH
        settings["trainer"] = {key: kept[key] for key in kept.keys() - may_change}
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"{folder}: {', '.join(changed)} changed since this run began; "
            "use another name, or --no-resume to begin again."
        )


def _resolved(recipe: Recipe) -> tuple[Recipe, Model | None]:
    """Return the recipe with the options of the checkpoint that it starts from, and that checkpoint.

    Raises:
        ConfigError: If the recipe is of another network.
    """
    if not recipe.start_from:
        return recipe, None
    path = checkpoint.find(recipe.start_from)
    card = checkpoint.read_card(path)
    kinds = [name.partition(":")[0] for name in (recipe.model, card.model)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"start_from: {path} is a {kinds[1]}, and model says {kinds[0]}.")
    changes: dict[str, Any] = {"start_from": path.resolve()}
    if recipe.model in (card.model, kinds[0]):
        changes |= {"model": card.model, "options": card.options | recipe.options}
    return recipe.model_copy(update=changes), checkpoint.load(path)


def _network(recipe: Recipe, begin: Model | None) -> Nowcaster:
    windows = recipe.windows
    network = build(
        recipe.model,
        in_steps=windows.in_steps,
        out_steps=windows.out_steps,
        channels=windows.channels,
        **recipe.options,
    )
    if not network.trainable:
        raise ConfigError(f"{recipe.model} has nothing to learn; choose a network (`nowcast models`).")
    new = checkpoint.adopt(network, begin.network.state_dict()) if begin else []
    if recipe.tuning:
        network.tune(recipe.tuning)
    _check_new(recipe, network, new)
    return checkpoint.fast_layout(network)


def _check_new(recipe: Recipe, network: Nowcaster, new: list[str]) -> None:
    """Warn of weights that the checkpoint does not have, and refuse a tuning that would not train them."""
    if not new:
        return
    few = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
    if len(new) == len(network.state_dict()):
        raise ConfigError(f"start_from: no weight of {recipe.start_from} fits {recipe.model} with these options.")
    if not set(new) <= checkpoint.learned(network).keys() | dict(network.named_buffers()).keys():
        raise ConfigError(
            f"tuning {recipe.tuning} leaves other weights as they are, and {recipe.start_from} has no "
            f"{few}; keep its lengths, channels and options, or use tuning full."
        )
    log.warning("%s: new weights, since %s has none of their shape: %s", recipe.name, recipe.start_from, few)


def _chosen_loss(recipe: Recipe, network: Nowcaster, scaling: Scaling) -> Loss | None:
    """Build the sum of the losses that a recipe names; None if it names none."""
    parts = [(term.weight, network.error if term.name == OWN else _loss(term, recipe, scaling)) for term in recipe.loss]

    def together(made: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
        return torch.stack([share * part(made, truth, weight) for share, part in parts]).sum()

    return together if parts else None


def _loss(term: LossTerm, recipe: Recipe, scaling: Scaling) -> Loss:
    """Build a loss, its limits converted from physical values to the scale of the network."""
    if not term.limits:
        return loss(term.name, **term.options)
    source = term.quantity or recipe.windows.quantity
    physical = convert(np.asarray(term.limits, np.float32), source, recipe.windows.quantity, zr=term.zr)
    return loss(term.name, limits=scaling.encode(physical, clip=False).tolist(), **term.options)


def _loader(windows: Windows, recipe: Recipe, *, shuffle: bool) -> Loader:
    settings = recipe.trainer
    batches = settings.batches_per_epoch if shuffle else settings.valid_batches
    return loader(
        windows,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        shuffle=shuffle,
        batches=batches,
        packed=True,
    )


def _clock(settings: TrainerSettings) -> callbacks.Timer:
    """Build the timer that ends the training in time, and measures its duration over all resumptions."""
    return callbacks.Timer(timedelta(minutes=settings.minutes) if settings.minutes else None, verbose=False)


class Sharded(ModelParallelStrategy):
    """FSDP over all processes, by torch's FSDP2, which works on CPUs too; checkpoints are not sharded."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def _trainer(recipe: Recipe, folder: Path, extras: list[callbacks.Callback], *, resume: bool) -> lightning.Trainer:
    settings = recipe.trainer
    all_callbacks: list[callbacks.Callback] = [
        *extras,
        callbacks.EarlyStopping("valid_loss", patience=settings.patience),
        callbacks.LearningRateMonitor(),
        callbacks.TQDMProgressBar(refresh_rate=5),
        PauseForForecasts(),
        callbacks.ModelCheckpoint(folder, BEST, monitor="valid_loss", enable_version_counter=False),
        callbacks.ModelCheckpoint(folder, LAST, enable_version_counter=False),  # every epoch, better or not
        CheckpointOnSignal(folder / RESUME, timedelta(minutes=settings.checkpoint_minutes)),
    ]
    if settings.ema_decay:
        all_callbacks.append(callbacks.EMAWeightAveraging(decay=settings.ema_decay))
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=Sharded() if settings.strategy == "fsdp" else settings.strategy,
        sync_batchnorm=torch.cuda.is_available() and settings.accelerator != "cpu",
        precision=settings.precision,
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        callbacks=all_callbacks,
        log_every_n_steps=settings.log_every,
        plugins=[AtomicCheckpointIO()],
        gradient_clip_val=settings.clip_value or settings.clip_norm,
        gradient_clip_algorithm="value" if settings.clip_value else "norm",
        logger=training_loggers(recipe, folder, resume=resume),
        default_root_dir=folder,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loader's own sampler is distributed
    )


def _export(
    recipe: Recipe,
    folder: Path,
    trainer: lightning.Trainer,
    fitting: Windows,
    begin: Model | None,
    costs: dict[str, object],
) -> None:
    """Write the best and the last weights as checkpoints with their card, or as prompt files of their base."""
    kept: Any = trainer.checkpoint_callback
    network, files = _network(recipe, begin), [folder / f"{name}.safetensors" for name in (LAST, BEST)]
    for file, source in zip(files, (folder / RESUME, Path(kept.best_model_path)), strict=True):
        state = torch.load(source, map_location="cpu", weights_only=True)
        facts = {
            "epochs": int(state["epoch"]) + 1,
            "steps": int(state["global_step"]),
            "best_valid_loss": float(kept.best_model_score),
            **costs,
            "torch": torch.__version__,
        }
        _load(network, state["state_dict"])
        card = _card(recipe, fitting, facts).model_copy(update={"base": _base(recipe, network, begin)})
        checkpoint.save(file, network, card)
    report(trainer, card, files)


def _base(recipe: Recipe, network: Nowcaster, begin: Model | None) -> dict[str, str] | None:
    """Return digest and path of the base, if not all weights were trained; a tuned prompt file keeps its base."""
    if begin is None or len(checkpoint.learned(network)) == len(list(network.parameters())):
        return None
    path = checkpoint.find(str(recipe.start_from))
    known = checkpoint.read_card(path).base
    return known or {"digest": begin.digest, "path": str(path.resolve())}


def _costs(trainer: lightning.Trainer, clock: callbacks.Timer) -> dict[str, object]:
    """Describe where the training ran, how long, and its peak memory on a GPU."""
    facts = {
        "seconds": round(clock.time_elapsed(), 1),
        "device": str(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "machine": device_name(trainer.strategy.root_device),
    }
    if trainer.strategy.root_device.type == "cuda":
        facts["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return facts


def _load(network: nn.Module, state: dict[str, Tensor]) -> None:
    prefix = "network."
    network.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _card(recipe: Recipe, fitting: Windows, facts: dict[str, object]) -> Card:
    scaling = fitting.scaling
    spans = tuple(source.facts() for source in fitting.sources)
    return Card(
        model=recipe.model,
        options=recipe.options,
        in_steps=recipe.windows.in_steps,
        out_steps=recipe.windows.out_steps,
        channels=recipe.windows.channels,
        quantity=recipe.windows.quantity,
        scaling=ScalingSettings.model_validate(vars(scaling)),
        cadence_seconds=fitting.step_seconds,
        recipe=recipe.model_dump(mode="json"),
        data=spans,
        training=facts,
        code_version=code_version(),
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )
