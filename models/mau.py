"""MAU: motion-aware unit.

Chang, Zhang, Wang, Ma, Ye, Gao (2021), "MAU: A Motion-Aware Unit for Video Prediction and Beyond", NeurIPS 34,
https://openreview.net/forum?id=qwtfY-3ibt7. Sizes follow OpenSTL's network (github.com/chengtan9907/OpenSTL), which
is that of github.com/ZhengChang467/MAU.

A layer remembers what came in from below (spatial) and what it made of it (temporal) over the last ``tau`` steps.
What comes in now is compared with what came in then; the temporal states of the steps that looked alike are the
trend, and a gate decides between the trend and the newest state.

Unlike the official code the grid is free. Its layer norms scale every element of a field and so bind the weights to
one grid: option ``grid``. Without, scale and shift are per channel. Steps before the first frame are zeros: they
take their share of the attention, but are neither kept nor multiplied. The official code's schedule of sampling
never falls, and then jumps to 0, in OpenSTL's current branch; here it falls as meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldNorm, channels_last, fold, lean, unfold
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Recurrent, Sampling, State
from nowcast.models.speedups.winograd import convolve

CellMode = Literal["normal", "residual"]
ModelMode = Literal["normal", "recall"]

FOLD = "pixels-first"
SLOPE = 0.2


class MAUCell(nn.Module):
    """State: the last ``tau`` spatial states (inputs) and temporal states (memories), oldest first.

    Args:
        width: Channels of input and state.
        kernel: Side of the convolutions, odd.
        tau: Steps that the cell looks back.
        residual: The input is added to what comes out.
        grid: Height and width of fields that the norms are bound to; None: any.
    """

    def __init__(
        self, width: int, *, kernel: int, tau: int, residual: bool = False, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.width, self.tau, self.residual = width, tau, residual
        # The query and the gates of the input read the same field: one convolution.
        self.conv_s, self.conv_next, self.conv_t = (
            nn.Conv2d(width, times * width, kernel, padding=kernel // 2) for times in (4, 1, 3)
        )
        self.norm_query, self.norm_next = FieldNorm(width, grid), FieldNorm(width, grid)
        self.norm_s, self.norm_t = FieldNorm(3 * width, grid), FieldNorm(3 * width, grid)

    def forward(self, s_BCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: what the layer above reads, and the next state."""
        inputs, memories = state or ((), ())
        if not memories:  # zeros were seen, and zeros are remembered: only biases are left of them
            spatial = self.spatial(s_BCHW)
            assert self.conv_t.bias is not None
            temporal = self.conv_t.bias[None, :, None, None].expand(-1, -1, *s_BCHW.shape[2:])
        else:
            query, spatial = _convolved(self.conv_s, s_BCHW).split((self.width, 3 * self.width), dim=1)
            trend = lean(self._trend, query, *inputs, *memories)
            fused = lean(self._fused, _convolved(self.conv_next, memories[-1]), memories[-1], trend)
            temporal = _convolved(self.conv_t, fused)
        shown, memory = lean(self._exchange, temporal, spatial, s_BCHW)
        return shown, ((*inputs, s_BCHW)[-self.tau :], (*memories, memory)[-self.tau :])

    def spatial(self, s_BCHW: Tensor) -> Tensor:
        """Gates of the input alone, without the query."""
        weight, bias = self.conv_s.weight[self.width :], self.conv_s.bias
        assert bias is not None
        return functional.conv2d(s_BCHW, weight, bias[self.width :], padding=self.conv_s.padding)

    def _trend(self, query: Tensor, *history: Tensor) -> Tensor:
        """Mean of the memories, each weighted by how much its input is like the query."""
        steps = len(history) // 2
        query = self.norm_query(query)
        scale = query[0].numel() ** -0.5
        alike = torch.stack([(past * query).sum((1, 2, 3)) * scale for past in history[:steps]], dim=1)
        share = functional.pad(alike, (self.tau - steps, 0)).softmax(1)[:, self.tau - steps :, None, None, None]
        trend = share[:, 0] * history[steps]
        for j in range(1, steps):
            trend = torch.addcmul(trend, share[:, j], history[steps + j])
        return trend

    def _fused(self, gate: Tensor, memory: Tensor, trend: Tensor) -> Tensor:
        return torch.lerp(trend, memory, self.norm_next(gate).sigmoid())

    def _exchange(self, temporal: Tensor, spatial: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Each of the two lets in as much of the other as its own gate leaves room for."""
        t_gate, t_own, t_given = self.norm_t(temporal).chunk(3, dim=1)
        s_gate, s_given, s_own = self.norm_s(spatial).chunk(3, dim=1)
        memory = torch.lerp(s_given, t_own, t_gate.sigmoid())
        shown = torch.lerp(t_given, s_own, s_gate.sigmoid())
        return shown + s if self.residual else shown, memory


def _convolved(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    return convolve(x_BCHW, conv.weight, conv.bias)


class MAU(Recurrent):
    """Layers of motion-aware units between an encoder and a decoder of strided convolutions.

    Args:
        width: Channels of all layers.
        layers: How many.
        kernel: Side of the convolutions of the units, odd.
        tau: Steps that the units look back.
        patch: Side of the patches that frames are folded into.
        downscale: Pixels of a folded frame per pixel of the units, a power of 2.
        cell_mode: ``residual``: units add their input to what they show.
        model_mode: ``recall``: the encoder's fields are added to the decoder's.
        grid: Height and width of the frames that the norms are bound to, as in published weights; None: any.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Chang et al. (2021), NeurIPS 34, https://openreview.net/forum?id=qwtfY-3ibt7"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        # The parameters of its norms depend on the grid, so that it is a part of the published size.
        "published": {"width": 64, "layers": 4, "kernel": 5, "tau": 5, "patch": 1, "downscale": 4, "grid": (64, 64)},
        "debug": {"width": 8, "layers": 2, "kernel": 3, "tau": 2, "downscale": 2},
    }
    # Unused: two convolutions that the official forward never calls.
    PUBLISHED: ClassVar = {"published": Published(4_483_588, unused=8_259)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 64,
        layers: int = 4,
        kernel: int = 5,
        tau: int = 5,
        patch: int = 1,
        downscale: int = 4,
        cell_mode: CellMode = "normal",
        model_mode: ModelMode = "normal",
        grid: Sequence[int] | None = None,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
        )
        _check((width, layers, tau, patch), kernel, downscale, cell_mode, model_mode)
        self.multiple = patch * downscale
        if grid is not None and (len(grid) != 2 or any(side < 1 or side % self.multiple for side in grid)):
            raise OptionError(f"grid is a height and a width that divide by {self.multiple}, got {grid}.")
        self.grid = None if grid is None else (grid[0], grid[1])
        field = None if grid is None else (grid[0] // self.multiple, grid[1] // self.multiple)
        self.patch, self.recalls = patch, model_mode == "recall"
        halvings, folded = downscale.bit_length() - 1, channels * patch**2
        self.encoder = nn.ModuleList([nn.Conv2d(folded, width, 1)])
        self.encoder.extend(nn.Conv2d(width, width, 3, 2, 1) for _ in range(halvings))
        residual = cell_mode == "residual"
        self.cells = nn.ModuleList(
            MAUCell(width, kernel=kernel, tau=tau, residual=residual, grid=field) for _ in range(layers)
        )
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 3, 2, 1, output_padding=1) for _ in range(halvings)
        )
        self.conv_last = nn.Conv2d(width, folded, 1)

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Return what the lowest unit reads; or the folded frames, where all fields on the way there are recalled."""
        folded = channels_last(fold(frames_NCHW, self.patch, FOLD))
        return folded if self.recalls else self.encoded(folded)[-1]

    def encoded(self, folded_NCHW: Tensor) -> list[Tensor]:
        """Return the encoder's fields, from fine to coarse."""
        fields = [folded_NCHW]
        for layer in self.encoder:
            fields.append(functional.leaky_relu(layer(fields[-1]), SLOPE))
        return fields[1:]

    def step(self, x: Tensor, state: State) -> tuple[list[Tensor], State]:
        """Map (frames, state of every unit) to what ``head`` reads, from fine to coarse, and the next state."""
        *finer, x = self.encoded(x) if self.recalls else (x,)
        after = []
        for cell, before in zip(self.cells, state or [None] * len(self.cells), strict=True):
            x, history = cell(x, before)
            after.append(history)
        return [*finer, x], after

    def head(self, hidden: list[Tensor]) -> Tensor:
        """Map (recalled fields and the last field) to the next frame, NCHW."""
        *finer, x = hidden
        for n, layer in enumerate(self.decoder, 1):
            x = layer(x)
            if n < len(self.decoder):
                x = functional.leaky_relu(x, SLOPE)
            if finer:
                x = x + finer[-n]
        return unfold(self.conv_last(x), self.patch, FOLD)


def _check(counts: Sequence[int], kernel: int, downscale: int, cell_mode: str, model_mode: str) -> None:
    if min(counts) < 1:
        raise OptionError("width, layers, tau and patch must be >= 1, got {}, {}, {} and {}.".format(*counts))
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel must be odd, got {kernel}.")
    if downscale < 1 or downscale & (downscale - 1):
        raise OptionError(f"downscale must be a power of 2, got {downscale}.")
    if cell_mode not in ("normal", "residual"):
        raise OptionError(f"Unknown cell_mode {cell_mode!r}; known: normal, residual.")
    if model_mode not in ("normal", "recall"):
        raise OptionError(f"Unknown model_mode {model_mode!r}; known: normal, recall.")
