"""Our networks compute the functions of the official implementations; importing their weights works."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from models.convlstm import ConvGRU, ConvLSTM
from models.official import SOURCES, load
from tests import parity_pack

SHARED = Path(__file__).parents[2] / "shared" / "parity"


@pytest.fixture(scope="module", params=SOURCES)
def case(request):
    """(pack, its official state dict, our network with these weights)"""
    pack = parity_pack.read(request.param)
    weights = pack.weights()
    return pack, weights, load(request.param, weights, pack.config)


def tiny(source: str, cell: type) -> tuple[dict, torch.nn.Module]:
    """A small network of ours and its tensors under their official names."""
    model = cell(in_steps=10, out_steps=10, channels=2, first_width=3, widths=(32, 64, 32), kernel=3)
    state = model.state_dict()
    return {official: state[ours] for official, ours in SOURCES[source].names.items()}, model


def test_the_draw_is_the_recorded_one(case):
    pack, weights, _ = case
    drawn = sum(float(tensor.double().abs().sum()) for tensor in weights.values())
    assert drawn == pytest.approx(pack.meta["fingerprint"], rel=1e-9)


def test_forecast_and_states_match_the_official_code(case):
    pack, _, model = case
    with torch.inference_mode():
        states = model.encode(pack.frames)
        assert pack.excess(states[0][0], "state1") <= 1
        assert pack.excess(states[2][0], "state3") <= 1
        assert pack.excess(model.forecaster[2](None, states[2])[0], "top_first") <= 1
        assert pack.excess(model(pack.frames), "prediction") <= 1


def test_size_is_the_published_one(case):
    pack, _, model = case
    assert sum(parameter.numel() for parameter in model.parameters()) == pack.meta["parameters"]
    assert not model.training


@pytest.mark.parametrize("source", SOURCES)
def test_shared_recipe_draws_the_same(source):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    spec = importlib.util.spec_from_file_location("recipe", SHARED / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "recipe", recipe)  # its dataclass looks itself up there
        spec.loader.exec_module(recipe)
        theirs, ours = recipe.load_pack(SHARED / f"{source}.npz"), parity_pack.read(source)
        torch.testing.assert_close(ours.weights(), theirs.weights(), rtol=0, atol=0)
    assert torch.equal(ours.frames, theirs.inputs["frames"])


@pytest.mark.parametrize(("source", "cell"), [("convlstm_ef", ConvLSTM), ("convgru_ef", ConvGRU)])
def test_scale_is_read_from_the_tensors(source, cell):
    weights, ours = tiny(source, cell)
    model = load(source, weights, {"T_in": 2, "T_out": 3})
    past = torch.rand(1, 2, 2, 8, 12)
    assert (model.in_steps, model.out_steps, model.channels) == (2, 3, 2)
    assert model(past).shape == (1, 3, 2, 8, 12)
    torch.testing.assert_close(model.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_checkpoint_with_prefix_is_taken():
    weights, _ = tiny("convgru_ef", ConvGRU)
    checkpoint = {
        "epoch": 3,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "optimizer": {},
    }
    assert load("convgru_ef", checkpoint).out_steps == 10


def test_wrong_tensors_are_named_in_one_sentence():
    weights, _ = tiny("convlstm_ef", ConvLSTM)
    del weights["encoder.rnn2.conv.0.bias"]
    with pytest.raises(ValueError, match=r"misses encoder\.rnn2\.conv\.0\.bias and also holds head\.weight\.$"):
        load("convlstm_ef", weights | {"head.weight": torch.zeros(1)})
    weights, _ = tiny("convlstm_ef", ConvLSTM)
    weights["encoder.rnn2.conv.0.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"encoder\.rnn2\.conv\.0\.bias of convlstm_ef has shape \(7,\).*\(256,\)"):
        load("convlstm_ef", weights)


def test_unknown_source_lists_the_known():
    with pytest.raises(ValueError, match="known: convlstm_ef, convgru_ef"):
        load("convlstm", {})
