"""E3D-LSTM: eidetic 3-D LSTM, which recalls its own past by attention.

Wang, Jiang, Yang, Li, Long, Fei-Fei (2019), "Eidetic 3D LSTM: A Model for Video Prediction and Beyond", ICLR,
openreview.net/forum?id=B1lKS2AqtX. Sizes and details follow github.com/google/e3d_lstm (TensorFlow 1).

What differs from that code:
- The global memory is updated. The official cell computes the new one and hands on the old, so that it stays
  zero for ever; published weights were made so, and need ``stale_memory``.
- The epsilon of the norms is 1e-5. With 1e-12, biases that start at zero get gradients a million times too large
  from the zeros of the first step; ``eps`` restores it.
- The loss, half the squared plus the absolute error, is a mean instead of a sum.

Every step works on a window of two frames, and every convolution is 3-D: kernel 2 x k x k, one zero after the
window. So the later slice meets the first plane of the kernel only, and the earlier slice both: two 2-D
convolutions, a quarter less work. In the first layer what the first plane makes of a frame serves two windows.

Shape letters: B batch, S slice of the window, H height, W width, C channel, N tokens. Fields are BSHWC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldConv, FieldNorm, lean
from nowcast.models.losses import weighted_mean
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Patched, Sampling

WINDOW = 2
"""Frames that a step sees at once."""

CellState = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""h and c of a layer, and c of the steps before."""
State = tuple[Tensor, list[CellState], Tensor | None]
"""What the first plane of the first kernel makes of the frame before, all layers, and the global memory."""


class WindowConv(nn.Module):
    """3-D convolution of a window of two slices, one zero after it."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int) -> None:
        super().__init__()
        self.here = FieldConv(inputs, outputs, kernel=kernel)
        self.after = FieldConv(inputs, outputs, kernel=kernel)
        self.bias = nn.Parameter(torch.zeros(outputs))  # added by who goes on with what is made, within lean arithmetic

    def forward(self, x_BSHWC: Tensor) -> Tensor:
        """Map x_BSHWC to (B, S, H, W, outputs)."""
        made = torch.unflatten(_pixels_last(self.here, x_BSHWC.flatten(0, 1)), 0, x_BSHWC.shape[:2])
        made[:, 0] += _pixels_last(self.after, x_BSHWC[:, 1])
        return made


class WindowNorm(FieldNorm):
    """Normalises every sample over slices, pixels and channels together, with a scale and shift per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise BSHWC, or C alone for a window that is the same everywhere."""
        if x.ndim == 1:
            return functional.layer_norm(x, x.shape, self.weight, self.bias, self.eps)
        output: Tensor = super().forward(x.flatten(1, 2).movedim(-1, 1)).movedim(1, -1).unflatten(1, (WINDOW, -1))
        return output


class E3DCell(nn.Module):
    """LSTM whose forget gate is a recall: attention of all positions to all cell states there have been.

    Args:
        inputs: Channels that come from below.
        width: Channels of h, c and the global memory that leaves it.
        kernel: Side of the convolutions, odd.
        stale_memory: The global memory is always zero.
        eps: Of the norms.
        layer_norm: Normalise what makes the gates; what is recalled is normalised in any case.
        memory: Channels of the global memory that enters; None: ``width``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernel: int,
        stale_memory: bool,
        eps: float,
        layer_norm: bool = True,
        memory: int | None = None,
    ) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return WindowNorm(channels, eps=eps) if layer_norm else nn.Identity()

        self.from_x = WindowConv(inputs, 7 * width, kernel=kernel)
        self.from_h = WindowConv(width, 4 * width, kernel=kernel)
        if stale_memory:
            self.memory_bias = nn.Parameter(torch.zeros(4 * width))
        else:
            self.from_memory = WindowConv(memory or width, 4 * width, kernel=kernel)
        self.norm_x, self.norm_h, self.norm_memory = norm(7 * width), norm(4 * width), norm(4 * width)
        self.norm_recall = WindowNorm(width, eps=eps)
        self.cell_to_gate = WindowConv(width, width, kernel=kernel)
        self.memory_to_gate = WindowConv(width, width, kernel=kernel)
        self.show = nn.Linear(2 * width, width)
        self.width, self.stale_memory = width, stale_memory

    def forward(self, from_x: Tensor, state: CellState | None, memory: Tensor | None) -> tuple[CellState, Tensor]:
        """One step; None stands for zeros.

        Args:
            from_x: The input, already convolved by ``from_x``.
            state: Of the step before.
            memory: From below, or from the top at the step before.

        Returns:
            The next state, and the memory for the next layer.
        """
        h, c, history = state or (None, None, ())
        from_h = None if h is None else self.from_h(h)
        from_memory = None if memory is None or self.stale_memory else self.from_memory(memory)
        recaller, fresh, gate, memory = lean(self._gates, from_x, from_h, from_memory)
        if c is None:
            # The history of the first step is a state of zeros, which recalls nothing.
            c, history = fresh + self.norm_recall.bias, (torch.zeros_like(fresh),)
        else:
            history = (*history, c)
            c = lean(self._remember, self.recall(recaller, history), c, fresh)
        content = self.show(torch.cat([c, memory], dim=-1))
        h = lean(self._show, gate, self.cell_to_gate(c), self.memory_to_gate(memory), content)
        return (h, c, history), memory

    def recall(self, recaller: Tensor, history: tuple[Tensor, ...]) -> Tensor:
        """Return what every position finds in the cell states of all steps, by the likeness of their channels."""
        query, past = (fields.flatten(1, 3).unsqueeze(1) for fields in (recaller, torch.cat(history, dim=1)))
        return functional.scaled_dot_product_attention(query, past, past, scale=1.0).view_as(recaller)

    def _gates(self, from_x: Tensor, from_h: Tensor | None, from_memory: Tensor | None) -> tuple[Tensor, ...]:
        """Recall gate, what is new, output gate without the new states, new memory."""
        of_h = self.norm_h(self.from_h.bias if from_h is None else from_h + self.from_h.bias)
        zeros = self.memory_bias if self.stale_memory else self.from_memory.bias
        of_memory = self.norm_memory(zeros if from_memory is None else from_memory + zeros)
        of_x, of_x_too = self.norm_x(from_x + self.from_x.bias).split((4 * self.width, 3 * self.width), dim=-1)
        i, g, r, o = (of_x + of_h).chunk(4, dim=-1)
        i_x, g_x, f_x = of_x_too.chunk(3, dim=-1)
        i_m, f_m, g_m, m_m = of_memory.chunk(4, dim=-1)
        memory = (f_x + f_m + 1).sigmoid() * m_m.tanh() + (i_x + i_m).sigmoid() * (g_x + g_m).tanh()
        return r.sigmoid(), i.sigmoid() * g.tanh(), o.clone(), memory  # a view would keep the other gates alive

    def _show(self, gate: Tensor, of_cell: Tensor, of_memory: Tensor, content: Tensor) -> Tensor:
        """Combine cell and memory; the output gate is a tanh and then a sigmoid."""
        gate = gate + of_cell + of_memory + (self.cell_to_gate.bias + self.memory_to_gate.bias)
        return content.tanh() * gate.tanh().sigmoid()

    def _remember(self, recalled: Tensor, c: Tensor, fresh: Tensor) -> Tensor:
        output: Tensor = self.norm_recall(c + recalled) + fresh
        return output


class E3DLSTM(Patched):
    """Layers of eidetic cells on folded frames.

    Args:
        layers: Cells; a global memory passes through all of them.
        width: State channels of each.
        widths: State channels of every layer, the official ``num_hidden``, in place of ``layers`` and ``width``.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what makes the gates; what is recalled is normalised in any case.
        stale_memory: The global memory is never updated, as published weights expect.
        eps: Of the norms.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wang et al. (2019), ICLR, openreview.net/forum?id=B1lKS2AqtX"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"layers": 4, "width": 64, "patch": 4},
        "kth": {"layers": 4, "width": 64, "patch": 8},
        "debug": {"layers": 2, "width": 8, "kernel": 3},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {
        "published": Published(12_898_832),
        "kth": Published(13_980_224, out_steps=20),
    }

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        layers: int = 4,
        width: int = 64,
        widths: Sequence[int] | None = None,
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = True,
        stale_memory: bool = False,
        eps: float = 1e-5,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        stack = tuple(widths) if widths is not None else (width,) * layers
        if not stack or min(stack) < 1 or kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"There is a layer or more, widths are >= 1 and kernel is odd, got {stack} and {kernel}.")
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
            hidden=WINDOW * stack[-1],
            patch=patch,
            bias=True,
        )
        self.cells = nn.ModuleList(
            E3DCell(
                inputs,
                wide,
                kernel=kernel,
                stale_memory=stale_memory,
                eps=eps,
                layer_norm=layer_norm,
                memory=stack[layer - 1],  # of the layer below, and into the lowest that of the top
            )
            for layer, (inputs, wide) in enumerate(zip((self.folded, *stack), stack, strict=False))
        )

    @property
    def first(self) -> WindowConv:
        """What frames go through first."""
        return self.cells[0].from_x  # type: ignore[return-value]

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Return what both planes of the first kernel make of frames."""
        folded = super().embed(frames_NCHW).contiguous(memory_format=torch.channels_last)
        return torch.cat([self.first.here(folded), self.first.after(folded)], dim=1)

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Map (embedded frame, state) to (hidden windows of the top, BSHWC, next state)."""
        here, after = x.movedim(1, -1).chunk(2, dim=-1)
        before, layers, memory = state or (torch.zeros_like(here), [], None)
        from_x = torch.stack([before + after, here], dim=1)
        made: list[CellState] = []
        for layer, cell in enumerate(self.cells):
            new, memory = cell(from_x, layers[layer] if layers else None, memory)
            made.append(new)
            if layer + 1 < len(self.cells):
                from_x = self.cells[layer + 1].from_x(new[0])  # type: ignore[operator]
        return made[-1][0], (here, made, memory)

    def head(self, hidden: Tensor) -> Tensor:
        """Map hidden_BSHWC to the next frame, NCHW."""
        return super().head(hidden.movedim(-1, 2).flatten(1, 2))

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Half the squared error plus the absolute error."""
        error = made_BTCHW - truth_BTCHW
        return weighted_mean(error.square() / 2 + error.abs(), weight_BTCHW)


def _pixels_last(conv: FieldConv, x_NHWC: Tensor) -> Tensor:
    output: Tensor = conv(x_NHWC.movedim(-1, 1)).movedim(1, -1).contiguous()
    return output
