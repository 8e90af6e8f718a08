"""TAU: attention within frames and across them in the translator of SimVP.

Tan et al. (2023), "Temporal Attention Unit: Towards Efficient Spatiotemporal Predictive Learning", CVPR,
arXiv:2206.12126. Frames are channels of the stacked map, so the gate per channel is attention over time.

The released code squeezes that gate to C / max(C / 16, 4) channels, which is 16 for nearly all widths, where C / 16
was meant; published weights have it so, and so have we.

Shape letters: B batch, T time, C channel, H height, W width, F field: all pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.metaformers import LargeKernel, Place, fan_out, large_kernel_block
from nowcast.models.nowcaster import Published
from nowcast.models.simvp import SimVP

SHARPNESS = 10.0
"""Differences between frames times this go into the softmax of the divergence."""


class TemporalGate(LargeKernel):
    """The input times a large kernel of it (within frames) times one number per channel (across frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        squeezed = channels // max(channels // 16, 4)
        self.squeeze = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False), nn.ReLU(), nn.Linear(squeezed, channels, bias=False)
        )

    def gated(self, p_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        """Weigh what the kernel made, BCHW, by channel and by the activated input."""
        z = functional.gelu(p_BCHW)
        output: Tensor = self.squeeze(z.mean((2, 3))).sigmoid()[:, :, None, None] * made_BCHW * z
        return output


def tau(place: Place) -> nn.Module:
    """Build a block of TAU."""
    block = large_kernel_block(place, TemporalGate(place.channels))
    block.mlp.apply(fan_out)
    return block


class TAU(SimVP):
    """SimVP with temporal attention units, trained on how frames change as well.

    Args:
        divergence: Weight of the differential divergence in the loss; the published one is 0.1.

    The other options are those of ``SimVP``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Tan et al. (2023), arXiv:2206.12126"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {},
        "kth": {"hidden": 256, "layers": 2, "blocks": 6, "drop_path": 0.1},
        "taxibj": {"width": 32, "hidden": 256, "layers": 2, "drop_path": 0.1},
        "debug": {"width": 8, "hidden": 16, "layers": 2, "blocks": 2, "ratio": 2.0},
    }
    PUBLISHED: ClassVar = {"published": Published(44_656_001)}
    METAFORMERS: ClassVar[dict[str, Callable[[Place], nn.Module]]] = {"tau": tau}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 64,
        hidden: int = 512,
        layers: int = 4,
        blocks: int = 8,
        ratio: float = 8.0,
        drop_path: float = 0.0,
        encoder_kernel: int = 3,
        decoder_kernel: int = 3,
        divergence: float = 0.1,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            middle="tau",
            width=width,
            hidden=hidden,
            layers=layers,
            blocks=blocks,
            ratio=ratio,
            drop_path=drop_path,
            encoder_kernel=encoder_kernel,
            decoder_kernel=decoder_kernel,
        )
        if divergence < 0:
            raise OptionError(f"divergence must be >= 0, got {divergence}.")
        self.divergence = divergence

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Error of the forecast, and the differential divergence where something was measured in both frames."""
        made = self(past_BTCHW)
        error = self.compare(made, future_BTCHW, mask_BTCHW)
        return error + self.divergence * differential_divergence(made, future_BTCHW, mask_BTCHW)


def differential_divergence(made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
    """How differently the change from frame to frame is spread over the pixels: Kullback-Leibler, mean over pixels.

    Args:
        made_BTCHW: Forecast.
        truth_BTCHW: What happened.
        weight_BTCHW: Where it is 0, in one frame of two, nothing is taken to change.

    Returns:
        0 for a single frame, which has no change.
    """
    if made_BTCHW.shape[1] < 2:
        return made_BTCHW.new_zeros(())
    known = 1.0 if weight_BTCHW is None else (weight_BTCHW[:, 1:] > 0) & (weight_BTCHW[:, :-1] > 0)
    p_BTF, q_BTF = (
        torch.softmax((SHARPNESS * known * frames.diff(dim=1)).flatten(2).float(), dim=-1)
        for frames in (made_BTCHW, truth_BTCHW)
    )
    return (p_BTF * torch.log(p_BTF / (q_BTF + 1e-12) + 1e-12)).mean()
