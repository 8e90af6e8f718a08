"""A checkpoint is one file that loads without running code and refuses what it does not fit."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nowcast.config import ScalingSettings
from nowcast.core.errors import BadInput
from nowcast.models import build
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from tests.paths import ROOT

OPTIONS = {"first_width": 4, "widths": (32, 32, 32), "kernel": 3, "strides": (2, 2, 2)}
CARD = Card(
    model="convgru",
    options=OPTIONS,
    in_steps=2,
    out_steps=3,
    quantity="rainfall_rate",
    scaling=ScalingSettings(kind="decibel", low=0.1, high=100),
    cadence_seconds=300,
    code_version="test",
    created="now",
)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("convgru", in_steps=2, out_steps=3, **OPTIONS)


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    saved = network().eval()
    model = checkpoint.load(checkpoint.save(tmp_path / "net.safetensors", saved, CARD))
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.network.state_dict().items())
    assert (model.name, model.quantity, model.cadence_seconds) == ("convgru", "rainfall_rate", 300)
    assert checkpoint.read_card(tmp_path / "net.safetensors") == CARD.model_copy(
        update={"options": CARD.model_dump(mode="json")["options"]}
    )
    assert len(model.digest) == 16


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", "is no checkpoint"), (b"\x80\x04pickle", "is no checkpoint"), (None, "weights without a card")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "other.safetensors"
    if content is None:
        save_file({"weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=fault):
        checkpoint.load(path)


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "net.safetensors", network(), CARD.model_copy(update={"model": "convlstm"}))
    with pytest.raises(BadInput, match="weights do not fit convlstm"):
        checkpoint.load(path)


def test_a_name_that_is_nowhere_lists_what_is_shipped() -> None:
    with pytest.raises(BadInput, match="no such checkpoint; give a file, or one that is shipped"):
        checkpoint.find("nowhere.safetensors")


@pytest.mark.parametrize("path", sorted((ROOT / "nowcast/registry/weights").glob("*.safetensors")), ids=str)
def test_shipped_networks_say_where_they_come_from(path: Path) -> None:
    assert path.stat().st_size <= 8_000_000
    card = checkpoint.read_card(path)
    assert card.data
    assert all(span["licence"] and span["frames"] for span in card.data)
    assert card.training["epochs"]
    assert card.recipe["trainer"]
    frame = np.random.default_rng(0).gamma(0.5, 2, (1, 70, 90)).astype(np.float32)
    field = frame.repeat(card.in_steps, axis=0)  # nothing moves, so nothing unknown moves in
    future = checkpoint.predict(checkpoint.load(path), field, quantity=card.quantity, leads=card.out_steps)
    assert np.isfinite(future).all()
    assert future.min() >= 0


def test_a_network_has_no_reference() -> None:
    with pytest.raises(ValueError, match="give its checkpoint file"):
        checkpoint.reference("convlstm", in_steps=2, out_steps=2)


def test_no_data_stays_no_data_and_dry_stays_dry() -> None:
    model = checkpoint.reference("persistence", in_steps=1, out_steps=2)
    past = np.full((1, 4, 4), 0.0, np.float32)
    past[0, 0, 0] = np.nan
    past[0, 1, 1] = 5.0
    future = checkpoint.predict(model, past, quantity="rainfall_rate", leads=2)
    assert np.isnan(future[:, 0, 0]).all()
    assert (future[:, 2:] == 0).all()
    assert future[:, 1, 1] == pytest.approx([5, 5], rel=1e-5)


# --- prompt files ---------------------------------------------------------------------------------

PROMPTED = CARD.model_copy(update={"model": "gs2pm:debug", "options": {}})


def prompted(folder: Path, number: int = 0) -> tuple[Path, Path]:
    """A base, and a prompt file over it that is filled with a number."""
    torch.manual_seed(0)
    tuned = build("gs2pm:debug", in_steps=2, out_steps=3)
    base = folder / "base.safetensors"
    if not base.exists():
        checkpoint.save(base, tuned, PROMPTED)
    tuned.tune("prompt")
    with torch.no_grad():
        tuned.prompt.up.fill_(number)
    over = {"digest": checkpoint.file_digest(base), "path": str(base)}
    return base, checkpoint.save(
        folder / f"prompt{number}.safetensors", tuned, PROMPTED.model_copy(update={"base": over})
    )


def test_a_prompt_file_holds_the_prompt_alone_and_loads_over_its_base(tmp_path: Path) -> None:
    base, path = prompted(tmp_path, 3)
    assert path.stat().st_size < base.stat().st_size / 5
    below, tuned = checkpoint.load(base), checkpoint.load(path)
    assert tuned.digest == checkpoint.file_digest(path) != below.digest
    ours, theirs = tuned.network.state_dict(), below.network.state_dict()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"prompt.up"}
    assert (tuned.network.prompt.up == 3).all()
    assert not tuned.network.training


def test_prompts_of_one_base_share_its_weights_in_memory(tmp_path: Path) -> None:
    base, one = prompted(tmp_path, 1)
    _, two = prompted(tmp_path, 2)
    first, second, below = (checkpoint.load(path, shared=True) for path in (one, two, base))
    places = [dict(model.network.named_parameters()) for model in (first, second, below)]
    for name, weight in places[0].items():
        same = {weight.data_ptr(), *(place[name].data_ptr() for place in places[1:])}
        assert len(same) == (3 if name.startswith("prompt.") else 1)
    assert checkpoint.load(one, shared=True) is first
    alone = checkpoint.load(one).network
    assert not {weight.data_ptr() for weight in alone.parameters()} & {w.data_ptr() for w in places[2].values()}


def test_a_shared_base_is_forgotten_with_the_last_network_that_uses_it(tmp_path: Path) -> None:
    _, path = prompted(tmp_path)
    before = len(checkpoint._shared)
    model = checkpoint.load(path, shared=True)
    assert len(checkpoint._shared) == before + 2
    del model
    gc.collect()
    assert len(checkpoint._shared) == before


def test_a_prompt_finds_its_base_beside_it(tmp_path: Path) -> None:
    base, path = prompted(tmp_path)
    there = tmp_path / "elsewhere"
    there.mkdir()
    path = path.rename(there / path.name)
    base.rename(there / base.name)
    assert checkpoint.load(path).base
    (there / base.name).rename(there / f"{checkpoint.read_card(path).base['digest']}.safetensors")
    assert checkpoint.load(path).base


def test_a_prompt_over_another_base_is_refused(tmp_path: Path) -> None:
    base, path = prompted(tmp_path)
    digest = checkpoint.file_digest(base)
    with torch.no_grad():
        other = build("gs2pm:debug", in_steps=2, out_steps=3)
    checkpoint.save(base, other, PROMPTED)
    with pytest.raises(BadInput, match=f"was tuned over .* with the digest {digest}, and .* has the digest"):
        checkpoint.load(path)
    base.unlink()
    with pytest.raises(BadInput, match=f"it is gone; bring that checkpoint back, or put it .* as {digest}.safetensors"):
        checkpoint.load(path)


def test_weights_that_fit_are_taken_over() -> None:
    trained, longer = (build("gs2pm:debug", in_steps=steps, out_steps=2) for steps in (2, 3))
    new = checkpoint.adopt(longer, trained.state_dict())
    assert {name.split(".")[0] for name in new} == {"translator"}
    assert {name.split(".")[1] for name in new} == {"0", "2"}
    assert torch.equal(longer.translator[1].block.mlp.fc1.weight, trained.translator[1].block.mlp.fc1.weight)
    assert checkpoint.adopt(build("gs2pm:debug", in_steps=2, out_steps=9), trained.state_dict()) == []


def test_colour_networks_are_given_grey_frames_and_their_channels_averaged() -> None:
    class Doubling(torch.nn.Module):
        """Red is the frame, green twice and blue three times as much."""

        in_steps, channels, trainable, handles_missing = 1, 3, True, False

        def forward(self, past: torch.Tensor) -> torch.Tensor:
            return past * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)

    model = checkpoint.Model("doubling", Doubling(), "intensity", None, None, "x")
    made = checkpoint.predict(model, np.full((1, 4, 4), 0.25, np.float32), quantity="intensity", leads=1)
    assert made.shape == (1, 4, 4)
    assert made == pytest.approx(0.5)
