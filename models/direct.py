"""What all networks share that make many frames at once: longer forecasts from what they forecast before.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nowcast.models.nowcaster import Nowcaster, check_past


class Direct(Nowcaster):
    """A network that makes the next frames at once, mostly ``in_steps`` of them.

    A subclass gives ``block``. Blocks are repeated until there are ``out_steps`` frames, each read from the newest
    frames before, in training too, so the gradient runs through all of them; what is too much is cut off.
    """

    free_lengths: ClassVar[bool] = False

    def block(self, past_BTCHW: Tensor) -> Tensor:
        """``in_steps`` frames -> the next ones; sides divide by ``multiple``."""
        raise NotImplementedError

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        return self.on_any_grid(self.roll_out, past_BTCHW)

    def roll_out(self, past_BTCHW: Tensor) -> Tensor:
        """Forecast of frames whose sides divide by ``multiple``."""
        made = self.block(past_BTCHW)
        while made.shape[1] < self.out_steps:
            newest = made if made.shape[1] >= self.in_steps else torch.cat([past_BTCHW, made], dim=1)
            made = torch.cat([made, self.block(newest[:, -self.in_steps :])], dim=1)
        return made[:, : self.out_steps]
