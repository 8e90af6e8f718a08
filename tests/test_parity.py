"""Our networks compute the functions of the official implementations; importing their weights works."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from models.convlstm import ConvGRU, ConvLSTM
from models.official import SOURCES, find, load
from models.recurrent import Recurrent
from tests import parity_pack

SHARED = Path(__file__).parents[2] / "shared" / "parity"


@pytest.fixture(scope="module", params=SOURCES)
def case(request):
    """(source, pack, its official state dict, our network with these weights)"""
    pack = parity_pack.read(request.param)
    weights = pack.weights()
    return request.param, pack, weights, load(request.param, weights, pack.config)


def only(case, *sources: str):
    """The pack and the network, where the case is one of ``sources``."""
    source, pack, _, model = case
    if source not in sources:
        pytest.skip(f"not for {source}")
    return pack, model


def test_the_draw_is_the_recorded_one(case):
    _, pack, weights, _ = case
    drawn = sum(float(tensor.double().abs().sum()) for tensor in weights.values())
    assert drawn == pytest.approx(pack.meta["fingerprint"], rel=1e-9)


def test_forecast_matches_the_official_code(case):
    _, pack, _, model = case
    with torch.inference_mode():
        assert pack.excess(model(pack.frames)) <= 1


def test_what_is_made_of_the_past_matches_too(case):
    """Predictions of the input frames 1 and 2: states are handed on as they are in the official code."""
    _, pack, _, model = case
    if not isinstance(model, Recurrent) or "reconstruction" not in pack.outputs:
        pytest.skip("makes nothing of the past")
    with torch.inference_mode():
        assert pack.excess(model.roll_out(pack.frames, every=True)[:, :2], "reconstruction") <= 1


def test_size_is_the_official_one_without_what_has_no_effect(case):
    source, pack, weights, model = case
    names = find(source).names(model)
    used = {name for made in names.values() for name in ((made,) if isinstance(made, str) else made.names)}
    unused = sum(tensor.numel() for name, tensor in weights.items() if name not in used)
    assert unused <= sum(weights[name].numel() for name in pack.meta.get("without_effect", []) if name in weights)
    assert sum(parameter.numel() for parameter in model.parameters()) + unused == pack.meta["parameters"]
    assert not model.training


def test_every_pack_has_its_source():
    assert set(SOURCES) == set(parity_pack.stems())


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
    torch.testing.assert_close(ours.inputs, theirs.inputs, rtol=0, atol=0)


# -- ConvLSTM and ConvGRU encoder-forecasters ----------------------------------------------------


def tiny(source: str, cell: type) -> tuple[dict, torch.nn.Module]:
    """A small network of ours and its tensors under their official names."""
    model = cell(in_steps=10, out_steps=10, channels=2, first_width=3, widths=(32, 64, 32), kernel=3)
    state = model.state_dict()
    return {official: state[ours] for ours, official in find(source).names(model).items()}, model


def test_encoder_forecaster_states(case):
    pack, model = only(case, "convlstm_ef", "convgru_ef")
    with torch.inference_mode():
        states = model.encode(pack.frames)
        assert pack.excess(states[0][0], "state1") <= 1
        assert pack.excess(states[2][0], "state3") <= 1
        assert pack.excess(model.forecaster[2](None, states[2])[0], "top_first") <= 1


@pytest.mark.parametrize(("source", "cell"), [("convlstm_ef", ConvLSTM), ("convgru_ef", ConvGRU)])
def test_scale_is_read_from_the_tensors(source, cell):
    weights, ours = tiny(source, cell)
    model = load(source, weights, {"T_in": 2, "T_out": 3})
    past = torch.rand(1, 2, 2, 8, 12)
    assert (model.in_steps, model.out_steps, model.channels) == (2, 3, 2)
    assert model(past).shape == (1, 3, 2, 8, 12)
    torch.testing.assert_close(model.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_checkpoint_with_prefix_is_taken(prefix):
    weights, _ = tiny("convgru_ef", ConvGRU)
    checkpoint = {"epoch": 3, "state_dict": {f"{prefix}{name}": value for name, value in weights.items()}}
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
    with pytest.raises(ValueError, match=r"not one of convlstm_ef: it misses 'encoder\.stage1"):
        load("convlstm_ef", {"weight": torch.zeros(1)})


def test_unknown_source_lists_the_known():
    with pytest.raises(ValueError, match="known: convlstm_ef, convgru_ef"):
        load("convlstm", {})
