"""SmaAt-UNet: a U-Net of depthwise separable convolutions with attention on what is handed across.

Trebing, Stańczyk and Mehrkanoon (2021), "SmaAt-UNet: Precipitation Nowcasting using a Small Attention-UNet
Architecture", Pattern Recognition Letters 145, doi:10.1016/j.patrec.2021.01.036, arXiv:2007.04417. Attention: Woo
et al. (2018), "CBAM: Convolutional Block Attention Module", arXiv:1807.06521.

Shape letters: B batch, C channel, H height, W width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.nowcaster import Published
from nowcast.models.unet import UNet


class CBAM(nn.Module):
    """Attention to channels, then to pixels.

    Args:
        channels: Of the map.
        reduction: How many times fewer channels stand between the two layers of the channel attention.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.pixel = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Weigh x_BCHW by channel and then by pixel."""
        x = x_BCHW * (self.channel(x_BCHW.mean((2, 3))) + self.channel(x_BCHW.amax((2, 3)))).sigmoid()[..., None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        output: Tensor = x * self.pixel(seen).sigmoid()
        return output


class Separable(nn.Module):
    """Depthwise 3 x 3 convolution of several kernels per channel, then 1 x 1.

    It is the sum over the kernels of a channel of separable convolutions with one kernel: torch has fast code for
    those on CPUs, and none for several.
    """

    def __init__(self, inputs: int, outputs: int, kernels: int) -> None:
        super().__init__()
        wide, self.kernels = inputs * kernels, kernels
        self.depthwise, self.pointwise = nn.Conv2d(inputs, wide, 3, groups=inputs), nn.Conv2d(wide, outputs, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to (B, outputs, H, W)."""
        total = self.of_kernel(0, x_BCHW)
        for k in range(1, self.kernels):
            total = total + self.of_kernel(k, x_BCHW)
        return total

    def of_kernel(self, k: int, x_BCHW: Tensor) -> Tensor:
        """Return what the k-th kernel of every channel adds to the result; the first brings the bias along."""
        each, deep, point = slice(k, None, self.kernels), self.depthwise, self.pointwise
        x = functional.conv2d(x_BCHW, deep.weight[each], deep.bias[each], padding=1, groups=deep.groups)  # type: ignore
        return functional.conv2d(x, point.weight[:, each], None if k else point.bias)


class SmaAtUNet(UNet):
    """U-Net with a quarter of the weights.

    Args:
        width: Channels at full resolution; twice as many at every coarser one.
        levels: Resolutions, at least 2.
        bilinear: Upsample without weights.
        kernels_per_layer: Depthwise kernels per channel.
        reduction: Narrowing of the channel attention.
        pad_inside: See ``UNet``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Trebing et al. (2021), arXiv:2007.04417"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {},
        "debug": {"width": 8, "levels": 3, "reduction": 1},
    }
    PUBLISHED: ClassVar = {"published": Published(4_033_537, in_steps=12, out_steps=1)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 64,
        levels: int = 5,
        bilinear: bool = True,
        kernels_per_layer: int = 2,
        reduction: int = 16,
        pad_inside: bool = False,
    ) -> None:
        if kernels_per_layer < 1 or not 1 <= reduction <= width:
            raise OptionError(
                "kernels_per_layer must be >= 1 and reduction between 1 and width, "
                f"got {kernels_per_layer} and {reduction}."
            )
        self._kernels = kernels_per_layer
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            width=width,
            levels=levels,
            bilinear=bilinear,
            pad_inside=pad_inside,
        )
        self.attention = nn.ModuleList(CBAM(wide, reduction) for wide in self.widths)

    def conv(self, inputs: int, outputs: int) -> nn.Module:
        """Build a separable convolution."""
        return Separable(inputs, outputs, self._kernels)

    def skip(self, level: int, x_BCHW: Tensor) -> Tensor:
        """Weigh a level of the way down by attention."""
        output: Tensor = self.attention[level](x_BCHW)
        return output
