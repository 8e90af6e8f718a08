"""GS2PM (MS2Pv3): SimVP with a UniFormer in the middle, one for many kinds of sequences, with a prompt around frames.

Code: github.com/miaomiaoToday/GS2PM-master (2024); the paper itself is not public. The translator: Li et al.
(2023), "UniFormer", arXiv:2201.09450; encoder and decoder: Tan et al. (2022), "SimVP", arXiv:2211.12509.

A learned border, the prompt, is added to all frames. In pretraining a second branch fills masked frames by
encoder and decoder alone, with neither translator nor prompt. Pretrained weights are fitted to a kind of
sequences by training all of them further, or the prompt alone.

Unlike the released code: any grid and any number of channels and forecast frames; the masked branch runs in
pretraining only; masks are drawn for every sample, by torch's generator; tuning the prompt (``tune("prompt")``)
changes nothing else, statistics of the normalisation included. As in that code, and unlike its words, the
"mask ratio" of 0.6 is the share that is kept, and branches of the translator are skipped at random even where
``drop_path`` is 0.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.losses import mae, mse
from nowcast.models.nowcaster import Published
from nowcast.models.simvp import SimVP


class Prompt(nn.Module):
    """Numbers to be learned around a frame, zero inside.

    Args:
        channels: Of a frame.
        grid: Height and width of the frames it is learned for.
        border: Its width, pixels.
    """

    def __init__(self, channels: int, grid: tuple[int, int], border: int) -> None:
        super().__init__()
        height, width = grid
        self.up, self.down = (nn.Parameter(torch.randn(1, channels, border, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(1, channels, height - 2 * border, border)) for _ in range(2))

    def forward(self, height: int, width: int) -> Tensor:
        """Return the prompt for frames of this size, (1, C, height, width); stretched where learned for another."""
        inner = self.up.shape[-1] - 2 * self.left.shape[-1]
        middle = torch.cat([self.left, self.left.new_zeros(*self.left.shape[:3], inner), self.right], dim=3)
        picture = torch.cat([self.up, middle, self.down], dim=2)
        if picture.shape[-2:] == (height, width):
            return picture
        return functional.interpolate(picture, (height, width), mode="bilinear", align_corners=False)


class GS2PM(SimVP):
    """Encoder, translator and decoder with a prompt around the frames.

    Args:
        width: Channels of the latent frames, even.
        hidden: Width of the translator.
        layers: Convolutions of the encoder, and of the decoder; every second one halves the grid.
        blocks: Of the translator, at least 2.
        ratio: Width of the channel mixing as a multiple of ``hidden``.
        heads: Of attention.
        drop_path: Probability that a sample skips a branch of the last block; earlier ones go towards 1 %.
        prompt_grid: Height and width that the prompt is learned for; it is stretched to frames of other sizes.
        border: Width of the prompt, pixels.
        at_once: All ``out_steps`` frames from one pass, by a translator that ends in as many; otherwise it makes as
            many as it reads, and reads them again for more.
        masked: Pretraining: the loss has the masked branch too. Tuning turns it off.
        kept: Share of the cells that the masked branch sees. The official code calls it mask ratio, but blanks
            the others.
        cell: Side of the cells, pixels.
        one_mask: One mask for the whole batch, as the official code draws it, instead of one per sample.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "GS2PM (2024), github.com/miaomiaoToday/GS2PM-master; no paper is public"
    LICENCE = "The official code and weights have no licence: ask their authors before you pass them on."
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "small": {"hidden": 128, "blocks": 8},
        "medium": {"hidden": 384, "blocks": 32},
        # The published table words the first large network and counts the second.
        "large-512": {"hidden": 512, "blocks": 64},
        "large-560": {"hidden": 560, "blocks": 70},
        "micro": {"width": 16, "hidden": 32, "blocks": 4},
        "debug": {
            "width": 8,
            "hidden": 16,
            "blocks": 3,
            "ratio": 2,
            "heads": 2,
            "prompt_grid": (16, 16),
            "border": 4,
            "cell": 4,
        },
    }
    tunings = ("full", "prompt")
    PUBLISHED: ClassVar = {
        "small": Published(10_379_779, channels=3),
        "medium": Published(99_899_395, channels=3),
        "large-512": Published(339_305_731, channels=3),
        "large-560": Published(441_917_059, channels=3),
    }

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 64,
        hidden: int = 128,
        layers: int = 4,
        blocks: int = 8,
        ratio: float = 8.0,
        heads: int = 8,
        drop_path: float = 0.0,
        prompt_grid: tuple[int, int] = (128, 128),
        border: int = 32,
        at_once: bool = False,
        masked: bool = True,
        kept: float = 0.6,
        cell: int = 16,
        one_mask: bool = False,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            middle="uniformer",
            width=width,
            hidden=hidden,
            layers=layers,
            blocks=blocks,
            ratio=ratio,
            heads=heads,
            drop_path=drop_path,
            at_once=at_once,
        )
        _check_prompt(prompt_grid, border, kept, cell)
        self.masked, self.kept, self.cell, self.one_mask = masked, kept, cell, one_mask
        self.frozen = False
        """True: all but the prompt stays as it is."""
        self.apply(_xavier)
        self.prompt = Prompt(channels, prompt_grid, border)

    def tune(self, method: str) -> None:
        """``full``: all weights learn; ``prompt``: it alone, the rest needs no gradient. Both on the forecast alone."""
        super().tune(method)
        self.masked, self.frozen = False, method == "prompt"
        self.requires_grad_(not self.frozen)
        self.prompt.requires_grad_(True)

    def train(self, mode: bool = True) -> GS2PM:
        """Switches to training; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for part in self.children():
                part.eval()
        return self

    def block(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW, with the prompt added, to one block of future frames."""
        return super().block(past_BTCHW + self.prompt(*past_BTCHW.shape[-2:]))

    def fill(self, masked_BTCHW: Tensor) -> Tensor:
        """Return the masked branch: frames with holes in, whole frames out; sides divide by ``multiple``."""
        filled_NCHW = self.decode_all(*self.encode_all(masked_BTCHW.flatten(0, 1)))
        return torch.unflatten(filled_NCHW, 0, masked_BTCHW.shape[:2])

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Error of the forecast, and in pretraining of the past seen through a mask."""
        loss = self.compare(self(past_BTCHW), future_BTCHW, mask_BTCHW)
        if not self.masked:
            return loss
        filled = self.on_any_grid(self.fill, past_BTCHW * self.seen(past_BTCHW))
        return loss + self.compare(filled, past_BTCHW)

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Mean squared plus mean absolute error."""
        return mse(made_BTCHW, truth_BTCHW, weight_BTCHW) + mae(made_BTCHW, truth_BTCHW, weight_BTCHW)

    def seen(self, past_BTCHW: Tensor) -> Tensor:
        """Draws what the masked branch sees: 1 in ``kept`` of the cells, 0 in the others, all frames alike."""
        batch, (height, width) = 1 if self.one_mask else len(past_BTCHW), past_BTCHW.shape[-2:]
        rows, columns = math.ceil(height / self.cell), math.ceil(width / self.cell)
        order = torch.rand(batch, rows * columns, device=past_BTCHW.device).argsort(dim=1)
        seen = (order < math.ceil(self.kept * rows * columns)).to(past_BTCHW.dtype).view(batch, 1, 1, rows, columns)
        seen = seen.repeat_interleave(self.cell, dim=3).repeat_interleave(self.cell, dim=4)
        return seen[..., :height, :width]


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _check_prompt(grid: tuple[int, int], border: int, kept: float, cell: int) -> None:
    if border < 1 or min(grid) <= 2 * border:
        raise OptionError(f"border must be >= 1 and leave an inside in prompt_grid {tuple(grid)}, got {border}.")
    if not 0 < kept <= 1 or cell < 1:
        raise OptionError(f"kept must lie in (0, 1] and cell be >= 1, got {kept} and {cell}.")
