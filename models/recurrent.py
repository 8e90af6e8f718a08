"""What all recurrent networks share: the roll-out from frame to frame, and which frames it is fed in training.

Every step maps one frame to the next. The first ``in_steps`` steps read the past; later ones read what the
network itself made, or in training, by chance, the truth:

- scheduled sampling, Bengio et al. (2015), arXiv:1506.03099: the share of true frames falls from 1 to 0;
- reverse scheduled sampling, Wang et al. (2021), arXiv:2103.09504: frames of the past are hidden too, and come
  back as training goes on, so that the network learns early to look further back than one frame.

Shape letters: B batch, T time, C channel, H height, W width, N batch times time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nowcast.core.errors import OptionError
from nowcast.models.blocks import each_frame, fold, unfold
from nowcast.models.nowcaster import Nowcaster, check_past
from nowcast.models.speedups.packed import Conv2d

Sampling = Literal["scheduled", "reverse", "never"] | Mapping[str, Any]
"""Name of a schedule, or a ``Schedule`` in the words of the official codes: {kind: reverse, r_exp_alpha: 2000, ...}."""
SAMPLING = ("scheduled", "reverse", "never")
State = Any
"""What a network remembers of the frames before: tensors in tuples or lists; None before the first, for zeros."""


@dataclass(frozen=True)
class Schedule:
    """Which input frames are the truth while training goes on, in the flags of the official codes.

    Flags count iterations out of ``iterations``; a training of another length is stretched. Defaults are those of
    the scripts of PredRNN and PredRNN-V2.
    """

    kind: str = "scheduled"
    """One of ``SAMPLING``."""
    iterations: int = 80_000
    """Of the whole training, ``max_iterations``."""
    sampling_start_value: float = 1.0
    """``scheduled``: probability of the truth at the start."""
    sampling_delta: float = 2e-5
    """``scheduled``: what it loses in an iteration, also called ``sampling_changing_rate``."""
    sampling_stop_iter: float = 50_000
    """``scheduled``: from this iteration on it is 0."""
    r_sampling_step_1: float = 25_000
    """``reverse``: before this iteration half of the frames are the truth, in the past and in the future."""
    r_sampling_step_2: float = 50_000
    """``reverse``: from this iteration on all frames of the past are, and none of the future."""
    r_exp_alpha: float = 2_500
    """``reverse``: iterations in which the share of hidden frames of the past falls to 1 / e."""

    @classmethod
    def of(cls, sampling: Sampling, until: float) -> Schedule:
        """Return the schedule that an option names, over so large a share of the training, or describes.

        Raises:
            ValueError: Unknown names, or numbers that make no schedule.
        """
        if isinstance(sampling, str):
            if not 0 < until <= 1:
                raise OptionError(f"sampling_until must lie in (0, 1], got {until}.")
            made = cls(sampling, iterations=50_000, **_stretched(until))
        else:
            known = [field.name for field in fields(cls)]
            if unknown := sorted(set(sampling) - set(known)):
                raise OptionError(f"Unknown {', '.join(unknown)} in sampling; known: {', '.join(known)}.")
            if wrong := [
                key for key, value in sampling.items() if key != "kind" and not isinstance(value, int | float)
            ]:
                raise OptionError(f"{', '.join(wrong)} of sampling must be numbers.")
            made = cls(**sampling)
        made.check()
        return made

    def check(self) -> None:
        """Refuse numbers that make no schedule.

        Raises:
            ValueError: What is wrong, in one sentence.
        """
        if self.kind not in SAMPLING:
            raise OptionError(f"Unknown sampling {self.kind!r}; known: {', '.join(SAMPLING)}.")
        if not 0 <= self.sampling_start_value <= 1 or self.sampling_delta < 0:
            raise OptionError(
                "sampling_start_value must lie in [0, 1] and sampling_delta be >= 0, got "
                f"{self.sampling_start_value} and {self.sampling_delta}."
            )
        if not 0 <= self.r_sampling_step_1 <= self.r_sampling_step_2 or min(self.iterations, self.r_exp_alpha) <= 0:
            raise OptionError(
                "r_sampling_step_1 must be <= r_sampling_step_2, and iterations and r_exp_alpha be > 0; got "
                f"{self.r_sampling_step_1}, {self.r_sampling_step_2}, {self.iterations} and {self.r_exp_alpha}."
            )

    def shares(self, progress: float) -> tuple[float, float]:
        """Return the probability that an input frame is the truth, in the past and in the future.

        Args:
            progress: Share of the training that is done.
        """
        step = progress * self.iterations
        if self.kind == "scheduled":
            share = self.sampling_start_value - self.sampling_delta * step
            return 1.0, max(0.0, share) if step < self.sampling_stop_iter else 0.0
        if self.kind == "never" or step >= self.r_sampling_step_2:
            return 1.0, 0.0
        since = step - self.r_sampling_step_1
        if since < 0:
            return 0.5, 0.5
        whole = self.r_sampling_step_2 - self.r_sampling_step_1
        return 1.0 - 0.5 * math.exp(-since / self.r_exp_alpha), 0.5 - 0.5 * since / whole


def _stretched(until: float) -> dict[str, float]:
    """Return the schedules of 50,000 iterations, laid over this share of 50,000."""
    stop = 50_000 * until
    return {
        "sampling_delta": 1 / stop,
        "sampling_stop_iter": stop,
        "r_sampling_step_1": stop / 2,
        "r_sampling_step_2": stop,
        "r_exp_alpha": stop / 20,
    }


class Recurrent(Nowcaster):
    """A network that makes the next frame from each frame and what it remembers.

    A subclass gives ``embed``, ``step`` and ``head``; this class rolls them out.

    Args:
        sampling: What is fed beyond the past in training: ``scheduled``, ``reverse`` or ``never`` the truth; or a
            ``Schedule`` as a mapping, in the flags of the official codes.
        sampling_until: Share of the training after which it is fed as in a forecast, for a schedule by name. 0.625 is
            the 50,000 of 80,000 iterations of the PredRNN family.
        reverse_input: Train on every clip backwards as well as forwards. The official codes take two steps per
            batch; here chance decides for one direction per step, which is the same on average.

    Raises:
        ValueError: Unknown sampling, or a share outside (0, 1].
    """

    scored_from: ClassVar[int] = 1
    """First frame whose prediction counts in the loss."""

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int,
        sampling: Sampling,
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.sampling, self.reverse_input = Schedule.of(sampling, sampling_until), reverse_input

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Map frames_NCHW to what a step reads, independent of the state: known frames come all at once."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Any, State]:
        """(embedded frame, state) -> (what ``head`` reads, next state)."""
        raise NotImplementedError

    def head(self, hidden: Any) -> Tensor:
        """Output of a step -> the next frame, NCHW; left out where nobody needs the frame."""
        raise NotImplementedError

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        with self.cached_weights():
            return self.on_any_grid(self.roll_out, past_BTCHW)

    def roll_out(self, past_BTCHW: Tensor, *, every: bool = False) -> Tensor:
        """Forecast of frames whose sides divide by ``multiple``.

        Args:
            past_BTCHW: Frames, at least one.
            every: Also what the network made of the past: predictions of the frames 1, 2, ...

        Returns:
            The last ``out_steps`` frames, or all after the first.
        """
        known, state = past_BTCHW.shape[1], None
        made: list[Tensor] = []
        inputs = each_frame(self.embed, past_BTCHW.unbind(1))
        for t in range(known + self.out_steps - 1):
            x = inputs[t] if t < known else self.embed(made[-1])
            hidden, state = self.segment(self.step, x, state)
            if every or t >= known - 1:
                made.append(self.head(hidden))
        return torch.stack(made, dim=1)

    def roll_out_fed(self, clip_BTCHW: Tensor, fed_BT: Tensor) -> tuple[Tensor, list[State]]:
        """Training's roll-out: a step reads the true frame where ``fed`` is true, else the prediction before it.

        Returns:
            Predictions of all frames but the first, and the state after every step where ``regularisation`` asks.
        """
        state: State = None
        made: list[Tensor] = []
        states = []
        kept = type(self).regularisation is not Recurrent.regularisation
        certain = 1 if self.sampling.kind == "reverse" else self.in_steps
        inputs = each_frame(self.embed, clip_BTCHW[:, :certain].unbind(1))
        for t in range(clip_BTCHW.shape[1] - 1):
            if t < certain:
                x = inputs[t]
            else:
                x = self.embed(torch.where(fed_BT[:, t, None, None, None], clip_BTCHW[:, t], made[-1]))
            hidden, state = self.segment(self.step, x, state)
            made.append(self.head(hidden))
            if kept:
                states.append(state)
        return torch.stack(made, dim=1), states

    def fed(self, batch: int, progress: float) -> Tensor:
        """Draws which input frames of a clip are the truth: (batch, in_steps + out_steps - 1), on the CPU."""
        past, future = self.sampling.shares(progress)
        share = torch.tensor([1.0] + [past] * (self.in_steps - 1) + [future] * (self.out_steps - 1))
        return torch.rand(batch, len(share)) < share

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Error of the predictions of all frames from ``scored_from`` on, of the past as much as of the future."""
        check_past(past_BTCHW, self)
        clip = torch.cat([past_BTCHW, future_BTCHW], dim=1)
        weight = None if mask_BTCHW is None else torch.cat([torch.ones_like(past_BTCHW), mask_BTCHW], dim=1)
        if self.reverse_input:
            order = _either_way(clip.shape[1]).to(clip.device)
            clip, weight = clip[:, order], None if weight is None else weight[:, order]
        fed = self.fed(len(clip), progress).to(clip.device)
        extra: list[Tensor] = []

        def predicted(padded_BTCHW: Tensor) -> Tensor:
            made, states = self.roll_out_fed(padded_BTCHW, fed)
            extra.append(self.regularisation(states))
            return made

        with self.cached_weights():
            made = self.on_any_grid(predicted, clip)
        first = min(self.scored_from, self.in_steps)  # the forecast counts in any case
        weight = None if weight is None else weight[:, first:]
        return self.compare(made[:, first - 1 :], clip[:, first:], weight) + extra[0]

    def regularisation(self, states: list[State]) -> Tensor:
        """Return what the paper's loss adds, from the states after every step."""
        return torch.zeros((), device=next(self.parameters()).device)


class Patched(Recurrent):
    """A recurrent network that works on patches: p x p pixels are the channels of one, and of the next frame's.

    Args:
        hidden: Channels of what ``step`` gives; the next frame is a 1 x 1 convolution of it.
        patch: Side of a patch in pixels.
        grid: Height and width of the frames that weights are bound to; None: any.
        bias: Whether that convolution has a bias.
        blocks: Into as many blocks each way the network cuts a folded frame.

    Raises:
        ValueError: If the grid does not consist of whole patches in whole blocks.
    """

    order: ClassVar[str] = "pixels-first"
    """How pixels become channels, see ``nowcast.models.blocks.FOLDS``."""

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int,
        sampling: Sampling,
        sampling_until: float,
        reverse_input: bool,
        hidden: int,
        patch: int,
        grid: Sequence[int] | None = None,
        bias: bool = False,
        blocks: int = 1,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
        )
        self.patch, self.multiple = patch, patch * blocks
        if patch < 1 or (
            grid is not None and (len(grid) != 2 or any(side < 1 or side % self.multiple for side in grid))
        ):
            cut = f"patch * {blocks}" if blocks > 1 else "patch"
            raise OptionError(f"grid is a height and a width that divide by {cut}, got grid {grid} and patch {patch}.")
        self.grid = None if grid is None else (grid[0], grid[1])
        self.conv_last = Conv2d(hidden, self.folded, 1, bias=bias)

    @property
    def folded(self) -> int:
        """Channels of a folded frame."""
        return self.channels * self.patch**2

    @property
    def field(self) -> tuple[int, int] | None:
        """Height and width of a folded frame, where weights are bound to them."""
        return None if self.grid is None else (self.grid[0] // self.patch, self.grid[1] // self.patch)

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Fold frames_NCHW: pixels of a patch become channels."""
        return fold(frames_NCHW, self.patch, self.order)

    def head(self, hidden: Tensor) -> Tensor:
        """Map hidden_NCHW to the next frame, NCHW."""
        return unfold(self.conv_last(hidden), self.patch, self.order)


def through_stack(cells: Iterable[nn.Module], x: Tensor, states: Sequence[State] | None) -> list[State]:
    """Next states of cells of which each reads what the one below shows: the first tensor of its state."""
    after: list[State] = []
    for layer, cell in enumerate(cells):
        after.append(cell(x, states[layer] if states else None))
        x = after[-1][0]
    return after


def _either_way(steps: int) -> Tensor:
    """Return the order of some frames, by chance forwards or backwards; drawn so that a compiler can follow."""
    order = torch.arange(steps)
    return torch.where(torch.rand(()) < 0.5, order.flip(0), order)
