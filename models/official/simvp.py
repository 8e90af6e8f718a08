"""github.com/A4Bio/SimVP (no licence file): the first SimVP."""

from __future__ import annotations

from typing import Any

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Source, State, renamed
from nowcast.models.official.openstl import INCEPTION, UNITS, inception, lengths, stem
from nowcast.models.simvp import SimVP


def _options(tensors: State, config: Config) -> dict[str, Any]:
    found = stem(tensors)
    stacked = tensors["hid.enc.0.conv1.weight"].shape[1]
    return found | inception(tensors) | lengths(stacked, found["width"], config) | {"original": True}


def _names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, UNITS | INCEPTION)


SIMVP_V1 = Source(SimVP, _options, _names)
