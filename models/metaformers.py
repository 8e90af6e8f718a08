"""Blocks of image backbones as the middle of a video network: token mixing, then channel mixing, on one wide map.

Yu et al. (2022), "MetaFormer Is Actually What You Need for Vision", arXiv:2111.11418, names the common form. The
blocks: gSTA (Tan et al. 2022, arXiv:2211.12509), VAN (Guo et al. 2022, arXiv:2202.09741), MogaNet (Li et al. 2022,
arXiv:2211.03295), HorNet (Rao et al. 2022, arXiv:2207.14284), ConvNeXt (Liu et al. 2022, arXiv:2201.03545),
PoolFormer (Yu et al. 2022), ConvMixer (Trockman and Kolter 2022, arXiv:2201.09792), MLP-Mixer (Tolstikhin et al.
2021, arXiv:2105.01601), Swin (Liu et al. 2021, arXiv:2103.14030), ViT (Dosovitskiy et al. 2020, arXiv:2010.11929),
UniFormer (Li et al. 2022, arXiv:2201.09450), in the forms that OpenSTL's tables were made with: Swin's shifted
windows wrap around the edges without a mask, ConvMixer's second half has no residual.

Shape letters: B batch, C channel, H height, W width. Maps are channels-last in memory, which makes 1 x 1
convolutions plain matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, lean


@dataclass(frozen=True)
class Place:
    """Where in a translator a block stands."""

    channels: int
    index: int
    ratio: float
    """Width of the channel mixing as a multiple of ``channels``."""
    drop_path: float
    """Probability that a sample skips a branch in training."""
    keeps_width: bool
    """False where the channels change after the block."""
    window: int
    """Side of Swin's windows."""
    tokens: int
    """Pixels of the map, where weights are bound to them."""
    heads: int
    """Of attention."""


# -- the common form -------------------------------------------------------------------------------


class Block(nn.Module):
    """x + s1 * mix(norm1(x)), then x + s2 * mlp(norm2(x)), with branches dropped at random in training.

    Args:
        place: Width and rate of dropping.
        norm: Makes a normalisation of that many channels.
        mix: Mixing of tokens.
        mlp: Mixing of channels.
        scale: Start of the residual scales per channel; None: there are none.
        position: Depthwise convolution added to the input, as a position code.
    """

    def __init__(
        self,
        place: Place,
        *,
        norm: Callable[[int], nn.Module],
        mix: nn.Module,
        mlp: nn.Module,
        scale: float | None = None,
        position: bool = False,
    ) -> None:
        super().__init__()
        width = place.channels
        self.drop_path = place.drop_path
        self.position = depthwise(width, 3) if position else None
        self.norm1, self.mix, self.norm2, self.mlp = norm(width), mix, norm(width), mlp
        self.scale1 = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.scale2 = None if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        x = x_BCHW if self.position is None else x_BCHW + self.position(x_BCHW)
        x = add_branch(x, self.mix(self.norm1(x)), self.scale1, self.drop_path if self.training else 0)
        return add_branch(x, self.mlp(self.norm2(x)), self.scale2, self.drop_path if self.training else 0)


def add_branch(x_BCHW: Tensor, branch_BCHW: Tensor, scale_C: Tensor | None, drop_path: float) -> Tensor:
    """Return x + scale * branch; with stochastic depth samples skip the branch, and it counts more in the others."""
    if scale_C is None and not drop_path:
        return x_BCHW + branch_BCHW
    weight = x_BCHW.new_ones(()) if scale_C is None else scale_C[:, None, None]
    if drop_path:
        kept_B = torch.rand(len(x_BCHW), device=x_BCHW.device) >= drop_path
        weight = weight * kept_B[:, None, None, None] / (1 - drop_path)
    return torch.addcmul(x_BCHW, branch_BCHW, weight.to(branch_BCHW.dtype))


class Mlp(nn.Module):
    """1 x 1 convolutions C -> ratio * C -> C around a GELU, after a depthwise convolution if that is asked for."""

    def __init__(self, channels: int, ratio: float, *, local: bool = False) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.dwconv = depthwise(hidden, 3) if local else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        return lean(self.rest, self.fc1(x_BCHW))

    def rest(self, hidden_BCHW: Tensor) -> Tensor:
        """Done again in the backward pass up to fc2, so the wide map is kept once instead of three times."""
        local = hidden_BCHW if self.dwconv is None else self.dwconv(hidden_BCHW)
        output: Tensor = self.fc2(functional.gelu(local))
        return output


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of every pixel over its channels."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise x_BCHW over its channels, pixel by pixel."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def channel_norm(channels: int) -> ChannelNorm:
    """Build a ``ChannelNorm`` with the epsilon of ConvNeXt."""
    return ChannelNorm(channels, eps=1e-6)


def depthwise(channels: int, kernel: int, *, dilation: int = 1) -> nn.Conv2d:
    """Build a convolution that keeps channels apart and the size of the map."""
    cls = Dilated if dilation > 1 else nn.Conv2d
    return cls(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)


class Dilated(nn.Conv2d):
    """A dilated depthwise convolution, computed as a plain one.

    Pixels that are ``dilation`` apart see only each other: sorted into maps of their own they are convolved
    several times as fast, since dilated kernels run through slow code on CPUs.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        if x_BCHW.device.type != "cpu":
            return super().forward(x_BCHW)
        apart, (height, width) = self.dilation[0], x_BCHW.shape[-2:]
        tall, wide = -(-height // apart), -(-width // apart)
        x = functional.pad(x_BCHW, (0, wide * apart - width, 0, tall * apart - height))
        x = x.permute(0, 2, 3, 1).reshape(-1, tall, apart, wide, apart, self.in_channels)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
        x = functional.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)
        x = x.permute(0, 2, 3, 1).reshape(-1, apart, apart, tall, wide, self.in_channels)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(-1, tall * apart, wide * apart, self.in_channels)
        return x.permute(0, 3, 1, 2)[..., :height, :width]


def fan_out(module: nn.Module) -> None:
    """Draws a convolution as nearly all published blocks do: variance 2 / (outputs of a group * kernel area)."""
    if isinstance(module, nn.Conv2d):
        fan = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def narrow(module: nn.Module) -> None:
    """Draws a layer as transformers do."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


# -- large kernels ---------------------------------------------------------------------------------


class LargeKernel(nn.Module):
    """A depthwise 21 x 21 kernel in two steps: 5 x 5, then 7 x 7 of every third pixel; then 1 x 1."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.near, self.far = depthwise(channels, 5), depthwise(channels, 7, dilation=3)
        self.point = nn.Conv2d(channels, outputs, 1)

    def forward(self, p_BCHW: Tensor) -> Tensor:
        """Return what the kernel makes of the activated input."""
        output: Tensor = self.point(self.far(self.near(functional.gelu(p_BCHW))))
        return output

    def gated(self, p_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        """Return the input, before its activation, and what the kernel made of it, put together."""
        raise NotImplementedError


class SigmoidGate(LargeKernel):
    """gSTA: one half of the channels gates the other."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels)

    def gated(self, p_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        """Multiply one half of what the kernel made, BCHW, by the sigmoid of the other."""
        value, gate = made_BCHW.chunk(2, dim=1)
        return value * gate.sigmoid()


class ProductGate(LargeKernel):
    """VAN: the input times what the kernel makes of it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def gated(self, p_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        """Multiply the activated input by what the kernel made, BCHW."""
        return functional.gelu(p_BCHW) * made_BCHW


class GatedMixing(nn.Module):
    """y + proj_2(gated(GELU(proj_1(y)))): of the maps between only the results of 1 x 1 convolutions are kept."""

    def __init__(self, channels: int, gate: LargeKernel) -> None:
        super().__init__()
        self.proj_1, self.gate, self.proj_2 = nn.Conv2d(channels, channels, 1), gate, nn.Conv2d(channels, channels, 1)

    def forward(self, y_BCHW: Tensor) -> Tensor:
        """Map y_BCHW to the same shape."""
        p = self.proj_1(y_BCHW)
        return y_BCHW + lean(self.rest, p, lean(self.gate, p))

    def rest(self, p_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        """Gate the projected input and project it again, BCHW."""
        output: Tensor = self.proj_2(self.gate.gated(p_BCHW, made_BCHW))
        return output


def gsta(place: Place) -> nn.Module:
    """Build a block of gSTA, the middle of SimVPv2."""
    return large_kernel_block(place, SigmoidGate(place.channels)).apply(fan_out)


def van(place: Place) -> nn.Module:
    """Build a block of VAN."""
    return large_kernel_block(place, ProductGate(place.channels)).apply(fan_out)


def large_kernel_block(place: Place, gate: LargeKernel) -> Block:
    """Build what gSTA, VAN and TAU share; they differ in the gate."""
    width = place.channels
    mlp = Mlp(width, place.ratio, local=True)
    return Block(place, norm=nn.BatchNorm2d, mix=GatedMixing(width, gate), mlp=mlp, scale=1e-2)


# -- MogaNet ---------------------------------------------------------------------------------------


class MultiOrder(nn.Module):
    """Depthwise convolutions of several reaches, and 1 x 1 after them.

    All channels go through 5 x 5; then 3/8 of them through 5 x 5 of every second pixel,
    4/8 through 7 x 7 of every third.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = (channels // 8, channels * 3 // 8, channels // 2)
        self.first = depthwise(channels, 5)
        self.second, self.third = depthwise(self.parts[1], 5, dilation=2), depthwise(self.parts[2], 7, dilation=3)
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        first, second, third = self.first(x_BCHW).split(self.parts, dim=1)
        output: Tensor = self.point(torch.cat([first, self.second(second), self.third(third)], dim=1))
        return output


class MogaMixing(nn.Module):
    """Gated aggregation; before it, what differs from the mean over the map is amplified."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1, self.proj_2 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.gate, self.value = nn.Conv2d(channels, channels, 1), MultiOrder(channels)
        self.sigma = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))

    def forward(self, y_BCHW: Tensor) -> Tensor:
        """Map y_BCHW to the same shape."""
        x = self.proj_1(y_BCHW)
        x = functional.silu(x + self.sigma * (x - x.mean((2, 3), keepdim=True)))
        gated = lean(lambda gate, value: functional.silu(gate) * functional.silu(value), self.gate(x), self.value(x))
        output: Tensor = y_BCHW + self.proj_2(gated)
        return output


class MogaMlp(Mlp):
    """Before the last layer, what differs from one common map is amplified in every channel."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, ratio, local=True)
        hidden = self.fc1.out_channels
        self.common = nn.Conv2d(hidden, 1, 1)
        self.sigma = nn.Parameter(torch.full((1, hidden, 1, 1), 1e-5))

    def rest(self, hidden_BCHW: Tensor) -> Tensor:
        """Map the widened channels, BCHW, to the output of the block."""
        x = functional.gelu(self.dwconv(hidden_BCHW))  # type: ignore[misc]
        output: Tensor = self.fc2(x + self.sigma * (x - functional.gelu(self.common(x))))
        return output


def moga(place: Place) -> nn.Module:
    """Build a block of MogaNet."""
    width = _divisible(place.channels, 8, "moga")
    mix, mlp = MogaMixing(width), MogaMlp(width, place.ratio)
    return Block(place, norm=nn.BatchNorm2d, mix=mix, mlp=mlp, scale=1e-5).apply(fan_out)


# -- HorNet ----------------------------------------------------------------------------------------


class RecursiveGate(nn.Module):
    """gnConv of order 4: products with depthwise 7 x 7 maps of C/8, C/4, C/2 and C channels, one after the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = [channels // 8, channels // 4, channels // 2, channels]
        self.proj_in, self.proj_out = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)
        self.dwconv = depthwise(sum(self.widths), 7)
        self.pws = nn.ModuleList(nn.Conv2d(n, 2 * n, 1) for n in self.widths[:-1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        x, rest = self.proj_in(x_BCHW).split((self.widths[0], sum(self.widths)), dim=1)
        maps = self.dwconv(rest).split(self.widths, dim=1)
        x = x * maps[0]
        for point, gate in zip(self.pws, maps[1:], strict=True):
            x = point(x) * gate
        output: Tensor = self.proj_out(x)
        return output


def hornet(place: Place) -> nn.Module:
    """Build a block of HorNet."""
    width = _divisible(place.channels, 8, "hornet")
    block = Block(place, norm=channel_norm, mix=RecursiveGate(width), mlp=Mlp(width, place.ratio), scale=1e-6)
    block.mix.apply(fan_out)
    block.mlp.apply(narrow)
    return block


# -- ConvNeXt, PoolFormer, ConvMixer ---------------------------------------------------------------


class ConvNeXtBlock(nn.Module):
    """One residual around depthwise 7 x 7, normalisation and channel mixing."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.drop_path = place.drop_path
        self.conv_dw, self.norm = depthwise(place.channels, 7), channel_norm(place.channels)
        self.mlp = Mlp(place.channels, place.ratio)
        self.scale = nn.Parameter(torch.full((place.channels,), 1e-6))
        self.apply(fan_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        branch = self.mlp(self.norm(self.conv_dw(x_BCHW)))
        return add_branch(x_BCHW, branch, self.scale, self.drop_path if self.training else 0)


class Pooling(nn.Module):
    """Mean of the 3 x 3 neighbours that are there, minus the pixel: nothing to learn."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Subtract x_BCHW from the mean of its 3 x 3 neighbours."""
        return functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False) - x_BCHW


def poolformer(place: Place) -> nn.Module:
    """Build a block of PoolFormer."""
    width = place.channels
    block = Block(place, norm=lambda n: nn.GroupNorm(1, n), mix=Pooling(), mlp=Mlp(width, place.ratio), scale=1e-5)
    block.mlp.apply(narrow)
    return block


class ConvMixerBlock(nn.Module):
    """Depthwise 11 x 11 with a residual, then 1 x 1 without; each with GELU, then normalisation."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        width = place.channels
        self.conv_dw, self.norm_1 = depthwise(width, 11), nn.BatchNorm2d(width)
        self.conv_pw, self.norm_2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.apply(fan_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape."""
        x = x_BCHW + self.norm_1(functional.gelu(self.conv_dw(x_BCHW)))
        output: Tensor = self.norm_2(functional.gelu(self.conv_pw(x)))
        return output


# -- MLP-Mixer and attention -----------------------------------------------------------------------


class TokenMlp(nn.Module):
    """Mixes the pixels of a map of fixed size, every channel alike."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape: every channel mixes its pixels."""
        mixed = self.fc2(functional.gelu(self.fc1(x_BCHW.flatten(2)))).unflatten(2, x_BCHW.shape[2:])
        return channels_last(mixed)


class Attention(nn.Module):
    """Multi-head self-attention of all pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape: pixels attend to all others."""
        x = x_BCHW.permute(0, 2, 3, 1)
        output: Tensor = self.proj(self.attend(x.flatten(1, 2)).view(x.shape)).permute(0, 3, 1, 2)
        return output

    def attend(self, x_BNC: Tensor, bias: Tensor | None = None) -> Tensor:
        """Values gathered by attention among N tokens."""
        q, k, v = self.qkv(x_BNC).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return gathered.transpose(1, 2).flatten(2)


class WindowAttention(Attention):
    """Self-attention within windows, with a bias by relative position.

    Args:
        channels: Of the map.
        heads: Of the attention.
        window: Side of the windows; sides of the map divide by it.
        shifted: Windows are moved by half their side, around the edges, where the map holds more than one.
    """

    index: Tensor

    def __init__(self, channels: int, heads: int, *, window: int, shifted: bool) -> None:
        super().__init__(channels, heads)
        self.window, self.shift = window, window // 2 if shifted else 0
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", _relative_index(window), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map x_BCHW to the same shape: pixels attend to those of their window."""
        batch, width, tall, wide = x_BCHW.shape
        shift, side = self.shift if min(tall, wide) > self.window else 0, self.window
        x = x_BCHW.permute(0, 2, 3, 1).roll((-shift, -shift), (1, 2)) if shift else x_BCHW.permute(0, 2, 3, 1)
        x = x.reshape(batch, tall // side, side, wide // side, side, width).transpose(2, 3)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        made = self.attend(x.reshape(-1, side * side, width), bias).view(x.shape).transpose(2, 3)
        made = self.proj(made.reshape(batch, tall, wide, width))
        output: Tensor = (made.roll((shift, shift), (1, 2)) if shift else made).permute(0, 3, 1, 2)
        return output


def _relative_index(window: int) -> Tensor:
    """Row of the bias table for every pair of pixels of a window."""
    rows, columns = (place.flatten() for place in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    offsets = ((line[:, None] - line + window - 1) for line in (rows, columns))
    down, right = offsets
    return down * (2 * window - 1) + right


def mlp_mixer(place: Place) -> nn.Module:
    """Build a block of MLP-Mixer."""
    mix = TokenMlp(place.tokens, place.channels // 2)
    return Block(place, norm=channel_norm, mix=mix, mlp=Mlp(place.channels, place.ratio)).apply(narrow)


def swin(place: Place) -> nn.Module:
    """Build a block of the Swin transformer."""
    width = _divisible(place.channels, place.heads, "swin")
    mix = WindowAttention(width, place.heads, window=place.window, shifted=place.index % 2 == 1)
    return Block(place, norm=ChannelNorm, mix=mix, mlp=Mlp(width, place.ratio)).apply(narrow)


def vit(place: Place) -> nn.Module:
    """Build a block of ViT."""
    width = _divisible(place.channels, place.heads, "vit")
    return Block(place, norm=ChannelNorm, mix=Attention(width, place.heads), mlp=Mlp(width, place.ratio)).apply(narrow)


def uniformer(place: Place) -> nn.Module:
    """Convolutions where the width changes and at the start, attention elsewhere."""
    width, mlp = place.channels, Mlp(place.channels, place.ratio)
    if not place.keeps_width or place.index == 0:
        mix = nn.Sequential(nn.Conv2d(width, width, 1), depthwise(width, 5), nn.Conv2d(width, width, 1))
        return Block(place, norm=nn.BatchNorm2d, mix=mix, mlp=mlp, position=True).apply(fan_out)
    attention = Attention(_divisible(width, place.heads, "uniformer"), place.heads)
    block = Block(place, norm=ChannelNorm, mix=attention, mlp=mlp, scale=1e-6, position=True)
    block.mix.apply(narrow)
    block.mlp.apply(narrow)
    return block


def _divisible(channels: int, by: int, middle: str) -> int:
    if channels % by:
        raise OptionError(f"Widths of the middle {middle} are multiples of {by}, got {channels}.")
    return channels


METAFORMERS: dict[str, Callable[[Place], nn.Module]] = {
    "gsta": gsta,
    "convnext": ConvNeXtBlock,
    "poolformer": poolformer,
    "convmixer": ConvMixerBlock,
    "van": van,
    "moga": moga,
    "hornet": hornet,
    "mlp-mixer": mlp_mixer,
    "swin": swin,
    "vit": vit,
    "uniformer": uniformer,
}
"""Name -> the block that a translator is made of."""
