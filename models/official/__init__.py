"""Weights of the official implementations, loaded into our networks.

    model = load("convlstm_ef", torch.load("checkpoint_96_0.001.pth.tar", weights_only=True))

One file per official code base, one line of ``SOURCES`` per network of it. The scale of the network is read
from the tensors; what shapes cannot tell comes from ``config``, in the words of the official code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from nowcast.core.errors import OptionError, WeightsError
from nowcast.models import MODELS
from nowcast.models.nowcaster import Nowcaster

SOURCES = {
    "convlstm_ef": "jhhuang96:CONVLSTM",
    "convgru_ef": "jhhuang96:CONVGRU",
    "cms_lstm_f3": "cms_lstm:CMS_LSTM",
    "cms_lstm_f5": "cms_lstm:CMS_LSTM",
    "e3d_lstm": "e3d_lstm:E3D_LSTM",
    "sa_convlstm": "tianchi:SA_CONVLSTM",
    "sa_convlstm_seq": "tsugumi:SA_CONVLSTM_SEQ",
    "predrnn": "thuml:PREDRNN",
    "predrnn_layernorm": "thuml:PREDRNN",
    "predrnn_v2": "thuml:PREDRNN_V2",
    "motionrnn": "thuml:MOTIONRNN",
    "predrnn_pp": "openstl_recurrent:PREDRNN_PP",
    "mim": "openstl_recurrent:MEMORY_IN_MEMORY",
    "convlstm_openstl": "openstl_recurrent:CONVLSTM_STACKED",
    "gs2pm_small": "gs2pm:PRETRAINED",
    "gs2pm_medium": "gs2pm:PRETRAINED",
    "gs2pm_small_tuned": "gs2pm:TUNED",
    "trajgru": "hzzone:TRAJGRU",
    "phydnet": "openstl:PHYDNET",
    "mau": "openstl:MAU_UNITS",
    "simvp_v1": "simvp:SIMVP_V1",
    "simvp_incepu": "openstl:SIMVP",
    "simvp_v2_gsta": "openstl:SIMVP",
    "tau": "openstl:TEMPORAL_ATTENTION",
    "unet": "smaat_unet:UNET",
    "smaat_unet": "smaat_unet:SMAAT_UNET",
    "swin_lstm_b": "swin_lstm:SWIN_LSTM_B",
    "swin_lstm_d": "swin_lstm:SWIN_LSTM_D",
    "lmc_memory": "lmc_memory:LMC_MEMORY",
}
"""Stem of a parity pack -> file and name of its ``Source``."""

PREFIXES = ("module.", "model.")
"""Put before every name by data-parallel training and by Lightning."""

State = Mapping[str, Tensor]
Config = Mapping[str, object]
Options = dict[str, Any]
"""Constructor keywords."""


@dataclass(frozen=True)
class Made:
    """A tensor of ours that is put together from several official ones, or laid out anew."""

    names: tuple[str, ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class Source:
    """How one official code base names and sizes a network."""

    model: type[Nowcaster]
    options: Callable[[State, Config], Options]
    """(official state dict, config) -> constructor keywords of ``model``."""
    names: Callable[[Nowcaster], Mapping[str, str | Made]]
    """Our network -> for every tensor of its state dict the official one. ``renamed`` makes it from rules."""
    unused: str = r"(?!)"
    """Pattern of official tensors that cannot change the output, or that we compute: they may be there or not."""


def renamed(model: Nowcaster, rules: Mapping[str, str]) -> dict[str, str]:
    """Official names of all our tensors: every rule (pattern -> replacement) that matches is applied, in order."""
    names = {}
    for ours in model.state_dict():
        official = ours
        for pattern, replacement in rules.items():
            official = re.sub(pattern, replacement, official)
        names[ours] = official
    return names


def find(source: str) -> Source:
    """Return the description of an official code base.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if source not in SOURCES:
        raise OptionError(f"Unknown source {source!r}; known: {', '.join(SOURCES)}.")
    module, _, name = SOURCES[source].partition(":")
    output: Source = getattr(import_module(f"nowcast.models.official.{module}"), name)
    return output


def load(source: str, state_dict: Mapping[str, Any], config: Config | None = None) -> Nowcaster:
    """Build the network that the official weights belong to, in eval mode.

    Args:
        source: A key of ``SOURCES``.
        state_dict: Official tensors by name, or the checkpoint that holds them under ``state_dict``;
            a ``module.`` or ``model.`` prefix is dropped.
        config: What shapes cannot tell, such as lengths, in the words of the official code.

    Raises:
        ValueError: Unknown source, or tensors that are missing, left over or of another shape.
    """
    return _built(find(source), source, state_dict, config or {})[1]


def build(source: str, state_dict: Mapping[str, Any], config: Config | None = None) -> tuple[str, Options, Nowcaster]:
    """Like ``load``, and what ``nowcast.models.build`` would be told: (name in ``MODELS``, keywords, network)."""
    known = find(source)
    settings, network = _built(known, source, state_dict, config or {})
    place = f"{known.model.__module__.removeprefix('nowcast.models.')}:{known.model.__name__}"
    return next(name for name, where in MODELS.items() if where == place), settings, network


def _built(known: Source, source: str, state_dict: Mapping[str, Any], config: Config) -> tuple[Options, Nowcaster]:
    """Return the constructor keywords, and the network with its weights."""
    tensors = _stripped(state_dict.get("state_dict", state_dict))
    try:
        settings = known.options(tensors, config)
    except (KeyError, StopIteration, IndexError) as error:
        raise WeightsError(f"The state dict is not one of {source}: it misses {error}.") from None
    model = known.model(**settings)
    names = known.names(model)
    _check_names(source, tensors, names, known.unused)
    ours = {key: _made(tensors, official) for key, official in names.items() if _is_there(tensors, official)}
    _check_shapes(source, ours, names, model)
    model.load_state_dict(model.state_dict() | ours)
    return settings, model.eval()


def _stripped(tensors: State) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _parts(official: str | Made) -> tuple[str, ...]:
    return official.names if isinstance(official, Made) else (official,)


def _is_there(tensors: State, official: str | Made) -> bool:
    return all(name in tensors for name in _parts(official))


def _made(tensors: State, official: str | Made) -> Tensor:
    if isinstance(official, Made):
        return official.make(*(tensors[name] for name in official.names))
    return tensors[official]


def _check_names(source: str, tensors: State, names: Mapping[str, str | Made], unused: str) -> None:
    wanted = {name for official in names.values() for name in _parts(official)}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # BatchNorm works without
    missing = sorted(wanted - counters - tensors.keys())
    left_over = sorted(name for name in tensors.keys() - wanted if not re.search(unused, name))
    faults = [f"{fault} {_few(found)}" for fault, found in (("misses", missing), ("also holds", left_over)) if found]
    if faults:
        raise WeightsError(f"The state dict is not one of {source}: it {' and '.join(faults)}.")


def _few(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _check_shapes(source: str, ours: State, names: Mapping[str, str | Made], model: Nowcaster) -> None:
    want = model.state_dict()
    for key, tensor in ours.items():
        if tensor.shape != want[key].shape:
            official, expected = ", ".join(_parts(names[key])), tuple(want[key].shape)
            raise WeightsError(
                f"{official} of {source} has shape {tuple(tensor.shape)}; the other tensors ask for {expected}."
            )
