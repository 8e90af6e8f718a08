"""What keeps long trainings from being lost: checkpoints that are whole, in mid-epoch and when told to end; numbers
that are no longer numbers; memory that is short."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nowcast.core.errors import TrainingError
from nowcast.core.torchvision_cpu import import_torchvision

import_torchvision()  # before Lightning, which imports it too

import lightning  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from lightning.pytorch.plugins.io import TorchCheckpointIO  # noqa: E402

from nowcast.config import Recipe  # noqa: E402
from nowcast.core.files import atomic_file  # noqa: E402
from nowcast.data.loader import Batch  # noqa: E402

SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What errors say of GPUs and of torch's allocator on CPUs."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that replace the one before when they are on the disk, and otherwise leave it as it is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_file(Path(path)) as aside, aside.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if full else str(error).splitlines()[0]
            raise TrainingError(
                f"{path} cannot be written: {reason}; the checkpoint before it is as it was. "
                "Make room, and run the same command to go on."
            ) from error


class CheckpointOnSignal(callbacks.Checkpoint):
    """Writes a checkpoint every so often between two steps of the optimiser, and when the process is told to end.

    Args:
        path: What is replaced by it.
        every: How often.
    """

    def __init__(self, path: Path, every: timedelta) -> None:
        self.path, self.every, self.told = path, every.total_seconds(), False
        self.last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Takes SIGTERM over from Lightning, which would drop what was not saved; back it goes at the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_: object) -> None:
        self.told = True

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        stepped = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        due = time.monotonic() - self.last >= self.every
        if not (stepped or trainer.is_last_batch) or not _any(trainer, due or self.told):
            return
        trainer.save_checkpoint(self.path)
        self.last = time.monotonic()
        self._end_if_told(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Told during the validation; the checkpoint of the epoch is written by now."""
        self._end_if_told(trainer)

    def _end_if_told(self, trainer: lightning.Trainer) -> None:
        if _any(trainer, self.told):
            raise TrainingError(
                f"Told to end (SIGTERM) after step {trainer.global_step}, which is in {self.path}: "
                "the same command goes on from there."
            )


class NonFiniteGuard(callbacks.Callback):
    """Stops before a step that would make the weights meaningless, and keeps its batch.

    Args:
        folder: Where batches go.
        names: What the windows of a batch are called.
    """

    def __init__(self, folder: Path, names: Callable[[Sequence[int]], list[str]]) -> None:
        self.folder, self.names = folder, names
        self.batch: Batch = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, *_: Any
    ) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: Tensor) -> None:
        self._check(trainer, bool(loss.isfinite()), f"the loss became {float(loss.detach())}")

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.precision == "16-mixed":
            return  # its scaler skips such steps by itself
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._check(trainer, bool(norm.isfinite()), "a gradient became infinite")

    def _check(self, trainer: lightning.Trainer, fine: bool, what: str) -> None:
        if not _any(trainer, not fine):
            return
        step = trainer.global_step + 1
        if not fine:
            save_batch(self.folder / f"bad-batch-{step}-{trainer.global_rank}.npz", self.batch, self.names)
        raise TrainingError(
            f"In step {step} {what}; weights and checkpoints are as before it, and its batch is in "
            f"{self.folder}/bad-batch-{step}-*.npz. Look at these frames, or lower "
            "trainer.learning_rate or trainer.clip_norm."
        )


def save_batch(path: Path, batch: Batch, names: Callable[[Sequence[int]], list[str]]) -> Path:
    """Writes the frames of a batch, their weights, and which windows they are."""
    arrays = {name: part.float().cpu().numpy() for name, part in batch.items() if name != "window"}
    windows = np.asarray(names(batch["window"].tolist()))
    with atomic_file(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays, windows=windows)  # type: ignore[arg-type]
    return path


def short_of_memory(error: BaseException, recipe: Recipe) -> str | None:
    """What to lower, and by how much, if that is what an error says."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in SHORT_OF_MEMORY):
        return None
    settings, least = recipe.trainer, recipe.windows.crops_per_window
    half = max(least, settings.batch_size // 2 // least * least)
    ways = []
    if half < settings.batch_size:
        times = -(-settings.batch_size * settings.accumulate // half)
        ways.append(f"trainer.batch_size={half} trainer.accumulate={times}, which takes the same steps")
    if not settings.checkpointing:
        ways.append("trainer.checkpointing=true, which takes a third more time")
    side = recipe.windows.crop
    ways = ways or [f"windows.crop={side // 2 // 8 * 8}" if side else "windows.crop, smaller than the frames"]
    first = text.splitlines()[0] if text else type(error).__name__
    return f"Memory is short for batches of {settings.batch_size} ({first}): set {', or '.join(ways)}."


def _any(trainer: lightning.Trainer, decision: bool) -> bool:
    """Whether one of the processes that train together says so, for all of them to do the same."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
