"""Protection of long trainings.

Checkpoints are atomic, written in mid-epoch and on SIGTERM; a loss or gradient that is not finite stops the training;
an error for lack of memory says which settings to lower.
"""

from __future__ import annotations

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

from nowcast.core.errors import DiskError, TrainingError
from nowcast.core.torchvision_cpu import import_torchvision

import_torchvision()  # before Lightning, which imports it too

import lightning  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from lightning.pytorch.plugins.io import TorchCheckpointIO  # noqa: E402

from nowcast.config import Recipe  # noqa: E402
from nowcast.core.files import atomic_file  # noqa: E402
from nowcast.data.loader import Batch  # noqa: E402

SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Texts in the errors of GPUs, and of torch's allocator on CPUs."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: the previous one stays until the new one is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: If it cannot be written, such as to a full disk.
        """
        try:
            with atomic_file(Path(path)) as aside, aside.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            fault = str(error) if isinstance(error, DiskError) else f"{path}: {str(error).splitlines()[0]}."
            raise TrainingError(
                f"{fault} The checkpoint before it is as it was; make room, and run the same command to go on."
            ) from error


class CheckpointOnSignal(callbacks.Checkpoint):
    """Writes a checkpoint at intervals, between two steps of the optimiser, and on SIGTERM.

    Args:
        path: Checkpoint file, which is replaced.
        every: Interval.
    """

    def __init__(self, path: Path, every: timedelta) -> None:
        self.path, self.every, self.signalled = path, every.total_seconds(), False
        self.last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Handle SIGTERM, for which Lightning would end without a checkpoint; it restores its handler at the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.signalled = True

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        """Write a checkpoint if it is due or SIGTERM was received, on all processes at the same step.

        Raises:
            TrainingError: After SIGTERM.
        """
        stepped = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        due = time.monotonic() - self.last >= self.every
        if not (stepped or trainer.is_last_batch) or not _any_process(trainer, due or self.signalled):
            return
        trainer.save_checkpoint(self.path)
        self.last = time.monotonic()
        self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Stop if SIGTERM was received during validation; the checkpoint of the epoch is already written.

        Raises:
            TrainingError: After SIGTERM.
        """
        self._stop_if_signalled(trainer)

    def _stop_if_signalled(self, trainer: lightning.Trainer) -> None:
        if _any_process(trainer, self.signalled):
            raise TrainingError(
                f"Told to end (SIGTERM) after step {trainer.global_step}, which is in {self.path}: "
                "the same command goes on from there."
            )


class NonFiniteGuard(callbacks.Callback):
    """Stops before a step with a loss or gradient that is not finite, and saves its batch.

    Args:
        folder: Folder for such batches.
        names: Returns the names of windows, for the saved batch.
    """

    def __init__(self, folder: Path, names: Callable[[Sequence[int]], list[str]]) -> None:
        self.folder, self.names = folder, names
        self.batch: Batch = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Keep the batch, to save it if its step fails."""
        self.batch = batch

    def on_before_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: Tensor) -> None:
        """Stop if the loss is not finite.

        Raises:
            TrainingError: Names the step and the file of its batch.
        """
        self._check(trainer, bool(loss.isfinite()), f"the loss became {float(loss.detach())}")

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop if the norm of the gradients is not finite.

        Raises:
            TrainingError: Names the step and the file of its batch.
        """
        if trainer.precision == "16-mixed":
            return  # the gradient scaler skips such steps
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._check(trainer, bool(norm.isfinite()), "a gradient became infinite")

    def _check(self, trainer: lightning.Trainer, fine: bool, what: str) -> None:
        if not _any_process(trainer, not fine):
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
    """Write the frames of a batch, their mask, and the names of their windows as ``.npz``."""
    arrays = {name: part.float().cpu().numpy() for name, part in batch.items() if name != "window"}
    windows = np.asarray(names(batch["window"].tolist()))
    with atomic_file(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays, windows=windows)  # type: ignore[arg-type]
    return path


def short_of_memory(error: BaseException, recipe: Recipe) -> str | None:
    """Advise which settings to lower, and to which values, if an error is a lack of memory; else None."""
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


def _any_process(trainer: lightning.Trainer, decision: bool) -> bool:
    """Tell whether one of the training processes decides so, so that all of them do the same."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
