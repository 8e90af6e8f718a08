"""SwinLSTM: Swin transformer blocks in the place of the convolutions of a recurrent cell.

Tang et al. (2023), "SwinLSTM: Improving Spatiotemporal Prediction Accuracy using Swin Transformer and LSTM",
arXiv:2308.09891. Sizes follow github.com/SongTang-x/SwinLSTM: B is one cell at one scale, D a pyramid of cells
down to a quarter of the tokens' grid and back, without skip connections.

Unlike the released code: any grid (masks are made for the frames at hand, and frames padded to whole windows);
any patch (there the output layer doubles the grid whatever the patch is); no layers that never get a gradient
(fusions of blocks without context, a patch embedding in the decoder of D). As there, the output is a sigmoid, so
frames must lie in [0, 1].

Tokens stay sorted by window from the first layer to the last. Blocks with shifted windows sort them by those, and
the block after them back: the only copies that windows cost.

Shape letters: B batch, C channel, H height, W width; of tokens: V windows down, U windows across, N tokens of a
window, E features; of attention: M heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import lean
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Recurrent

APART = -100.0
"""Added to the attention between tokens that only the cyclic shift made neighbours."""


class Windows(NamedTuple):
    """What a cell's blocks need to know of the grid; made at the first step and handed on with the state."""

    biases: tuple[Tensor, ...]
    """For every block what is added to the attention, (V * U or 1, M, N, N)."""
    shifted: Tensor | None
    """Where the tokens of shifted windows lie among those sorted by window; None where nothing is shifted."""
    back: Tensor | None
    """The inverse."""


class Memory(NamedTuple):
    """State of a cell."""

    h: Tensor
    c: Tensor
    windows: Windows


class Block(nn.Module):
    """Swin block: attention inside windows, then two layers per token, both around a shortcut.

    Args:
        width: Features.
        heads: Of the attention.
        window: Side of a window, tokens.
        context: Whether it reads a second input beside the first.
        drop_path: Share of samples that skip a branch in training.
    """

    def __init__(self, width: int, heads: int, window: int, *, context: bool, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fuse = nn.Linear(2 * width, width) if context else None
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp1, self.mlp2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Tensor | None, bias: Tensor) -> Tensor:
        """Tokens and context BVUNE, where None stands for zeros; ``bias`` as in ``Windows``."""
        if self.fuse is None:
            qkv = lean(lambda x: self.qkv(self.norm1(x)), x)
        else:
            qkv = self.qkv(lean(self.fused, x, context))
        x = self.added(x, self.project(lean(self.attended, qkv, bias)))
        hidden = lean(lambda x: self.mlp1(self.norm2(x)), x)
        return self.added(x, lean(lambda hidden: self.mlp2(functional.gelu(hidden)), hidden))

    def fused(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Input and context, normalised alike, as one."""
        assert self.fuse is not None
        if context is not None:
            output: Tensor = self.fuse(torch.cat([self.norm1(x), self.norm1(context)], dim=-1))
            return output
        for_x, for_context = self.fuse.weight.chunk(2, dim=1)
        constant = functional.linear(self.norm1.bias, for_context, self.fuse.bias)  # what zeros are normalised to
        return functional.linear(self.norm1(x), for_x, constant)

    def attended(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Return what tokens learn from the others of their window; BVU, N, 3 * E -> BVUNE."""
        split = qkv.unflatten(-1, (3, self.heads, -1)).flatten(1, 2)
        q, k, v = split.permute(3, 0, 1, 4, 2, 5)
        made = (fused_attention if qkv.is_cuda else plain_attention)(q, k, v, bias)
        return made.transpose(2, 3).reshape(*qkv.shape[:-1], -1)

    def added(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add a branch, left out for some samples of a training batch; written over it, to save memory."""
        if self.training and self.drop_path:
            kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.drop_path)
            branch = branch.mul_(kept / (1 - self.drop_path))
        return branch.add_(x) if branch.dtype == x.dtype else x + branch  # autocast: the sum stays precise


def position_bias(table: Tensor, window: int, apart_WNN: Tensor | None) -> Tensor:
    """Return the learned bias by relative position, and that between tokens that are apart, as in ``Windows``."""
    tokens = window**2
    bias_MNN = table[relative_position(window, table.device)].view(tokens, tokens, -1).permute(2, 0, 1)
    return bias_MNN[None] if apart_WNN is None else bias_MNN + apart_WNN[:, None]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax(q k / sqrt(features) + bias) v of (batch, windows, heads, tokens, features).

    On a CPU half the cost of the fused kernel, which is made for more tokens than a window has.
    """
    shape = q.shape
    q, k, v = (part.reshape(-1, *shape[-2:]) for part in (q, k, v))
    bias = bias.expand(*shape[:3], -1, -1).reshape(-1, shape[-2], shape[-2])
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(dim=-1), v).view(shape)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return the same by one kernel that keeps no matrix of attention."""
    shape = q.shape
    bias = bias.expand(*shape[1:3], -1, -1).reshape(1, -1, shape[-2], shape[-2])
    q, k, v = (part.flatten(1, 2) for part in (q, k, v))
    made = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return made.view(shape)


class Cell(nn.Module):
    """Blocks in the place of the convolutions of an LSTM, and one gate in the place of three.

    Args:
        width: Features.
        heads: Of the attention in every block.
        window: Side of a window, tokens.
        drop_path: Of each block; there are as many blocks.
    """

    def __init__(self, width: int, heads: int, window: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(width, heads, window, context=i % 2 == 0, drop_path=rate) for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """(tokens BVUNE, state; None before the first step) -> (hidden state, state)."""
        windows = self.windows_of(x) if memory is None else memory.windows
        h, c = (None, None) if memory is None else (memory.h, memory.c)
        y = x
        for i, block in enumerate(self.blocks):
            if i and windows.shifted is not None:
                y = _sorted(y, windows.shifted if i % 2 else windows.back)
            y = block(y, x if i else h, windows.biases[i])
        if windows.back is not None and len(self.blocks) % 2 == 0:
            y = _sorted(y, windows.back)
        c, h = lean(_gated, y, c)
        return h, Memory(h, c, windows)

    def windows_of(self, tokens: Tensor) -> Windows:
        """Order and bias of the windows on the grid of some tokens."""
        down, across = tokens.shape[1:3]
        shift = 0 if min(down, across) == 1 else self.window // 2
        shifted = back = apart = None
        if shift:
            shifted, apart = shifted_windows(down, across, self.window, shift, tokens.device)
            back = shifted.argsort()
        tables = [block.get_parameter("table") for block in self.blocks]
        biases = (position_bias(table, self.window, apart if i % 2 else None) for i, table in enumerate(tables))
        return Windows(tuple(biases), shifted, back)


def _gated(made: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """One gate forgets, writes and shows; returns (c, h)."""
    gate, fresh = made.sigmoid(), made.tanh()
    c = gate * (fresh if c is None else c + fresh)
    return c, gate * c.tanh()


def _sorted(tokens: Tensor, order: Tensor | None) -> Tensor:
    assert order is not None
    return tokens.flatten(1, 3).index_select(1, order).view(tokens.shape)


class Embedding(nn.Module):
    """Patches of pixels as tokens: NCHW -> NVUNE."""

    def __init__(self, channels: int, width: int, *, patch: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.conv, self.norm = nn.Conv2d(channels, width, patch, patch), nn.LayerNorm(width)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Map frames_NCHW to tokens_BVUNE."""
        output: Tensor = self.norm(by_window(self.conv(frames_NCHW).permute(0, 2, 3, 1), self.window))
        return output


class Unembedding(nn.Module):
    """Tokens back to pixels in (0, 1); the kernel of a token ends before the pixels of the next."""

    def __init__(self, width: int, channels: int, *, patch: int, window: int) -> None:
        super().__init__()
        self.window, margin = window, max(1, patch - 1)
        self.conv = nn.ConvTranspose2d(width, channels, 2 * margin + 1, patch, margin, output_padding=patch - 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens_BVUNE to frames_NCHW in [0, 1]."""
        output: Tensor = self.conv(by_row(tokens, self.window).permute(0, 3, 1, 2)).sigmoid()
        return output


class Merging(nn.Module):
    """Four neighbouring tokens become one of twice the features."""

    def __init__(self, width: int, window: int, window_after: int) -> None:
        super().__init__()
        self.window, self.window_after = window, window_after
        self.norm, self.linear = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens_BVUNE to a quarter of the tokens with twice the features."""
        tokens_BHWE = by_row(tokens, self.window)
        batch, height, width, features = tokens_BHWE.shape
        pairs = tokens_BHWE.reshape(batch, height // 2, 2, width // 2, 2, features)
        fours = pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)  # those below one another before those beside
        output: Tensor = self.linear(lean(self.norm, by_window(fours, self.window_after)))
        return output


class Expanding(nn.Module):
    """A token becomes four neighbouring ones of half the features."""

    def __init__(self, width: int, window: int, window_after: int) -> None:
        super().__init__()
        self.window, self.window_after = window, window_after
        self.linear, self.norm = nn.Linear(width, 2 * width, bias=False), nn.LayerNorm(width // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens_BVUNE to four times the tokens with half the features."""
        fours_BHWE = by_row(self.linear(tokens), self.window)
        batch, height, width, _ = fours_BHWE.shape
        apart = fours_BHWE.view(batch, height, width, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        output: Tensor = self.norm(by_window(apart.reshape(batch, 2 * height, 2 * width, -1), self.window_after))
        return output


class SwinLSTMB(Recurrent):
    """Base: cells one upon the other at the scale of the patches.

    Args:
        patch: Side of the square of pixels that is a token.
        width: Features of a token; a multiple of the heads.
        window: Side of a window, tokens.
        depths: Blocks of each cell.
        heads: Of the attention in each cell.
        drop_path: Share of samples that skip a branch of a block in training.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Tang et al. (2023), arXiv:2308.09891"
    SIZES: ClassVar = {
        "published": {"patch": 2, "width": 128, "window": 4, "depths": (12,), "heads": (4,)},
        # As the author gave it for 32 x 32 pixels; the output layer that it had is not known.
        "taxibj": {"patch": 4, "width": 128, "window": 8, "depths": (12,), "heads": (8,)},
        "debug": {"patch": 2, "width": 16, "window": 2, "depths": (3,), "heads": (2,), "drop_path": 0.0},
    }
    PUBLISHED: ClassVar = {"published": Published(2_778_417, unused=197_376)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        patch: int = 2,
        width: int = 128,
        window: int = 4,
        depths: Sequence[int] = (12,),
        heads: Sequence[int] = (4,),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels, sampling="never")
        _check_cells(depths, heads, [width] * len(depths))
        _check(patch, (window,), drop_path)
        self.multiple = patch * window
        self.embedding = Embedding(channels, width, patch=patch, window=window)
        self.cells = nn.ModuleList(
            Cell(width, head, window, [drop_path] * depth) for depth, head in zip(depths, heads, strict=True)
        )
        self.unembedding = Unembedding(width, channels, patch=patch, window=window)

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Map frames_NCHW to tokens_BVUNE."""
        output: Tensor = self.embedding(frames_NCHW)
        return output

    def step(self, x: Tensor, state: tuple[Memory, ...] | None) -> tuple[Tensor, tuple[Memory, ...]]:
        """Map (tokens, memories of all cells) to (tokens of the top, next memories)."""
        memories = []
        for cell, memory in zip(self.cells, state or [None] * len(self.cells), strict=True):
            x, memory = cell(x, memory)
            memories.append(memory)
        return x, tuple(memories)

    def head(self, hidden: Tensor) -> Tensor:
        """Map tokens_BVUNE to the next frame, NCHW."""
        output: Tensor = self.unembedding(hidden)
        return output


class SwinLSTMD(Recurrent):
    """Deeper: cells from fine to coarse and back, each scale with half the tokens a side and twice the features.

    Args:
        patch: Side of the square of pixels that is a token of the finest scale.
        width: Features of a token there.
        window: Side of a window, tokens; or one for each scale, finest first, one more than there are depths.
        depths: Blocks of the cells on the way down, finest first.
        heads: Of their attention.
        depths_up: Blocks of the cells on the way up, coarsest first.
        heads_up: Of their attention.
        drop_path: Share of samples that skip a branch in training; grows up to this on the way down, and falls
            again on the way up.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = SwinLSTMB.PAPER
    SIZES: ClassVar = {
        "published": {
            "patch": 2,
            "width": 128,
            "window": 4,
            "depths": (2, 6),
            "heads": (4, 8),
            "depths_up": (2, 6),
            "heads_up": (8, 4),
        },
        "debug": {
            "patch": 2,
            "width": 32,
            "window": 2,
            "depths": (2,),
            "heads": (2,),
            "depths_up": (1,),
            "heads_up": (2,),
            "drop_path": 0.0,
        },
    }
    PUBLISHED: ClassVar = {"published": Published(20_191_969, unused=1_346_560)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        patch: int = 2,
        width: int = 128,
        window: int | Sequence[int] = 4,
        depths: Sequence[int] = (2, 6),
        heads: Sequence[int] = (4, 8),
        depths_up: Sequence[int] = (2, 6),
        heads_up: Sequence[int] = (8, 4),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels, sampling="never")
        scales = len(depths)
        windows = (window,) * (scales + 1) if isinstance(window, int) else tuple(window)
        widths = [width * 2**scale for scale in range(scales + 1)]
        if len(depths_up) != scales or len(windows) != scales + 1:
            raise OptionError(
                f"depths_up names as many cells as depths and window one more, or one for all; "
                f"got {depths}, {depths_up}, {window}."
            )
        _check_cells(depths, heads, widths)
        _check_cells(depths_up, heads_up, widths[::-1])
        _check(patch, windows, drop_path)
        self.multiple = patch * math.lcm(*(2**scale * side for scale, side in enumerate(windows)))
        self.embedding = Embedding(channels, width, patch=patch, window=windows[0])
        self.down = _cells(widths, heads, windows, _rates(0, drop_path, depths))
        self.merge = nn.ModuleList(map(Merging, widths[:-1], windows, windows[1:]))
        self.up = _cells(widths[::-1], heads_up, windows[::-1], _rates(drop_path, 0, depths_up))
        self.expand = nn.ModuleList(map(Expanding, widths[:0:-1], windows[:0:-1], windows[-2::-1]))
        self.unembedding = Unembedding(width, channels, patch=patch, window=windows[0])

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Map frames_NCHW to tokens_BVUNE."""
        output: Tensor = self.embedding(frames_NCHW)
        return output

    def step(self, x: Tensor, state: tuple[Memory, ...] | None) -> tuple[Tensor, tuple[Memory, ...]]:
        """Map (tokens, memories of all cells) to (tokens at the finest scale, next memories)."""
        cells, scalings = (*self.down, *self.up), (*self.merge, *self.expand)
        memories = []
        for cell, scaling, memory in zip(cells, scalings, state or [None] * len(cells), strict=True):
            h, memory = cell(x, memory)
            x = scaling(h)
            memories.append(memory)
        return x, tuple(memories)

    def head(self, hidden: Tensor) -> Tensor:
        """Map tokens_BVUNE to the next frame, NCHW."""
        output: Tensor = self.unembedding(hidden)
        return output


def by_window(tokens_BHWE: Tensor, window: int) -> Tensor:
    """Sorts tokens by window: BHWE -> BVUNE."""
    batch, height, width, features = tokens_BHWE.shape
    split = tokens_BHWE.reshape(batch, height // window, window, width // window, window, features)
    return split.transpose(2, 3).reshape(batch, height // window, width // window, window**2, features)


def by_row(tokens_BVUNE: Tensor, window: int) -> Tensor:
    """Return the inverse of ``by_window``."""
    batch, down, across, _, features = tokens_BVUNE.shape
    split = tokens_BVUNE.reshape(batch, down, across, window, window, features).transpose(2, 3)
    return split.reshape(batch, down * window, across * window, features)


def relative_position(window: int, device: torch.device) -> Tensor:
    """Row of the bias table for every pair of tokens of a window: (row difference, column difference)."""
    side = torch.arange(window, device=device)
    apart = side[:, None] - side + window - 1
    return (apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]).flatten()


def shifted_windows(down: int, across: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows that are cut ``shift`` tokens further down and right, the grid being a torus.

    Returns:
        For every token of a shifted window its place among the tokens sorted by window; and what is added to the
        attention between the tokens of each, (windows, N, N): ``APART`` between those from opposite edges.
    """
    places = torch.arange(down * across * window**2, device=device).view(1, down, across, window**2, 1)
    places_HW = by_row(places, window)[0, ..., 0].roll((-shift, -shift), (0, 1))
    wrapped = [torch.arange(count * window, device=device) >= count * window - shift for count in (down, across)]
    regions_HW = 2 * wrapped[0][:, None] + wrapped[1]
    order, regions = (by_window(grid[None, ..., None], window).view(-1, window**2) for grid in (places_HW, regions_HW))
    return order.flatten(), APART * (regions[:, None] != regions[:, :, None]).float()


def _cells(
    widths: Sequence[int], heads: Sequence[int], windows: Sequence[int], rates: Sequence[Sequence[float]]
) -> nn.ModuleList:
    return nn.ModuleList(Cell(*sizes) for sizes in zip(widths, heads, windows, rates, strict=False))


def _rates(first: float, last: float, depths: Sequence[int]) -> list[list[float]]:
    """Drop path of every block of every cell, from that of the first to that of the last."""
    blocks = sum(depths)
    rates = [first + (last - first) * i / max(1, blocks - 1) for i in range(blocks)]
    ends = [sum(depths[:i]) for i in range(len(depths) + 1)]
    return [rates[start:stop] for start, stop in pairwise(ends)]


def _check_cells(depths: Sequence[int], heads: Sequence[int], widths: Sequence[int]) -> None:
    if not depths or len(heads) != len(depths) or min(*depths, *heads) < 1:
        raise OptionError(f"Blocks and heads are >= 1 for each cell, got {depths} and {heads}.")
    if odd := [f"{width} / {head}" for width, head in zip(widths, heads, strict=False) if width % head]:
        raise OptionError(f"Heads must divide the width of their cell: {', '.join(odd)}.")


def _check(patch: int, windows: Sequence[int], drop_path: float) -> None:
    if min(patch, *windows) < 1 or not 0 <= drop_path < 1:
        raise OptionError(
            f"patch and window must be >= 1 and drop_path in [0, 1), got {patch}, {windows}, {drop_path}."
        )
