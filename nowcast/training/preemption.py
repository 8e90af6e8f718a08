"""Pauses a training between two steps while a forecast cycle needs its device.

Weights and the optimiser's state stay on the device, since moving them would take longer than most cycles; the memory
that PyTorch caches is released for the networks of the cycle.
"""

from __future__ import annotations

from typing import Any

import torch

from nowcast.core.device_lock import TrainingLock, device_id
from nowcast.core.torchvision_cpu import import_torchvision

import_torchvision()  # before Lightning, which imports it too

import lightning  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402


class PauseForForecasts(callbacks.Callback):
    """Pauses this process while a forecast cycle needs its device; each training process has its own."""

    def __init__(self) -> None:
        self.lock: TrainingLock | None = None
        self.seconds = 0.0
        """Seconds of all pauses."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Open the lock of the device."""
        self.lock = TrainingLock(device_id(trainer.strategy.root_device))

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the lock of the device."""
        if self.lock:
            self.lock.close()
            self.lock = None

    def on_train_batch_start(self, *_: Any) -> None:
        """Pause before a step if a forecast cycle waits."""
        self._pause()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log ``paused_seconds``, the seconds of all pauses so far."""
        pl_module.log("paused_seconds", self.seconds)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Pause before a batch of the validation if a forecast cycle waits."""
        self._pause()

    def _pause(self) -> None:
        assert self.lock
        self.seconds += self.lock.wait(before=_release_cached_memory)


def _release_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
