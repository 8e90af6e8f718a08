"""The one interface of all networks.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional


class Nowcaster(nn.Module):
    """Past frames in, future frames out.

    ``forward(past_BTCHW) -> future_BTCHW`` takes ``in_steps`` frames in [0, 1] of any height and
    width and returns ``out_steps`` frames of the same size, not clamped. A subclass names its own
    options as constructor keywords: they are the only description of its hyper-parameters.
    """

    SIZES: ClassVar[dict[str, dict[str, object]]] = {}
    """Published sizes: name -> constructor keywords."""

    handles_missing: ClassVar[bool] = False
    """True: NaN in the past means no data and comes out as NaN where nothing is known.
    False: the caller fills NaN with 0 and masks the forecast."""

    trainable: ClassVar[bool] = True
    """False for the references that have nothing to learn."""

    history: ClassVar[tuple[int, int]] = (1, 1)
    """References only: the least number of past frames they work with, and the best."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1) -> None:
        super().__init__()
        if min(in_steps, out_steps, channels) < 1:
            raise ValueError(f"in_steps, out_steps and channels must be >= 1, got {in_steps}, {out_steps}, {channels}.")
        self.in_steps, self.out_steps, self.channels = in_steps, out_steps, channels

    @classmethod
    def options(cls) -> list[str]:
        """Constructor keywords of this network beyond steps and channels."""
        common = {"self", "in_steps", "out_steps", "channels"}
        return [name for name in inspect.signature(cls.__init__).parameters if name not in common]

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def training_loss(self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float,
                      mask_BTCHW: Tensor | None = None) -> Tensor:  # fmt: skip
        """Mean squared error, weighted by ``mask``: 0 where nothing was measured.

        A network with its own recipe overrides this. ``progress`` runs from 0 to 1 over the training.
        """
        error = functional.mse_loss(self(past_BTCHW), future_BTCHW, reduction="none")
        if mask_BTCHW is None:
            return error.mean()
        return (error * mask_BTCHW).sum() / mask_BTCHW.sum().clamp(min=1)


def check_past(past_BTCHW: Tensor, model: Nowcaster) -> None:
    """Refuses input of another length or number of channels in one sentence.

    Raises:
        ValueError: What was expected and what came.
    """
    want = (model.in_steps, model.channels)
    if past_BTCHW.ndim != 5 or tuple(past_BTCHW.shape[1:3]) != want:
        raise ValueError(
            f"{type(model).__name__} takes (batch, {want[0]} frames, {want[1]} channels, height, width); "
            f"got {tuple(past_BTCHW.shape)}."
        )
