"""A checkpoint is one file that loads without running code and refuses what it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import build
from nowcast import checkpoint
from nowcast.checkpoint import Card
from nowcast.config import ScalingSettings
from nowcast.cube import BadInput

OPTIONS = {"first_width": 4, "widths": (32, 32, 32), "kernel": 3, "strides": (2, 2, 2)}
CARD = Card(model="convgru", options=OPTIONS, in_steps=2, out_steps=3, quantity="rainfall_rate",
            scaling=ScalingSettings(kind="decibel", low=0.1, high=100), cadence_seconds=300,
            code_version="test", created="now")  # fmt: skip


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


@pytest.mark.parametrize("path", sorted((Path(checkpoint.__file__).parent / "weights").glob("*.safetensors")), ids=str)
def test_shipped_networks_say_where_they_come_from(path: Path) -> None:
    assert path.stat().st_size <= 8_000_000
    card = checkpoint.read_card(path)
    assert card.data
    assert all(span["licence"] and span["frames"] for span in card.data)
    assert card.training["epochs"]
    assert card.recipe["trainer"]
    field = np.random.default_rng(0).gamma(0.5, 2, (card.in_steps, 70, 90)).astype(np.float32)
    future = checkpoint.predict(checkpoint.load(path), field, quantity_name=card.quantity, leads=card.out_steps)
    assert np.isfinite(future).all()
    assert future.min() >= 0


def test_a_network_has_no_reference() -> None:
    with pytest.raises(ValueError, match="give its checkpoint file"):
        checkpoint.reference("convlstm", in_steps=2, out_steps=2, code_version="test")


def test_no_data_stays_no_data_and_dry_stays_dry() -> None:
    model = checkpoint.reference("persistence", in_steps=1, out_steps=2, code_version="test")
    past = np.full((1, 4, 4), 0.0, np.float32)
    past[0, 0, 0] = np.nan
    past[0, 1, 1] = 5.0
    future = checkpoint.predict(model, past, quantity_name="rainfall_rate", leads=2)
    assert np.isnan(future[:, 0, 0]).all()
    assert (future[:, 2:] == 0).all()
    assert future[:, 1, 1] == pytest.approx([5, 5], rel=1e-5)
