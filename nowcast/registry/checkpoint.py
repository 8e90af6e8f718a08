"""Checkpoint files: the weights of a network, and a card with everything needed to use them.

The format is safetensors: loading it runs no code. The card is in its header. A *prompt file* holds only the
weights that were tuned (``Nowcaster.tune``), and its card names the checkpoint with all others, its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nowcast.config import Frozen, ScalingSettings
from nowcast.core.code_digest import code_digest
from nowcast.core.errors import BadInput, OptionError
from nowcast.core.files import atomic_file
from nowcast.core.units import Scaling, get_quantity
from nowcast.models import Nowcaster, build, model_class

HEADER_KEY = "nowcast"


class Card(Frozen):
    """Model card: what the weights are, what they need and where they come from."""

    model: str
    """Name in the model table, with or without a size."""
    options: dict[str, Any]
    """Constructor keywords of the network beyond those of the size."""
    in_steps: int
    """Frames in."""
    out_steps: int
    """Frames out."""
    channels: int = 1
    """Channels of a frame."""
    quantity: str
    """Quantity of the input and of the forecast."""
    scaling: ScalingSettings
    """Maps the quantity to [0, 1]."""
    cadence_seconds: int
    """Time between frames; feeds with another one are refused."""
    recipe: dict[str, object] = Field(default={})
    """Resolved settings of the training."""
    data: tuple[dict[str, object], ...] = ()
    """Stores, versions, spans and licences trained on."""
    training: dict[str, object] = Field(default={})
    """Epochs, best validation loss, duration, device."""
    base: dict[str, str] | None = None
    """Of a prompt file: ``digest`` and ``path`` of the checkpoint that its weights belong to."""
    code_version: str
    """Version of the package that wrote it."""
    created: str
    """When, UTC."""


@dataclass(frozen=True)
class Model:
    """A network ready to forecast, from a checkpoint or from the table of models without weights."""

    name: str
    network: Nowcaster
    quantity: str | None
    """None: any quantity."""
    scaling: Scaling | None
    """None: the quantity's own."""
    cadence_seconds: int | None
    """None: any cadence."""
    digest: str
    """Digest of the checkpoint file, or name and digest of the code where there is none."""
    base: Model | None = None
    """Base of a prompt file."""


_shared: WeakValueDictionary[tuple[Path, int, str], Model] = WeakValueDictionary()
"""Checkpoints in use by (file, modification time, device); networks loaded as ``shared`` share their weights."""


def save(path: Path, network: Nowcaster, card: Card) -> Path:
    """Write a checkpoint atomically; if its card names a base, only the weights that were trained."""
    kept = learned(network) if card.base else network.state_dict()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    with atomic_file(path) as aside:
        save_file(weights, aside, metadata={HEADER_KEY: card.model_dump_json()})
        aside.chmod(0o644)  # safetensors makes it private
    return path


def learned(network: Nowcaster) -> dict[str, torch.Tensor]:
    """Return the weights that training changes, without those that ``tune`` froze."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def find(name: str | Path) -> Path:
    """Return the file itself, or the one of that name that comes with the package.

    Raises:
        BadInput: If there is neither; the message lists the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    if str(name) not in (shipped := _shipped()):
        raise BadInput(name, "no such checkpoint", f"give a file, or one that is shipped: {', '.join(shipped)}")
    return shipped[str(name)]


def _shipped() -> dict[str, Path]:
    return {file.name: file for file in sorted(Path(str(files(__package__) / "weights")).glob("*.safetensors"))}


def find_base(path: Path, base: Mapping[str, str]) -> Path:
    """Find the base of a prompt file: at its path, beside the prompt file by name or digest, or shipped.

    Raises:
        BadInput: If it is not found, or if the file that is found has another digest.
    """
    digest, name = base["digest"], Path(base["path"]).name
    places = [Path(base["path"]), path.with_name(name), path.with_name(f"{digest}.safetensors")]
    there = [place for place in (*places, _shipped().get(name)) if place and place.is_file()]
    for place in there:
        if _digest(place, place.stat().st_mtime_ns) == digest:
            return place
    other = f"{there[0]} has the digest {_digest(there[0], there[0].stat().st_mtime_ns)}" if there else "it is gone"
    raise BadInput(
        path,
        f"was tuned over {base['path']} with the digest {digest}, and {other}",
        f"bring that checkpoint back, or put it beside this file as {digest}.safetensors",
    )


def read_card(path: Path) -> Card:
    """Read the card without the weights.

    Raises:
        BadInput: If the file is not a checkpoint with a card.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
    except (OSError, SafetensorError) as error:
        raise BadInput(path, f"is no checkpoint ({error})", "give a .safetensors file of `nowcast train`") from None
    if text is None:
        raise BadInput(path, "holds weights without a card", "import it with the recipe it was trained with")
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise BadInput(path, f"card: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def load_checkpoint(name: str | Path, *, device: str = "cpu") -> Model:
    """Load a checkpoint by its path, or one that is shipped by its name, ready for ``forecast`` and ``predict``.

    Args:
        name: A file, or a shipped one such as ``lagrangian-radar.safetensors``.
        device: Torch device of the weights.

    Raises:
        BadInput: If it is not found, is not a checkpoint, or its weights do not fit its card.
    """
    return load(find(name), device=device)


def load(path: Path, *, device: str = "cpu", shared: bool = False) -> Model:
    """Load a checkpoint, or a prompt file with its base, in evaluation mode.

    Args:
        path: The file.
        device: Torch device of the weights.
        shared: Keep weights that several networks loaded this way have in common in memory only once; they must not
            be changed. Many prompt files of one base then need little more memory than one.

    Raises:
        BadInput: If the file is not a checkpoint, its weights do not fit its card, or its base is not found.
    """
    key = path.resolve(), path.stat().st_mtime_ns if path.is_file() else 0, device
    if shared and (held := _shared.get(key)):
        return held
    card = read_card(path)
    base = load(find_base(path, card.base), device=device, shared=shared) if card.base else None
    network = _with_weights(path, card, base).to(device).eval()
    name, scaling = card.model.partition(":")[0], card.scaling.build()
    model = Model(name, fast_layout(network), card.quantity, scaling, card.cadence_seconds, file_digest(path), base)
    if shared:
        _shared[key] = model
    return model


def _with_weights(path: Path, card: Card, base: Model | None) -> Nowcaster:
    """Build the network of a card with the weights of its file; those of the base are shared, not copied."""
    network = build(
        card.model, in_steps=card.in_steps, out_steps=card.out_steps, channels=card.channels, **card.options
    )
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if base:
        weights = base.network.state_dict() | weights
    try:
        network.load_state_dict(weights, assign=base is not None)
    except RuntimeError as error:
        raise BadInput(path, f"weights do not fit {card.model}: {str(error).splitlines()[-1].strip()}") from None
    return network


def adopt(network: Nowcaster, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Load the weights whose name and shape fit, of a checkpoint that may have other lengths or channels.

    Returns:
        Names of the weights of the network for which there is none.
    """
    own = network.state_dict()
    fitting = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
    network.load_state_dict(own | fitting)
    return [name for name in own if name not in fitting]


def reference(name: str, *, in_steps: int, out_steps: int, channels: int = 1) -> Model:
    """Build a model without weights from the table; its digest is that of its code.

    Raises:
        OptionError: If the name is unknown, or names a network that needs a checkpoint.
    """
    if model_class(name).trainable:
        raise OptionError(f"{name} is a network: give its checkpoint file instead of its name.")
    network = build(name, in_steps=in_steps, out_steps=out_steps, channels=channels).eval()
    return Model(name, network, None, None, None, f"{name}-{code_digest(type(network).__module__)}")


def predict(model: Model, past: np.ndarray, *, quantity: str, leads: int, clip: bool = True) -> np.ndarray:
    """Run a model on physical fields.

    If the network makes fewer frames than asked for, its forecast is its next input.

    Args:
        model: Built for ``len(past)`` frames.
        past: (time, y, x), or (time, channel, y, x) of a video, in the model's quantity, NaN = no data.
        quantity: Name of that quantity.
        leads: Number of lead times.
        clip: Clip forecasts to the range of the network's scaling.

    Returns:
        (leads, y, x) or (leads, channel, y, x) float32 in the same unit, NaN = no data; for grey frames a colour
        network gives the mean of its channels.
    """
    frames = _encoded(model, past, quantity)
    with torch.inference_mode():
        return _decoded(model, _rolled_out(model, frames, [], leads)[:, :leads], past, quantity, clip=clip)


@dataclass(frozen=True)
class Distribution:
    """Forecast of a network that ``gives_probabilities``."""

    values: np.ndarray
    """(leads, y, x) float32, as ``predict`` returns it."""
    thresholds: np.ndarray
    """(threshold,) in the unit of the values, ascending."""
    exceedance: np.ndarray
    """(threshold, leads, y, x) float32 in [0, 1]: probability that each is reached; NaN where it is unknown, and beyond
    the lead times of one pass of the network."""


def predict_distribution(model: Model, past: np.ndarray, *, quantity: str, leads: int) -> Distribution:
    """Run a network that ``gives_probabilities`` once, for forecast and probabilities; see ``predict``."""
    frames = _encoded(model, past, quantity)
    with torch.inference_mode():
        first, chance_NLKHW, known_NLHW = model.network.distribution(frames)
        values = _decoded(model, _rolled_out(model, frames, [first], leads)[:, :leads], past, quantity)
        chance_KLHW = chance_NLKHW[0].masked_fill(~known_NLHW[0, :, None], torch.nan).transpose(0, 1)[:, :leads]
        exceedance = np.full((len(chance_KLHW), *values.shape), np.nan, np.float32)
        exceedance[:, : chance_KLHW.shape[1]] = chance_KLHW.float().cpu().numpy()
    thresholds = _scaling(model, quantity).decode(model.network.levels.cpu().numpy())
    return Distribution(values, thresholds, exceedance)


def _rolled_out(model: Model, frames: torch.Tensor, made: list[torch.Tensor], leads: int) -> torch.Tensor:
    """Extend ``made`` to at least ``leads`` frames BTCHW by running the network on the newest frames."""
    network = model.network
    while sum(part.shape[1] for part in made) < leads:
        newest = torch.cat([frames, *made], dim=1)[:, -network.in_steps :]
        made = [*made, network(newest)]
    return torch.cat(made, dim=1)


def _decoded(
    model: Model, future_BTCHW: torch.Tensor, past: np.ndarray, quantity: str, *, clip: bool = True
) -> np.ndarray:
    """Decode frames to physical values; no data where the newest frame has none, unless the network handles that."""
    network, colour = model.network, past.ndim == 4 and past.shape[1] > 1
    future = future_BTCHW[0].float() if colour else future_BTCHW[0].mean(1, keepdim=past.ndim == 4, dtype=torch.float32)
    values = _scaling(model, quantity).decode(future.cpu().numpy(), clip=clip and network.trainable)
    return values if network.handles_missing else np.where(np.isnan(past[-1]), np.float32(np.nan), values)


def clipped(model: Model, values: np.ndarray, *, quantity: str) -> np.ndarray:
    """Clip a forecast of ``predict`` to the range of the network's scaling, as it is without ``clip=False``."""
    if not model.network.trainable:
        return values
    return np.asarray(np.clip(values, *_scaling(model, quantity).decode(np.array([0.0, 1.0]))))


def _scaling(model: Model, quantity: str) -> Scaling:
    return model.scaling or get_quantity(quantity).scaling


def _encoded(model: Model, past: np.ndarray, quantity: str) -> torch.Tensor:
    """Encode physical fields as input of the network, BTCHW on its device."""
    network = model.network
    clip = network.trainable  # models that only move values must not clip them to the range of a scale
    frames = torch.from_numpy(_scaling(model, quantity).encode(past, clip=clip))[None]
    frames = frames if past.ndim == 4 else frames[:, :, None]
    if frames.shape[2] == 1:
        frames = frames.expand(-1, -1, network.channels, -1, -1)  # grey for a colour network, as in training
    if not network.handles_missing:
        frames = frames.nan_to_num(0.0)
    return frames.to(next(network.parameters(), frames).device)


LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of dimensions of a convolution's weight -> its memory format."""


def fast_layout(network: Nowcaster) -> Nowcaster:
    """Convert weights to channels last: a third faster on CPUs, and the layout of tensor cores."""
    for weight in network.parameters():
        if weight.ndim in LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=LAYOUTS[weight.ndim])
    return network


@lru_cache(maxsize=64)
def _digest(path: Path, modified: int) -> str:
    """Compute the digest of a file once, since it may have gigabytes."""
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Compute the digest of a file's bytes: BLAKE2b, 16 hexadecimal digits."""
    with path.open("rb") as file:
        state = blake2b(digest_size=8)
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
