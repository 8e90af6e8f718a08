"""Pauses a training between two steps while a forecast cycle wants its card.

Weights and the optimiser's state stay on the card, for moving them would take longer than most cycles; what
PyTorch keeps in reserve is given back, so that the networks of the cycle find room.
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
    """One per process: each looks after its own card."""

    def __init__(self) -> None:
        self.lock: TrainingLock | None = None
        self.seconds = 0.0
        """Spent waiting."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.lock = TrainingLock(device_id(trainer.strategy.root_device))

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.lock:
            self.lock.close()
            self.lock = None

    def on_train_batch_start(self, *_: Any) -> None:
        self._let_pass()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        pl_module.log("paused_seconds", self.seconds)

    def on_validation_batch_start(self, *_: Any) -> None:
        self._let_pass()

    def _let_pass(self) -> None:
        assert self.lock
        self.seconds += self.lock.wait(before=_make_room)


def _make_room() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
