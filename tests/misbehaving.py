"""A network that hangs, needs too much memory or takes its process down; and the process of the networks that knows it.

``python -m tests.misbehaving`` stands in for ``nowcast.forecasting.worker``.
"""

from __future__ import annotations

import os
import sys
import time
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from nowcast.models import MODELS, Nowcaster

COMMAND = (sys.executable, "-m", "tests.misbehaving")


class Misbehaving(Nowcaster):
    """Repeats the newest frame after some deed."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1, deed: str = "none") -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.deed = deed

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        if self.deed == "hang":
            time.sleep(600)
        if self.deed == "eat":
            eaten = [np.ones(2**22) for _ in range(256)]  # 8 GB
            time.sleep(600 * len(eaten))
        if self.deed == "crash":
            os.kill(os.getpid(), 11)
        if self.deed == "raise":
            raise RuntimeError("no such luck")
        return self.weight * past_BTCHW[:, -1:].expand(-1, self.out_steps, -1, -1, -1)


def register() -> None:
    """Put it into the table of networks."""
    module = ModuleType("nowcast.models.misbehaving")
    module.Misbehaving = Misbehaving  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    MODELS["misbehaving"] = "misbehaving:Misbehaving"


if __name__ == "__main__":
    from nowcast.forecasting.worker import main

    register()
    main()
