"""CMS-LSTM: context embedding and multi-scale spatiotemporal expression.

Chai, Xu, Zhang et al. (2022), "CMS-LSTM: Context Embedding and Multi-Scale Spatiotemporal Expression LSTM for
Predictive Learning", arXiv:2102.03586. Sizes and details follow github.com/czh-98/CMS-LSTM.

What differs from that code: grids need not be square; without ``grid`` the normalisations have one scale and
shift per channel, and the weights serve any grid; the loss is the mean of the squared error, and half its sum where
a recipe says so, as that of the paper does (the eps of its optimiser, AdamW, feels the factor); biases of keys, which
a softmax cancels, do not exist. The published filter is 3 x 3 in the training script and 5 x 5 in every default: both
are named sizes.

Shape letters: B batch, N tokens, C channel, H height, W width. Fields are channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldConv, FieldNorm, lean
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Patched, Sampling, through_stack
from nowcast.models.speedups.packed import Conv2d

Grid = tuple[int, int] | None
State = tuple[Tensor, Tensor]
"""h and c of a cell."""

EXPRESSION_KERNEL = 5
"""Side of the kernels in the expression block, whatever the cell has."""
SCALES = 3
"""Of the expression block, in the paper."""
BLOCKS = 2 ** (SCALES - 1)
"""Into so many blocks each way the finest of them cuts a field."""


class ContextEmbedding(nn.Module):
    """Lets the input and the hidden state scale each other, in turns, before a cell reads them.

    Args:
        inputs: Channels of the input.
        hidden: Channels of the hidden state.
        kernel: Side of the kernels, odd.
        grid: Grid that the normalisations are bound to; None: any.
        turns: How often one scales the other; the input comes first.
    """

    def __init__(self, inputs: int, hidden: int, *, kernel: int, grid: Grid = None, turns: int = 5) -> None:
        super().__init__()
        self.turns = turns
        self.to_input = FieldConv(hidden, inputs, kernel=kernel, norm=True, grid=grid)
        self.to_hidden = FieldConv(inputs, hidden, kernel=kernel, norm=True, grid=grid)

    def forward(self, x_BCHW: Tensor, h_BCHW: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """None stands for zeros; they stay zeros."""
        if h_BCHW is None:
            scale = 2 * _apart(self.to_input)[1].of_zeros().sigmoid()
            return x_BCHW * scale ** ((self.turns + 1) // 2), None
        x, h = x_BCHW, h_BCHW
        for turn in range(self.turns):
            if turn % 2 == 0:
                x = _scaled(x, h, self.to_input)
            else:
                h = _scaled(h, x, self.to_hidden)
        return x, h


class SpatiotemporalExpression(nn.Module):
    """Mixes the hidden state and a second one by attention in blocks of several scales.

    At scale s both fields are cut into 2^s x 2^s blocks, and the positions of a block attend to each other, those
    of both states together. What they gather updates the second state as SA-ConvLSTM does its memory.

    Args:
        width: Channels of either state.
        grid: Grid that the normalisations are bound to; None: any.
        scales: Number of scales; sides of the field divide by 2^(scales - 1).
    """

    def __init__(self, width: int, *, grid: Grid = None, scales: int = SCALES) -> None:
        super().__init__()
        self.scales = scales
        self.query = nn.Linear(width, scales * width)
        self.key = nn.Linear(width, scales * width, bias=False)
        self.value = nn.Linear(width, scales * width)
        self.gather = Conv2d(scales * width, width, EXPRESSION_KERNEL, padding=EXPRESSION_KERNEL // 2)
        self.gather_norm = FieldNorm(width, (grid[0], 2 * grid[1]) if grid else None)
        self.merge = Conv2d(2 * width, width, 1)
        self.from_h = FieldConv(width, 3 * width, kernel=EXPRESSION_KERNEL, norm=True, grid=grid)
        self.from_z = FieldConv(width, 3 * width, kernel=EXPRESSION_KERNEL, norm=True, grid=grid)
        self.norm = FieldNorm(width, grid)

    def forward(self, h_BCHW: Tensor, c_BCHW: Tensor) -> State:
        """Map h and c, BCHW each, to the enhanced ones."""
        conv_h, norm_h = _apart(self.from_h)
        conv_z, norm_z = _apart(self.from_z)

        def halves(side_by_side: Tensor) -> Tensor:
            return torch.cat(self.gather_norm(side_by_side).chunk(2, dim=3), dim=1)

        def update(from_h: Tensor, from_z: Tensor, c: Tensor) -> State:
            i, g, o = (norm_h(from_h) + norm_z(from_z)).chunk(3, dim=1)
            c = self.norm(c + i.sigmoid() * (g.tanh() - c))
            return o.sigmoid() * c, c

        z = self.merge(lean(halves, self.gather(lean(self.attended, h_BCHW, c_BCHW))))
        return lean(update, conv_h(h_BCHW), conv_z(z), c_BCHW)

    def attended(self, h_BCHW: Tensor, c_BCHW: Tensor) -> Tensor:
        """Return what every position holds and gathers, for all scales: (B, scales * C, H, 2 W), h left and c right."""
        height, width = h_BCHW.shape[2:]
        cut = torch.stack([self._cut(h_BCHW), self._cut(c_BCHW)], dim=-4)
        tokens_BNC = cut.flatten(1, -2)
        asked = functional.linear(tokens_BNC, *self._projection()).chunk(2 * self.scales, dim=-1)
        gathered = []
        for scale in range(self.scales):
            query, key, value = (
                part.unflatten(1, (4**scale, -1)) for part in (asked[scale], tokens_BNC, asked[self.scales + scale])
            )
            found = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
            gathered.append(self._joined(found.reshape(cut.shape)))
        held = self._joined(cut).unsqueeze(-2)
        return torch.stack(gathered, dim=-2).add_(held).reshape(len(cut), height, 2 * width, -1).movedim(-1, 1)

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the queries and values of all scales.

        Every score q · W k is taken as (Wᵀ q) · k: the tokens themselves are the keys, and nothing is projected
        for them.
        """
        key, query = (layer.weight.unflatten(0, (self.scales, -1)) for layer in (self.key, self.query))
        bias = self.query.bias.unflatten(0, (self.scales, -1, 1))
        weight = torch.cat([(key.mT @ query).flatten(0, 1), self.value.weight])
        return weight, torch.cat([(key.mT @ bias).flatten(), self.value.bias])

    def _cut(self, field_BCHW: Tensor) -> Tensor:
        """Halves a field both ways, again and again: (B, 2, 2, 2, 2, ..., rows, columns, C).

        So blocks of a finer scale lie within one of the coarser, and one order of the tokens serves all scales.
        """
        cuts = self.scales - 1
        field = field_BCHW.movedim(1, -1).unflatten(2, (*[2] * cuts, -1)).unflatten(1, (*[2] * cuts, -1))
        pairs = [axis for cut in range(1, cuts + 1) for axis in (cut, cut + cuts + 1)]
        output: Tensor = field.permute(0, *pairs, cuts + 1, 2 * cuts + 2, -1)
        return output

    def _joined(self, cut: Tensor) -> Tensor:
        """Undoes the cuts of two fields that are stacked before their rows, and puts them side by side."""
        down, across = range(1, 2 * self.scales - 1, 2), range(2, 2 * self.scales - 1, 2)
        return cut.permute(0, *down, -3, -4, *across, -2, -1)


class CMSCell(nn.Module):
    """LSTM with normalised gates, between context embedding and expression; gates i, f, g, o."""

    def __init__(self, width: int, *, kernel: int, grid: Grid, scales: int) -> None:
        super().__init__()
        self.context = ContextEmbedding(width, width, kernel=kernel, grid=grid)
        self.from_x = FieldConv(width, 4 * width, kernel=kernel, norm=True, grid=grid)
        self.from_h = FieldConv(width, 4 * width, kernel=kernel, norm=True, grid=grid)
        self.norm = FieldNorm(width, grid)
        self.expression = SpatiotemporalExpression(width, grid=grid, scales=scales)

    def forward(self, x_BCHW: Tensor, state: State | None) -> State:
        """None stands for a state of zeros."""
        h, c = state or (None, None)
        x, h = self.context(x_BCHW, h)
        conv_x, norm_x = _apart(self.from_x)
        conv_h, norm_h = _apart(self.from_h)

        def update(from_x: Tensor, from_h: Tensor | None, c: Tensor | None) -> State:
            recurrent = norm_h.of_zeros() if from_h is None else norm_h(from_h)
            i, f, g, o = (norm_x(from_x) + recurrent).chunk(4, dim=1)
            fresh = i.sigmoid() * g.tanh()
            c = self.norm(fresh if c is None else fresh + (f + 1).sigmoid() * c)
            return o.sigmoid() * c.tanh(), c

        h, c = lean(update, conv_x(x), None if h is None else conv_h(h), c)
        output: tuple[Tensor, Tensor] = self.expression(h, c)
        return output


class CMSLSTM(Patched):
    """Stack of CMS cells on folded frames.

    Args:
        layers: Cells.
        width: State channels of each.
        kernel: Side of the kernels of gates and context embedding, odd.
        patch: Side of the patches that frames are folded into.
        scales: Of the expression: blocks of the whole field, its quarters, its sixteenths, ...
        grid: Height and width of the frames that the norms are bound to, as in published weights; None: any.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Chai et al. (2022), arXiv:2102.03586"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "filter-3": {"kernel": 3, "grid": (64, 64)},
        "filter-5": {"kernel": 5, "grid": (64, 64)},
        "debug": {"layers": 1, "width": 16, "kernel": 3, "scales": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {
        # A scalar that is never used and a bias of keys, per scale and layer.
        "filter-3": Published(7_967_580, unused=4 * 3 * 65),
        "filter-5": Published(10_589_020, unused=4 * 3 * 65),
    }
    order = "columns-first"
    scored_from = 2

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        layers: int = 4,
        width: int = 64,
        kernel: int = 3,
        patch: int = 4,
        scales: int = SCALES,
        grid: Sequence[int] | None = None,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.5,
        reverse_input: bool = True,
    ) -> None:
        _check(layers, width, kernel, scales)
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
            hidden=width,
            patch=patch,
            grid=grid,
            bias=True,
            blocks=2 ** (scales - 1),
        )
        self.embedding = Conv2d(self.folded, width, 1)
        self.cells = nn.ModuleList(CMSCell(width, kernel=kernel, grid=self.field, scales=scales) for _ in range(layers))

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Fold frames_NCHW and embed them: (N, width, H / patch, W / patch)."""
        output: Tensor = self.embedding(super().embed(frames_NCHW).contiguous(memory_format=torch.channels_last))
        return output

    def step(self, x: Tensor, state: list[State] | None) -> tuple[Tensor, list[State]]:
        """Map (embedded frame, state of all layers) to (hidden state of the top, next state)."""
        after = through_stack(self.cells, x, state)
        return after[-1][0], after


def _scaled(field: Tensor, by: Tensor, layer: FieldConv) -> Tensor:
    """Scales one field by what another tells: factors between 0 and 2."""
    conv, norm = _apart(layer)
    output: Tensor = lean(lambda told, field: 2 * norm(told).sigmoid() * field, conv(by), field)
    return output


def _apart(layer: FieldConv) -> tuple[Conv2d, FieldNorm]:
    """Return convolution and norm, so that the output of the first is kept and the second done again."""
    return layer[0], layer[1]  # type: ignore[return-value]


def _check(layers: int, width: int, kernel: int, scales: int) -> None:
    if min(layers, width, scales) < 1:
        raise OptionError(f"layers, width and scales must be >= 1, got {layers}, {width} and {scales}.")
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel must be odd, got {kernel}.")
