"""SimVP: convolutions in space, a translator of all frames stacked, convolutions in space.

Gao et al. (2022), "SimVP: Simpler yet Better Video Prediction", CVPR, arXiv:2206.05099. Version 2: Tan et al.
(2022), "SimVP: Towards Simple yet Powerful Spatiotemporal Predictive Learning", arXiv:2211.12509; the other
middles: Tan et al. (2023), "OpenSTL", arXiv:2306.11249.

What is meant by "SimVP" is told by the size: ``gsta`` is version 2, ``incepu`` the translator of version 1 between
the encoder and decoder of version 2, as in OpenSTL's tables, and ``v1`` the network of the first repository.
Unlike the released codes any grid is taken and any number of frames forecast. As there, blocks of a translator
are skipped in training with a probability that starts at 1 % even where ``drop_path`` is 0.

Shape letters: B batch, T time, C channel, H height, W width, N batch times time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, lean, portions
from nowcast.models.direct import Direct
from nowcast.models.metaformers import METAFORMERS, Place, narrow
from nowcast.models.nowcaster import Published
from nowcast.models.speedups.frozen import convolve, group_silu, is_frozen


class Unit(nn.Module):
    """Convolution, normalisation of two groups of channels, activation.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel, odd.
        down: Halves the grid.
        up: Doubles it.
        original: As in the first repository: LeakyReLU, and a transposed convolution to double the grid.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, down: bool = False, up: bool = False, original: bool = False
    ) -> None:
        super().__init__()
        self.shuffled, self.original = up and not original, original
        if up and original:
            self.conv: nn.Module = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, output_padding=1)
        else:
            wide = 4 * outputs if up else outputs
            self.conv = nn.Conv2d(inputs, wide, kernel, 2 if down else 1, kernel // 2)
        self.norm = nn.GroupNorm(2, outputs)
        if not original:
            self.conv.apply(narrow)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map x_NCHW to (N, outputs, H, W), or a grid of half or twice the sides."""
        return chain([self], x_NCHW)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        """Convolve x_NCHW, and double its sides where the unit does."""
        x = convolve(self.conv, x_NCHW)
        return functional.pixel_shuffle(x, 2) if self.shuffled else x

    def activated(self, x_NCHW: Tensor) -> Tensor:
        """Normalise and activate x_NCHW."""
        if self.original:
            return functional.leaky_relu(self.norm(x_NCHW), 0.2)
        return group_silu(self.norm, x_NCHW)


def chain(units: Iterable[Any], x_NCHW: Tensor, *, end: nn.Module | None = None) -> Tensor:
    """Units one after the other, and then a convolution: of them only the results of convolutions are kept.

    They are normalised and activated again in the backward pass, for the gradient of the kernel that comes next.
    Frozen ones need none, and keep no more by themselves.
    """
    first, *others = units
    x, unit = first.convolved(x_NCHW), first
    for other in others:
        x, unit = _between(unit, other.convolved, x), other
    return _between(unit, lambda x: convolve(end, x) if end else x, x)


def _between(unit: Unit, convolved: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return convolved(unit.activated(x))

    return run(x_NCHW) if is_frozen(unit, x_NCHW) else lean(run, x_NCHW)


class Inception(nn.Module):
    """Grouped convolutions of several kernel sizes beside each other, added up."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, kernels: Sequence[int], groups: int) -> None:
        super().__init__()
        groups = groups if hidden % groups == 0 else 1
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.convs = nn.ModuleList(nn.Conv2d(hidden, outputs, k, padding=k // 2, groups=groups) for k in kernels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, outputs) for _ in kernels)

    def forward(self, *parts_BCHW: Tensor) -> Tensor:
        """Map maps_BCHW, which are joined by channel, to (B, outputs, H, W)."""
        x = self.conv1(torch.cat(parts_BCHW, dim=1) if len(parts_BCHW) > 1 else parts_BCHW[0])
        return lean(self.summed, *(conv(x) for conv in self.convs))

    def summed(self, *branches_BCHW: Tensor) -> Tensor:
        """Add up the branches, BCHW, each normalised and activated."""
        total: Tensor | int = 0
        for norm, branch in zip(self.norms, branches_BCHW, strict=True):
            total = total + functional.leaky_relu(norm(branch), 0.2)
        return total  # type: ignore[return-value]


class InceptionTranslator(nn.Module):
    """Version 1: a U-net of Inception modules whose grid stays the same."""

    def __init__(
        self, channels: int, hidden: int, outputs: int, *, blocks: int, kernels: Sequence[int], groups: int
    ) -> None:
        super().__init__()

        def module(inputs: int, outputs: int) -> Inception:
            return Inception(inputs, hidden // 2, outputs, kernels=kernels, groups=groups)

        ins = [channels, *[hidden] * (blocks - 1)]
        outs = [*[hidden] * (blocks - 1), outputs]
        self.down = nn.ModuleList(module(n, hidden) for n in ins)
        self.up = nn.ModuleList(module(hidden * (2 if i else 1), n) for i, n in enumerate(outs))

    def forward(self, x_BCHW: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Map x_BCHW to the same shape; ``run`` calls a stage."""
        skips = [x_BCHW]
        for module in self.down:
            skips.append(run(module, skips[-1]))
        x = run(self.up[0], skips.pop())
        for module in self.up[1:]:
            x = run(module, x, skips.pop())
        return x


class MetaTranslator(nn.ModuleList):
    """Blocks of one kind, the first and the last of which change the width by a 1 x 1 convolution."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int,
        *,
        block: Callable[[Place], nn.Module],
        blocks: int,
        ratio: float,
        drop_path: float,
        window: int,
        tokens: int,
        heads: int,
    ) -> None:
        super().__init__()
        rates = [0.01 + (drop_path - 0.01) * i / (blocks - 1) for i in range(blocks)]
        widths = [channels, *[hidden] * (blocks - 1), outputs]
        for i, rate in enumerate(rates):
            width, after = widths[i : i + 2]
            place = Place(width, i, ratio, rate, width == after, window, tokens, heads)
            stage = OrderedDict(block=block(place))
            if width != after:
                stage["reduction"] = nn.Conv2d(width, after, 1)
            self.append(nn.Sequential(stage))

    def forward(self, x_BCHW: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Map x_BCHW to the same shape; ``run`` calls a stage."""
        for stage in self:
            x_BCHW = run(stage, x_BCHW)
        return x_BCHW


class SimVP(Direct):
    """As many frames out as go in, or as are asked for, at once.

    Args:
        middle: Kind of the translator: ``incepu`` or a name in ``METAFORMERS``.
        width: Channels of the latent frames (the papers' hid_S), even.
        hidden: Width of the translator (hid_T).
        layers: Convolutions of the encoder, and of the decoder; every second one halves the grid (N_S).
        blocks: Of the translator (N_T), at least 2.
        ratio: Width of the channel mixing as a multiple of ``hidden``; not for ``incepu``.
        drop_path: Probability that a sample skips a branch of the last block; earlier ones go towards 1 %.
        encoder_kernel: Side of the encoder's kernels, odd.
        decoder_kernel: Side of the decoder's kernels, odd.
        original: Encoder and decoder of the first repository: LeakyReLU, transposed convolutions, and the first
            features concatenated in the decoder, not added.
        kernels: Sides of the kernels of ``incepu``, odd.
        groups: Groups of channels of ``incepu``.
        window: Side of the windows of ``swin``, in latent pixels.
        heads: Of the attention of ``swin``, ``vit`` and ``uniformer``.
        grid: Height and width of the frames, for ``mlp-mixer`` only, whose weights are bound to it.
        at_once: All ``out_steps`` frames from one pass, by a translator that ends in as many; otherwise it makes as
            many as it reads, and reads them again for more.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Gao et al. (2022), arXiv:2206.05099; Tan et al. (2022), arXiv:2211.12509; (2023), arXiv:2306.11249"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        # Moving MNIST of OpenSTL; the others are version 2 with another middle.
        "gsta": {},
        "incepu": {"middle": "incepu"},
        **{name: {"middle": name} for name in METAFORMERS if name not in ("gsta", "mlp-mixer")},
        "mlp-mixer": {"middle": "mlp-mixer", "grid": (64, 64)},
        "v1": {"middle": "incepu", "original": True, "hidden": 256, "groups": 4},
        "v1-wide": {"middle": "incepu", "original": True, "hidden": 512, "groups": 8},
        # KTH, TaxiBJ and WeatherBench at 5.625 degrees, and the large ones.
        "gsta-s": {"hidden": 256, "layers": 2, "blocks": 6, "drop_path": 0.2},
        "taxibj": {"width": 32, "hidden": 256, "layers": 2, "drop_path": 0.1},
        "weather": {"width": 32, "hidden": 256, "layers": 2, "drop_path": 0.1},
        "gsta-l": {"width": 128, "hidden": 1024, "blocks": 24},
        "debug": {"width": 8, "hidden": 16, "layers": 2, "blocks": 2, "ratio": 2.0},
    }
    METAFORMERS: ClassVar[dict[str, Callable[[Place], nn.Module]]] = METAFORMERS
    """Blocks that the translator may be made of."""
    PUBLISHED: ClassVar = {
        "incepu": Published(57_946_113),
        "gsta": Published(46_769_665),
        "convnext": Published(37_313_921),
        "poolformer": Published(37_115_393),
        "van": Published(44_520_833),
        "moga": Published(46_777_065),
        "convmixer": Published(3_919_361),
        "hornet": Published(45_738_305),
        "mlp-mixer": Published(38_192_449),
        "swin": Published(46_105_409),
        "uniformer": Published(44_834_817),
        "vit": Published(46_102_273),
        "v1": Published(30_401_153),
        "v1-wide": Published(57_761_409),
    }

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        middle: str = "gsta",
        width: int = 64,
        hidden: int = 512,
        layers: int = 4,
        blocks: int = 8,
        ratio: float = 8.0,
        drop_path: float = 0.0,
        encoder_kernel: int = 3,
        decoder_kernel: int = 3,
        original: bool = False,
        kernels: Sequence[int] = (3, 5, 7, 11),
        groups: int = 8,
        window: int = 4,
        heads: int = 8,
        grid: tuple[int, int] | None = None,
        at_once: bool = False,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.made = out_steps if at_once else in_steps
        """Frames that a pass makes."""
        self.middle, known = middle, ("incepu", *self.METAFORMERS)
        if middle not in known:
            raise OptionError(f"Unknown middle {middle!r}; known: {', '.join(known)}.")
        _check(layers, blocks, width, (encoder_kernel, decoder_kernel, *kernels))
        stride = 2 ** (layers // 2)
        self.multiple = stride * (window if middle == "swin" else 1)
        self.grid = _bound(grid, stride, needed=middle == "mlp-mixer")
        down = [i % 2 == 1 for i in range(layers)]
        self.encoder = nn.ModuleList(
            Unit(width if i else channels, width, kernel=encoder_kernel, down=halves, original=original)
            for i, halves in enumerate(down)
        )
        self.decoder = nn.ModuleList(
            Unit(width, width, kernel=decoder_kernel, up=doubles, original=original) for doubles in reversed(down[1:])
        )
        self.joined = original
        self.decoder.append(Unit(width * (2 if original else 1), width, kernel=decoder_kernel, original=original))
        self.readout = nn.Conv2d(width, channels, 1)
        stacked, made = in_steps * width, self.made * width
        if middle == "incepu":
            self.translator: nn.Module = InceptionTranslator(
                stacked, hidden, made, blocks=blocks, kernels=kernels, groups=groups
            )
        else:
            height, length = self.grid or (stride, stride)
            self.translator = MetaTranslator(
                stacked,
                hidden,
                made,
                block=self.METAFORMERS[middle],
                blocks=blocks,
                ratio=ratio,
                drop_path=drop_path,
                window=window,
                tokens=height * length // stride**2,
                heads=heads,
            )

    def block(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to one block of future frames."""
        latent, firsts = self.encode_all(past_BTCHW.flatten(0, 1))
        latent = self.translate(latent.unflatten(0, past_BTCHW.shape[:2]))
        if self.made != self.in_steps:
            firsts = self.matched(firsts)
        output: Tensor = self.decode_all(latent.flatten(0, 1), firsts).unflatten(0, (-1, self.made))
        return output

    def matched(self, firsts_NCHW: list[Tensor]) -> list[Tensor]:
        """First features for every frame that is made: of the past frame of the same number, or of the last."""
        number = torch.arange(self.made).clamp(max=self.in_steps - 1)
        matched = torch.cat(firsts_NCHW).unflatten(0, (-1, self.in_steps))[:, number].flatten(0, 1)
        return list(matched.split(len(firsts_NCHW[0])))

    def encode_all(self, frames_NCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent frames, and the first features in the portions that they were made in."""
        parts = portions(frames_NCHW, self.readout.in_channels)
        latents, firsts = zip(*(self.segment(self.encode, part) for part in parts), strict=True)
        return torch.cat(latents), list(firsts)

    def decode_all(self, latent_NCHW: Tensor, firsts_NCHW: list[Tensor]) -> Tensor:
        """Frames from latent ones and the portions of first features, which are let go one by one."""
        latents = latent_NCHW.split([len(first) for first in firsts_NCHW])
        return torch.cat([self.segment(self.decode, part, firsts_NCHW.pop(0)) for part in latents])

    def encode(self, frames_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Latent frames, and the features of the first layer at full resolution."""
        first = lean(self.encoder[0], channels_last(frames_NCHW))  # so few channels are quickly convolved again
        return (chain(self.encoder[1:], first) if len(self.encoder) > 1 else first), first

    def translate(self, latent_BTCHW: Tensor) -> Tensor:
        """Latent frames of the past -> of the future."""
        stacked = channels_last(latent_BTCHW.flatten(1, 2))
        output: Tensor = self.translator(stacked, self.segment).unflatten(1, (self.made, -1))
        return output

    def decode(self, latent_NCHW: Tensor, first_NCHW: Tensor) -> Tensor:
        """Frames from latent ones and the first features of the frames before."""
        x = channels_last(latent_NCHW)
        if len(self.decoder) > 1:
            x = chain(self.decoder[:-1], x)
        x = torch.cat([x, first_NCHW], dim=1) if self.joined else x + first_NCHW
        return chain(self.decoder[-1:], x, end=self.readout)


def _check(layers: int, blocks: int, width: int, kernels: Sequence[int]) -> None:
    if layers < 1 or blocks < 2:
        raise OptionError(f"layers must be >= 1 and blocks >= 2, got {layers} and {blocks}.")
    if width < 2 or width % 2:
        raise OptionError(f"width must be even, got {width}.")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise OptionError(f"Kernels must be odd, got {', '.join(map(str, kernels))}.")


def _bound(grid: tuple[int, int] | None, stride: int, *, needed: bool) -> tuple[int, int] | None:
    if needed != (grid is not None):
        raise OptionError(
            "The middle mlp-mixer needs grid=(height, width), since its weights are bound to it; no "
            "other middle has one."
        )
    if grid and any(side < 1 or side % stride for side in grid):
        raise OptionError(f"Sides of the grid must divide by {stride}, got {grid[0]} x {grid[1]}.")
    return None if grid is None else (grid[0], grid[1])
