"""The networks: torch only, one file per paper, one line in the table."""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from nowcast.core.errors import OptionError

if TYPE_CHECKING:
    from nowcast.models.losses import Loss
    from nowcast.models.nowcaster import Nowcaster

MODELS = {
    "persistence": "persistence:Persistence",
    "extrapolation": "extrapolation:Extrapolation",
    "sprog": "sprog:SPROG",
    "steps": "steps:STEPS",
    "convlstm": "convlstm:ConvLSTM",
    "convgru": "convlstm:ConvGRU",
    "simvp": "simvp:SimVP",
    "tau": "tau:TAU",
    "unet": "unet:UNet",
    "lagrangian": "lagrangian:Lagrangian",
    "smaat-unet": "smaat_unet:SmaAtUNet",
    "cms-lstm": "cms_lstm:CMSLSTM",
    "e3d-lstm": "e3d_lstm:E3DLSTM",
    "sa-convlstm": "sa_convlstm:SAConvLSTM",
    "sa-convlstm-seq": "sa_convlstm:SASequence",
    "predrnn": "predrnn:PredRNN",
    "predrnn-v2": "predrnn_v2:PredRNNv2",
    "predrnn-pp": "predrnn_pp:PredRNNpp",
    "mim": "mim:MIM",
    "motionrnn": "motionrnn:MotionRNN",
    "convlstm-stacked": "convlstm_stacked:StackedConvLSTM",
    "gs2pm": "gs2pm:GS2PM",
    "trajgru": "trajgru:TrajGRU",
    "phydnet": "phydnet:PhyDNet",
    "mau": "mau:MAU",
    "earthformer": "earthformer:Earthformer",
    "swinlstm-b": "swin_lstm:SwinLSTMB",
    "swinlstm-d": "swin_lstm:SwinLSTMD",
    "lmc-memory": "lmc_memory:LMCMemory",
}

LOSSES = {
    "mse": "losses:mse",
    "mae": "losses:mae",
    "balanced": "losses:balanced",
    "multiscale": "losses:multiscale",
    "spectral": "losses:spectral",
    "fss": "losses:fss",
    "crps": "losses:crps",
    "bce": "losses:bce",
}

__all__ = ["LOSSES", "MODELS", "Nowcaster", "build", "loss", "loss_options", "model_class"]


def __getattr__(name: str) -> type[Nowcaster]:
    """``Nowcaster`` when it is asked for: who only wants the names of the networks is spared a second of torch."""
    if name != "Nowcaster":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nowcast.models.nowcaster import Nowcaster

    return Nowcaster


def model_class(name: str) -> type[Nowcaster]:
    """Return the class behind ``name`` (or ``name:size``).

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    stem = name.partition(":")[0]
    if stem not in MODELS:
        raise OptionError(f"Unknown model {stem!r}; known: {', '.join(MODELS)}.")
    module, _, attribute = MODELS[stem].partition(":")
    output: type[Nowcaster] = getattr(import_module(f"nowcast.models.{module}"), attribute)
    return output


def build(name: str, *, in_steps: int, out_steps: int, channels: int = 1, **options: object) -> Nowcaster:
    """Build a network by its table name, optionally with a published size: ``convlstm:small``.

    Args:
        name: ``model`` or ``model:size``; sizes are the ``SIZES`` of the class.
        in_steps: Frames in.
        out_steps: Frames out.
        channels: Channels of a frame.
        options: Constructor keywords of the network; they override those of the size.

    Raises:
        ValueError: Unknown model, size or option; the message lists the known ones.
    """
    kind, _, size = name.partition(":")
    model = model_class(kind)
    if size and size not in model.SIZES:
        raise OptionError(f"Unknown size {size!r} of {kind}; known: {', '.join(model.SIZES) or 'none'}.")
    settings = (model.SIZES[size] if size else {}) | options
    unknown = sorted(set(settings) - set(model.options()))
    if unknown:
        known = ", ".join(model.options()) or "none"
        raise OptionError(f"Unknown option {', '.join(unknown)} of {kind}; known: {known}.")
    return model(in_steps=in_steps, out_steps=out_steps, channels=channels, **settings)


def loss(name: str, **options: object) -> Loss:
    """Return a loss by its table name, its options set.

    Raises:
        ValueError: Unknown loss or option, or one that is missing; the message lists the known ones.
    """
    known = loss_options(name)
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(f"Unknown option {', '.join(unknown)} of {name}; known: {', '.join(known) or 'none'}.")
    if missing := [key for key, needed in known.items() if needed and key not in options]:
        raise OptionError(f"Loss {name} needs {', '.join(missing)}.")
    module, _, function = LOSSES[name].partition(":")
    return partial(getattr(import_module(f"nowcast.models.{module}"), function), **options)


def loss_options(name: str) -> dict[str, bool]:
    """Keywords of a loss, and whether it needs them.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if name not in LOSSES:
        raise OptionError(f"Unknown loss {name!r}; known: {', '.join(LOSSES)}.")
    module, _, function = LOSSES[name].partition(":")
    found = inspect.signature(getattr(import_module(f"nowcast.models.{module}"), function)).parameters.values()
    return {one.name: one.default is one.empty for one in found if one.kind is one.KEYWORD_ONLY}
