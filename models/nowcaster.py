"""The one interface of all networks.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nowcast.core.errors import OptionError, ShapeError
from nowcast.models.blocks import Result, on_multiple, tiled
from nowcast.models.losses import Loss, mse
from nowcast.models.speedups import packed


@dataclass(frozen=True)
class Published:
    """What the paper's code counts for a size, to check ours against."""

    parameters: int
    unused: int = 0
    """Of them, those that cannot change the output; ours has none."""
    in_steps: int = 10
    out_steps: int = 10
    channels: int = 1


class Nowcaster(nn.Module):
    """Past frames in, future frames out.

    ``forward(past_BTCHW) -> future_BTCHW`` takes ``in_steps`` frames in [0, 1] of any height and
    width and returns ``out_steps`` frames of the same size, not clamped. A subclass names its own
    options as constructor keywords: they are the only description of its hyper-parameters. What it
    remembers between frames is passed along, never kept on the module.
    """

    PAPER: ClassVar[str] = ""
    """Authors, year, DOI or arXiv."""

    SIZES: ClassVar[dict[str, dict[str, object]]] = {}
    """Published sizes: name -> constructor keywords. ``debug`` is tiny: every trainable network has it for tests."""

    PUBLISHED: ClassVar[dict[str, Published]] = {}
    """Size -> the paper's count of parameters."""

    LICENCE: ClassVar[str] = ""
    """What who uses published weights must know; empty where the official code is free."""

    free_lengths: ClassVar[bool] = True
    """False: the weights are made for ``in_steps`` frames; recurrent networks take any number."""

    handles_missing: ClassVar[bool] = False
    """True: NaN in the past means no data and comes out as NaN where nothing is known.
    False: the caller fills NaN with 0 and masks the forecast."""

    gives_probabilities: ClassVar[bool] = False
    """True: has ``levels`` on the scale of its input, and ``distribution`` says how likely each is reached."""

    levels: Tensor

    tunings: ClassVar[tuple[str, ...]] = ("full",)
    """Ways to fit trained weights to other data, see ``tune``."""

    any_step: ClassVar[bool] = False
    """True: forecasts well from frames that were resampled in time to the step it was trained on, along the motion."""

    onnx: ClassVar[bool] = True
    """False: holds an operator of our own, which ``torch.export`` keeps by name and ONNX does not know."""

    trainable: ClassVar[bool] = True
    """False for the references that have nothing to learn."""

    history: ClassVar[tuple[int, int]] = (1, 1)
    """References only: the least number of past frames they work with, and the best."""

    extra: ClassVar[str] = ""
    """Package that it needs and that is not installed by default: ``pip install 'nowcast-radar[<extra>]'``."""

    multiple: int = 1
    """Sides are padded to a multiple of this, and cut off again."""

    grid: tuple[int, int] | None = None
    """Height and width that the weights are bound to; None: any."""

    checkpointing: bool = False
    """True: activations of the parts run by ``segment`` are computed again in the backward pass, for less memory."""

    loss: Loss | None = None
    """What training compares frames by instead of ``error``, the paper's: chosen by a recipe, see ``models.LOSSES``."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1) -> None:
        super().__init__()
        if min(in_steps, out_steps, channels) < 1:
            raise OptionError(
                f"in_steps, out_steps and channels must be >= 1, got {in_steps}, {out_steps}, {channels}."
            )
        self.in_steps, self.out_steps, self.channels = in_steps, out_steps, channels

    @classmethod
    def options(cls) -> list[str]:
        """Return the constructor keywords of this network beyond steps and channels."""
        common = {"self", "in_steps", "out_steps", "channels"}
        return [name for name in inspect.signature(cls.__init__).parameters if name not in common]

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        raise NotImplementedError

    def distribution(self, past_BTCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Forecast with its probabilities, for the price of one.

        Args:
            past_BTCHW: As for ``forward``.

        Returns:
            What ``forward`` returns, BTCHW; the probability (N, out_steps, levels, H, W) that levels are reached; and
            where that is known, (N, out_steps, H, W). N is batch x channels.
        """
        raise NotImplementedError

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Return the error of the forecast, weighted by ``mask``: 0 where nothing was measured.

        A network with its own recipe (frames that are fed, branches, regularisers) overrides this, and compares
        frames by ``compare``. ``progress`` runs from 0 to 1 over the training.
        """
        return self.compare(self(past_BTCHW), future_BTCHW, mask_BTCHW)

    def compare(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Return the chosen loss between made and true frames, or the paper's."""
        return (self.loss or self.error)(made_BTCHW, truth_BTCHW, weight_BTCHW)

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Return the paper's loss between made and true frames; where that is not the squared error, override it."""
        return mse(made_BTCHW, truth_BTCHW, weight_BTCHW)

    def tune(self, method: str) -> None:
        """Prepare trained weights for a training on other data; what will change is what needs a gradient.

        Args:
            method: One of ``tunings``. ``full``: all weights, on the forecast alone.

        Raises:
            ValueError: If the network cannot be tuned so; the message lists how it can.
        """
        if method not in self.tunings:
            raise OptionError(
                f"{type(self).__name__} has no tuning {method!r}; it can be tuned by: {', '.join(self.tunings)}."
            )

    def on_any_grid(self, forecast: Callable[[Tensor], Tensor], past_BTCHW: Tensor) -> Tensor:
        """Run ``forecast`` on frames of any size: padded to ``multiple``, or tiled where weights are bound to a grid.

        Raises:
            ValueError: In training on another grid than the weights are bound to.
        """
        size = tuple(past_BTCHW.shape[-2:])
        if self.grid is None or size == self.grid:
            return on_multiple(forecast, past_BTCHW, multiple=self.multiple)
        if self.training:
            raise ShapeError(
                f"The weights of {type(self).__name__} are bound to a grid of {_times(self.grid)}; frames are "
                f"{_times(size)}. Train on crops of that size, or build it with grid=None."
            )
        return tiled(forecast, past_BTCHW, tile=self.grid, overlap=min(self.grid) // 4)

    def cached_weights(self) -> AbstractContextManager[None]:
        """Weights stay the same over the steps of a roll-out, which makes convolutions cheaper on CPUs.

        Not where steps are computed again in the backward pass, when the roll-out is over.
        """
        if torch.compiler.is_compiling() or (self.checkpointing and torch.is_grad_enabled()):
            return nullcontext()
        return packed.cached_weights(self.in_steps + self.out_steps - 1)

    def segment(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a large part of the network, with activation checkpointing where that is on."""
        if self.checkpointing and torch.is_grad_enabled():
            made: Result = checkpoint(function, *arguments, use_reentrant=False, context_fn=self._contexts)
            return made
        return function(*arguments)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the first computation of a segment and of the second, which must not count a batch again."""
        return nullcontext(), _statistics_kept(self)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisation goes on by the batch, but leaves its running statistics and its counter alone."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def check_past(past_BTCHW: Tensor, model: Nowcaster) -> None:
    """Refuses input of another length or number of channels in one sentence.

    Raises:
        ValueError: What was expected and what came.
    """
    want = (model.in_steps, model.channels)
    if past_BTCHW.ndim != 5 or tuple(past_BTCHW.shape[1:3]) != want:
        raise ShapeError(
            f"{type(model).__name__} takes (batch, {want[0]} frames, {want[1]} channels, height, width); "
            f"got {tuple(past_BTCHW.shape)}."
        )


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
