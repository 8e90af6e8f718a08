"""PredRNN-V2: PredRNN with decoupled memories, trained on frames of the past that come and go.

Wang, Wu, Zhang, Gao, Wang, Yu, Long (2021), "PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive
Learning", arXiv:2103.09504. Sizes and recipe follow github.com/thuml/predrnn-pytorch.

The network is PredRNN's. In training, the loss asks that what is added to the cell state and what is added to the
memory are orthogonal over the pixels (decoupling), and frames are hidden by reverse scheduled sampling. The
released code computes the decoupling in a forecast too, where nobody needs it; here it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import lean
from nowcast.models.nowcaster import Published
from nowcast.models.predrnn import PredRNN, increment
from nowcast.models.recurrent import Sampling, State


class PredRNNv2(PredRNN):
    """PredRNN with a decoupling loss.

    Args:
        widths: See ``PredRNN``; so are the options not named here.
        decoupling: Weight of the decoupling loss; 0 leaves it out.
        sampling: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wang et al. (2021), arXiv:2103.09504"
    PUBLISHED: ClassVar[dict[str, Published]] = {"published": Published(23_855_104)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (128,) * 4,
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = False,
        grid: Sequence[int] | None = None,
        decoupling: float = 0.1,
        sampling: Sampling = "reverse",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            widths=widths,
            kernel=kernel,
            patch=patch,
            layer_norm=layer_norm,
            grid=grid,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
        )
        if decoupling < 0:
            raise OptionError(f"decoupling must be >= 0, got {decoupling}.")
        self.decoupling = decoupling
        self.adapter = nn.Conv2d(widths[0], widths[0], 1, bias=False)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step with PredRNN's state and, in training, the likeness of the increments of this step."""
        states, m, _ = state or ([None] * len(self.cells), None, None)
        made, alike = [], []
        for cell, before in zip(self.cells, states, strict=True):
            (x, c), m, gates = cell(x, before, m)
            made.append((x, c))
            if self.training and self.decoupling:
                alike.append(lean(self.likeness, gates.c_BCHW, gates.m_BCHW))
        return x, (made, m, torch.stack(alike).mean() if alike else None)

    def likeness(self, gates_c_BCHW: Tensor, gates_m_BCHW: Tensor) -> Tensor:
        """Mean over samples and channels of |cosine| between the adapted increments of c and of m, over the pixels."""
        adapted = (self.adapter(increment(gates)[0]).flatten(2) for gates in (gates_c_BCHW, gates_m_BCHW))
        of_c, of_m = (functional.normalize(field.float(), dim=2) for field in adapted)
        return (of_c * of_m).sum(2).abs().mean()

    def regularisation(self, states: list[State]) -> Tensor:
        """Return the decoupling loss, from the likeness in every step."""
        if not self.decoupling:
            return super().regularisation(states)
        return self.decoupling * torch.stack([alike for _, _, alike in states]).mean()
