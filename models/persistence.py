"""Eulerian persistence: the weather stays as it is. The reference every forecast has to beat."""

from __future__ import annotations

from torch import Tensor

from nowcast.models.nowcaster import Nowcaster, check_past


class Persistence(Nowcaster):
    """Repeats the newest frame; what it did not see (NaN) stays unknown."""

    handles_missing = True
    trainable = False

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Repeat the newest frame of past_BTCHW: future_BTCHW."""
        check_past(past_BTCHW, self)
        return past_BTCHW[:, -1:].repeat(1, self.out_steps, 1, 1, 1)
