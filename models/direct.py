"""What all networks share that make many frames at once: longer forecasts from what they forecast before.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from models.nowcaster import Nowcaster, check_past


class Direct(Nowcaster):
    """A network that makes the next ``in_steps`` frames at once.

    A subclass gives ``block``. Blocks are repeated until there are ``out_steps`` frames, each read from the one
    before, in training too, so the gradient runs through all of them; what is too much is cut off.
    """

    free_lengths: ClassVar[bool] = False

    def block(self, past_BTCHW: Tensor) -> Tensor:
        """``in_steps`` frames -> the next ``in_steps``; sides divide by ``multiple``."""
        raise NotImplementedError

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        check_past(past_BTCHW, self)
        return self.on_any_grid(self.roll_out, past_BTCHW)

    def roll_out(self, past_BTCHW: Tensor) -> Tensor:
        """Forecast of frames whose sides divide by ``multiple``."""
        made = [past_BTCHW]
        for _ in range(math.ceil(self.out_steps / self.in_steps)):
            made.append(self.block(made[-1]))
        return torch.cat(made[1:], dim=1)[:, : self.out_steps]
