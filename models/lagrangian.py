"""Growth and decay of rain in coordinates that move with it, as probabilities that intensities are exceeded.

The past frames are carried along their motion to where their rain is now. Two parts look at them there and say for
every pixel, lead time and level of a ladder of intensities how likely the level is reached: a linear one, which sees
every frame at many scales and what their fading leaves of each (see ``fading``), and a U-Net of ConvNeXt blocks (Liu
et al., 2022, arXiv:2201.03545) for all that is not linear. The maps of each lead time are then carried along the motion
in turn. Lagrangian coordinates in networks: Ritvanen et al. (2023), doi:10.1109/JSTARS.2023.3238016. Probabilities of
levels, because one best value is a blur: Sonderby et al. (2020), arXiv:2003.12140.

``forward`` has to give one field. It reaches a level where that raises the critical success index of the whole field
that the probabilities promise; between two levels it is the mean that they give, and below the lowest it is dry.

Shape letters: B batch, T time, C channel, N batch x channels, L lead times, K levels, F features, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, to_multiple
from nowcast.models.extrapolation import coarse_shape, displacements, motion
from nowcast.models.fading import Fading, scales
from nowcast.models.losses import weighted_mean
from nowcast.models.nowcaster import Nowcaster, check_past

SPAN = math.log(100 / 0.05)
"""Of a scale of decibels from 0.05 to 100 mm/h."""

LEVELS = tuple(math.log(0.999 * rate / 0.05) / SPAN for rate in (0.1, 0.5, 1, 2, 5, 10, 20, 40))
"""These rates in mm/h on that scale, a little less so that rounding hides no event."""

IMPORTANCE = (1.0, 1.5, 2.0, 3.0, 6.0, 12.0, 20.0, 30.0)
"""Of the cross-entropy of each level in training: about as rare as heavy rain is, so that it counts."""

SCALES = 7
"""Resolutions at which the linear part sees a frame: the full one, a half, a quarter, ..."""

NEAR_SCALES = 5
"""Of them, those at which it sees where the newest frame reaches a level."""

FINE, ROUGH, REACHED, ONE = 0.16, 0.6, 25.0, 1.0
"""What the linear part sees is divided by these: differences between scales, the coarsest one, and what reaches a level
(beside that); and its constant. It becomes a tenth of what the U-Net sees, so its weights, which are fitted before (see
``nowcast.training.logistic``), change slowly as that learns."""

SURE = 20.0
"""Logit per unit of the scale that the linear part begins with."""

PREVIEWS = 3
"""Lead times of whose faded field the U-Net is shown: all, a half, a quarter, ... of the longest."""

FOLD = 2
"""Pixels per side that share the finest features of the U-Net, for a quarter of the cost."""

STRONGER = (-0.1, 0.25)
"""Training adds a number between these to the scaled rain of every second sample: on the usual scale half to seven
times as much, since heavy rain is rare where one trains and common elsewhere."""

LEADS_PER_STEP = 2
"""A training step looks at one lead time in so many, drawn anew each time."""

ROUNDS = 6
"""Of Dinkelbach's iteration, which doubles the exact digits in each."""

BIAS = 1.25
"""Largest area over which a level is forecast, in areas over which it is expected."""

GROWTH = 1.25
"""Largest area over which a level is forecast, in areas over which it is reached now."""

EXTREME, HALVINGS = 16.0, 14
"""The largest logit that is sought, and how often the interval is halved."""

SAMPLED = 2
"""Every so manieth row and column is looked at for the critical success index of a field."""

ABOVE, BELOW = 1.0015, 0.94
"""Times a level: what reaches it, and what does not, also when forecasts are rounded to 0.01 mm/h."""


class Lagrangian(Nowcaster):
    """Exceedance probabilities by a linear part and a U-Net, in coordinates that move with the rain.

    NaN in the past means no data, and comes out where the motion leads to a pixel without data or outside the grid.
    Motion is found on the CPU.

    Args:
        widths: Channels of the U-Net at each resolution, fine to coarse.
        blocks: ConvNeXt blocks at each of them on the way down, and as many on the way up.
        levels: Intensities on the scale of the input, ascending.
        importance: Weight of each level in the loss.
        span: Natural logarithm of the ratio of the rates at 1 and at 0 of the scale, if that is one of decibels: means
            are taken of rates; 0 for a linear scale.

    Raises:
        ValueError: If there are fewer than two levels, they do not ascend, or there are not as many weights.
    """

    PAPER = "this project; Ritvanen et al. (2023), doi:10.1109/JSTARS.2023.3238016"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "small": {},
        "debug": {"widths": (4, 8), "blocks": 1, "levels": (0.2, 0.4, 0.6), "importance": (1, 1, 1)},
    }
    free_lengths: ClassVar[bool] = False
    handles_missing: ClassVar[bool] = True
    gives_probabilities: ClassVar[bool] = True
    any_step: ClassVar[bool] = True
    onnx: ClassVar[bool] = False

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (48, 96, 128, 160),
        blocks: int = 2,
        levels: Sequence[float] = LEVELS,
        importance: Sequence[float] = IMPORTANCE,
        span: float = SPAN,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        if len(levels) < 2 or any(low >= high for low, high in pairwise(levels)):
            raise OptionError(f"levels must be two or more and ascend, got {tuple(levels)}.")
        if len(importance) != len(levels):
            raise OptionError(f"importance needs a weight for each of {len(levels)} levels, got {tuple(importance)}.")
        self.importance, self.span = tuple(importance), span
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        maps = out_steps * len(levels)
        self.linear = nn.Conv2d(in_steps * SCALES + len(levels) * NEAR_SCALES + 1 + SCALES, maps, 1, bias=False)
        self._begin_with_what_fading_leaves()
        self.unet = _UNet(in_steps + 1 + PREVIEWS, maps, widths=widths, blocks=blocks)

    def _begin_with_what_fading_leaves(self) -> None:
        """At first the linear part compares that with the levels, the later the less sure."""
        weight_LKF = torch.zeros(self.out_steps, len(self.levels), self.linear.in_channels)
        for lead in range(self.out_steps):
            sureness = SURE / (1 + (lead + 1) / 8)
            weight_LKF[lead, :, -SCALES:] = sureness * _sizes(SCALES)
            weight_LKF[lead, :, -SCALES - 1] = -sureness * self.levels * ONE
        self.linear.weight.data = weight_LKF.flatten(0, 1)[..., None, None]

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW, NaN where nothing is known."""
        return self.distribution(past_BTCHW)[0]

    # --- probabilities ---

    def distribution(self, past_BTCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the field, BTCHW, and the probabilities that it is made of, see ``exceedance``."""
        chance_NLKHW, known_NLHW = self.exceedance(past_BTCHW)
        field_NLHW = self.field(chance_NLKHW, known_NLHW, past_BTCHW[:, -1].flatten(0, 1))
        field_BTCHW = field_NLHW.unflatten(0, (len(past_BTCHW), self.channels)).transpose(1, 2)
        return field_BTCHW, chance_NLKHW, known_NLHW

    def exceedance(self, past_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each level to be reached, NLKHW, not rising with the level; where it is known, NLHW."""
        leads_L = torch.arange(self.out_steps, device=past_BTCHW.device)
        logits_NLKHW, known_NLHW = self.logits(past_BTCHW, leads_L)
        falling = [logits_NLKHW[:, :, 0]]
        for logits_NLHW in logits_NLKHW.unbind(2)[1:]:
            falling.append(logits_NLHW.minimum(falling[-1]))
        return torch.stack(falling, dim=2).sigmoid(), known_NLHW

    def logits(self, past_BTCHW: Tensor, leads_L: Tensor) -> tuple[Tensor, Tensor]:
        """Logits NLKHW of some lead times, counted from 0; where they are known, NLHW."""
        check_past(past_BTCHW, self)
        frames_NTHW = past_BTCHW.transpose(1, 2).flatten(0, 1)
        ways_NTHW2 = trajectories(frames_NTHW, max(self.out_steps, self.in_steps - 1))
        known_N1HW = frames_NTHW[:, -1:].isfinite().to(frames_NTHW)
        maps_NLKHW = self.maps(self.aligned(frames_NTHW, ways_NTHW2), known_N1HW, leads_L)
        ahead = ways_NTHW2.index_select(1, leads_L).unbind(1)
        carried = [carry(maps, way) for maps, way in zip(maps_NLKHW.unbind(1), ahead, strict=True)]
        reached = [carry(known_N1HW, way, outside="zeros") for way in ahead]
        return torch.stack(carried, dim=1), torch.cat(reached, dim=1) >= 0.5

    def aligned(self, frames_NTHW: Tensor, ways_NTHW2: Tensor) -> Tensor:
        """Past frames where their rain is now, newest first; 0 where nothing is known."""
        filled = frames_NTHW.nan_to_num(0.0)
        ages = range(1, self.in_steps)
        earlier = [carry(filled[:, -1 - age, None], ways_NTHW2[:, age - 1]) for age in ages]
        return torch.cat([filled[:, -1:], *earlier], dim=1)

    def maps(self, aligned_NTHW: Tensor, known_N1HW: Tensor, leads_L: Tensor) -> Tensor:
        """Logits NLKHW where the rain is now."""
        levels = torch.arange(len(self.levels), device=leads_L.device)
        rows = (leads_L[:, None] * len(self.levels) + levels).flatten()
        seen_NFHW, fading = self.seen(aligned_NTHW, known_N1HW)
        always, at_lead = self.linear.weight[rows].split([seen_NFHW.shape[1], SCALES], dim=1)
        with _full_precision(aligned_NTHW.device.type):  # these are sums of what nearly cancels
            linear = functional.conv2d(seen_NFHW, always).unflatten(1, (len(leads_L), -1))
            pairs = zip(fading.after(leads_L), at_lead.unflatten(0, (len(leads_L), -1)), strict=True)
            faded = [functional.conv2d(self.normed(left_NKHW), weight) for left_NKHW, weight in pairs]
        other = self.unet(self.shown(aligned_NTHW, known_N1HW, fading), rows, self.segment)
        output: Tensor = linear + torch.stack(faded, dim=1) + other.unflatten(1, (len(leads_L), -1))
        return output

    def seen(self, aligned_NTHW: Tensor, known_N1HW: Tensor) -> tuple[Tensor, Fading]:
        """Return the predictors of the linear part at all lead times, NFHW, and how scales fade, which it sees at each.

        They are scales of the newest frame, of changes and of what reaches levels, and ones.
        Scales are differences, and so are times, since what is alike is learnt slowly.
        """
        changes = aligned_NTHW[:, :-1] - aligned_NTHW[:, 1:]
        parts_NKTHW = scales(torch.cat([aligned_NTHW[:, :1], changes], dim=1), SCALES)
        before_NKTHW = parts_NKTHW[:, :, :1] - parts_NKTHW[:, :, 1:3].cumsum(2)
        fading = Fading(torch.cat([parts_NKTHW[:, :, :1], before_NKTHW], dim=2), known_N1HW, self.out_steps)
        reached_NKHW = (aligned_NTHW[:, :1] >= self.levels.view(1, -1, 1, 1)).to(aligned_NTHW)
        near_NSKHW = scales(reached_NKHW / REACHED, NEAR_SCALES)
        parts = [self.normed(parts).flatten(1, 2) for parts in (parts_NKTHW, near_NSKHW)]
        return torch.cat([*parts, torch.ones_like(known_N1HW) / ONE], dim=1), fading

    @staticmethod
    def normed(parts_NK: Tensor) -> Tensor:
        """Scales (N, K, ...) in units in which each varies by about a tenth."""
        return parts_NK / _sizes(parts_NK.shape[1]).to(parts_NK).view(-1, *[1] * (parts_NK.ndim - 2))

    def shown(self, aligned_NTHW: Tensor, known_N1HW: Tensor, fading: Fading) -> Tensor:
        """Return what the U-Net sees, NCHW: the frames, where they are known, and previews of what is left of them."""
        leads = [max(self.out_steps >> halvings, 1) - 1 for halvings in range(PREVIEWS)]
        left = [
            left_NKHW.sum(1, keepdim=True)
            for left_NKHW in fading.after(torch.tensor(leads, device=aligned_NTHW.device))
        ]
        return torch.cat([aligned_NTHW, known_N1HW, *left], dim=1)

    # --- one field ---

    def field(self, chance_NLKHW: Tensor, known_NLHW: Tensor, newest_NHW: Tensor) -> Tensor:
        """Return the field NLHW that ``forward`` gives, NaN where nothing is known."""
        rates_K, mean_NLHW = self.rate(self.levels), self.mean(chance_NLKHW)
        made = torch.zeros_like(mean_NLHW)  # what does not reach the lowest level is dry
        ends_K = torch.cat([rates_K[1:], rates_K.new_tensor([math.inf])])
        now_NKHW = newest_NHW[:, None] >= self.levels.view(1, -1, 1, 1)
        seen_N111 = newest_NHW[:, None].isfinite().sum((-2, -1), keepdim=True).clamp(min=1)
        share_N1K11 = GROWTH * (now_NKHW.sum((-2, -1), keepdim=True) / seen_N111)[:, None]
        reached_NLKHW = chance_NLKHW >= worth_a_hit(chance_NLKHW, known_NLHW, share_N1K11)
        for reached_NLHW, low, high in zip(reached_NLKHW.unbind(2), rates_K, ends_K, strict=True):
            made = torch.where(reached_NLHW, mean_NLHW.clamp(low * ABOVE, high * BELOW), made)
        return self.scaled(made).masked_fill(~known_NLHW, torch.nan)

    def mean(self, chance_NLKHW: Tensor) -> Tensor:
        """Mean rate NLHW of the distributions: the integral of the probabilities, by the trapezoidal rule."""
        steps = self.rate(self.levels).diff(prepend=self.levels.new_zeros(1))
        weights_K = (steps + torch.cat([steps[1:], steps[-1:]])) / 2  # beyond the last level as far as up to it
        return torch.einsum("nlkhw,k->nlhw", chance_NLKHW, weights_K.to(chance_NLKHW))

    def rate(self, scaled: Tensor) -> Tensor:
        """In units of the rate at 0 of a scale of decibels."""
        return torch.exp(self.span * scaled) if self.span else scaled

    def scaled(self, rate: Tensor) -> Tensor:
        """Undoes ``rate``; less than the scale reaches is dry."""
        return torch.log(rate.clamp(min=1.0)) / self.span if self.span else rate

    # --- training ---

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the levels at some lead times, drawn; or the chosen loss of the mean field at all."""
        weight_BTCHW = torch.ones_like(future_BTCHW) if mask_BTCHW is None else mask_BTCHW
        if self.loss is not None:
            return self._loss_of_mean(past_BTCHW, future_BTCHW, weight_BTCHW)
        count = -(-self.out_steps // LEADS_PER_STEP)
        leads_L = torch.randperm(self.out_steps, device=past_BTCHW.device)[:count].sort().values
        past_BTCHW, future_BTCHW = _stronger(past_BTCHW, future_BTCHW)
        logits_NLKHW, known_NLHW = self.logits(past_BTCHW, leads_L)
        truth, weight = (part.transpose(1, 2).flatten(0, 1)[:, leads_L] for part in (future_BTCHW, weight_BTCHW))
        weight = weight * known_NLHW
        loss = truth.new_zeros(())
        for logits_NLHW, level, importance in zip(logits_NLKHW.unbind(2), self.levels, self.importance, strict=True):
            event = (truth >= level).to(truth)
            cost = functional.binary_cross_entropy_with_logits(logits_NLHW, event, reduction="none")
            loss = loss + importance * weighted_mean(cost, weight)
        return loss

    def _loss_of_mean(self, past_BTCHW: Tensor, future_BTCHW: Tensor, weight_BTCHW: Tensor) -> Tensor:
        chance_NLKHW, known_NLHW = self.exceedance(past_BTCHW)
        mean, known = (
            part.unflatten(0, (len(past_BTCHW), self.channels)).transpose(1, 2)
            for part in (self.scaled(self.mean(chance_NLKHW)), known_NLHW)
        )
        return self.compare(mean, future_BTCHW, weight_BTCHW * known)


class _UNet(nn.Module):
    """Logits of some maps, from frames of any size; next to 0 before training."""

    def __init__(self, inputs: int, outputs: int, *, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.multiple = FOLD * 2 ** (len(widths) - 1)
        self.stem = nn.Conv2d(inputs * FOLD**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(width, blocks) for width in widths)
        self.reduce = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2) for fine, coarse in pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(fine + coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(_stage(width, blocks) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[0])
        self.head = nn.Parameter(torch.randn(outputs, FOLD**2, widths[0], 1, 1) * 1e-3)

    def forward(self, x: Tensor, rows: Tensor, segment: Callable[..., Any]) -> Tensor:
        """(N, inputs, H, W) -> (N, rows, H, W)."""
        height, width = x.shape[-2:]
        x = self.stem(channels_last(functional.pixel_unshuffle(to_multiple(x, self.multiple), FOLD)))
        skips = []
        for level, stage in enumerate(self.down):
            x = segment(stage, self.reduce[level - 1](x) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            wide = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = segment(self.up[level], self.join[level](torch.cat([skips[level], wide], dim=1)))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(functional.conv2d(x, self.head[rows].flatten(0, 1)), FOLD)[..., :height, :width]


class _Block(nn.Module):
    """ConvNeXt block: 7 x 7 convolutions of single channels, then a perceptron at every pixel."""

    def __init__(self, width: int, *, kernel: int = 7, expansion: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        self.project.weight.data *= 0.3

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        output: Tensor = x + self.project(functional.gelu(self.expand(y))).permute(0, 3, 1, 2)
        return output


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(blocks)))


def worth_a_hit(chance_NLKHW: Tensor, known_NLHW: Tensor, share_N1K11: Tensor, *, bias: float = BIAS) -> Tensor:
    """Probability from which on to forecast a level, for the best critical success index that can be expected; NLK11.

    Over a field the index promised is hits / (area forecast + area expected - hits), where hits and the area expected
    are sums of probabilities. A pixel raises an index J if its probability exceeds J / (1 + J) (Dinkelbach, 1967,
    doi:10.1287/mnsc.13.7.492). What is hardly ever hit is not strewn about for that: the area forecast is at most
    ``bias`` times the area expected, and at most ``share`` of the area known.
    """
    chance, known = (part[..., ::SAMPLED, ::SAMPLED] for part in (chance_NLKHW, known_NLHW[:, :, None]))
    chance = (chance * known).contiguous()
    expected = chance.sum((-2, -1), keepdim=True)
    cut = torch.full_like(expected, 0.3)
    for _ in range(ROUNDS):
        over = chance >= cut
        hits, area = (chance * over).sum((-2, -1), keepdim=True), over.sum((-2, -1), keepdim=True)
        index = hits / (area + expected - hits).clamp(min=1e-6)
        cut = index / (1 + index)
    return cut.maximum(_cut_of_area(chance, (share_N1K11 * known.sum((-2, -1), keepdim=True)).minimum(bias * expected)))


def _cut_of_area(chance: Tensor, area: Tensor) -> Tensor:
    """Least probability that no more than so many pixels (..., 1, 1) reach, by bisection of its logit."""
    low, high = torch.full_like(area, -EXTREME), torch.full_like(area, EXTREME)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        many = (chance >= middle.sigmoid()).sum((-2, -1), keepdim=True) > area
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return high.sigmoid().masked_fill(area < 1, math.inf)  # not even where nobody looked


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Devices without mixed precision, such as the one of shapes alone, have none to switch off."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _sizes(count: int) -> Tensor:
    """Of the usual values of so many scales."""
    return torch.tensor([FINE] * (count - 1) + [ROUGH])


def _stronger(*parts: Tensor) -> Iterator[Tensor]:
    """Half of the samples as if there was more or less of their rain."""
    low, high = STRONGER
    more, chosen = torch.rand(2, len(parts[0]), 1, 1, 1, 1).to(parts[0])
    more = (low + (high - low) * more) * (chosen < 0.5)
    return (stronger(part, more) for part in parts)


def stronger(scaled: Tensor, more: Tensor | float) -> Tensor:
    """Return the same rain, with so much added on the scale; what is dry stays dry."""
    return torch.where(scaled > 0, (scaled + more).clamp(0, 1), scaled)


def carry(maps_NCHW: Tensor, way_NHW2: Tensor, *, outside: Literal["border", "zeros"] = "border") -> Tensor:
    """Each pixel's value from where its air was, see ``trajectories``."""
    return functional.grid_sample(maps_NCHW, way_NHW2, padding_mode=outside, align_corners=True)


def trajectories(frames_NTHW: Tensor, steps: int) -> Tensor:
    """Where the air over each pixel was 1, 2, ... steps ago, along the motion that ``extrapolation`` finds.

    Args:
        frames_NTHW: In [0, 1], oldest first; NaN is no data.
        steps: How many.

    Returns:
        (N, steps, H, W, 2): column and row, each in [-1, 1] over the grid, as ``grid_sample`` wants them.
    """
    height, width = frames_NTHW.shape[-2:]
    way_MHW2 = functional.interpolate(travelled(frames_NTHW, steps).flatten(0, 1), (height, width), mode="bilinear")
    rows, columns = (torch.arange(size, device=frames_NTHW.device).to(frames_NTHW) for size in (height, width))
    here_2HW = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    extent = torch.tensor([max(width - 1, 1), max(height - 1, 1)]).to(frames_NTHW)
    places = (here_2HW - way_MHW2).permute(0, 2, 3, 1) * (2 / extent) - 1
    output: Tensor = places.unflatten(0, (len(frames_NTHW), steps))
    return output


@torch.library.custom_op("nowcast::travelled", mutates_args=())
def travelled(frames_NTHW: Tensor, steps: int) -> Tensor:
    """How far rain came in 1, 2, ... steps, on the coarse grid of ``extrapolation``; (N, steps, 2, h, w) in pixels.

    An operator, because compilers cannot look into it.
    """
    frames = frames_NTHW.detach().to("cpu", torch.float32).numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        found = list(threads.map(lambda clip: np.stack(list(displacements(motion(clip), steps=steps))), frames))
    return torch.from_numpy(np.stack(found)).permute(0, 1, 4, 2, 3).contiguous().to(frames_NTHW)


@travelled.register_fake
def _(frames_NTHW: Tensor, steps: int) -> Tensor:
    return frames_NTHW.new_empty(len(frames_NTHW), steps, 2, *coarse_shape(*frames_NTHW.shape[-2:]))
