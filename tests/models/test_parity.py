"""Our networks compute the functions of the official implementations; importing their weights works."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from nowcast.core.errors import OptionError, ShapeError
from nowcast.models import build
from nowcast.models.blocks import fold
from nowcast.models.convlstm import ConvGRU, ConvLSTM
from nowcast.models.official import SOURCES, Made, find, load
from nowcast.models.recurrent import Recurrent
from nowcast.models.sa_convlstm import _unrolled
from nowcast.models.swin_lstm import by_row
from nowcast.models.trajgru import TrajGRU
from tests import parity_pack


class Case(NamedTuple):
    """A source, its pack, the official state dict, and our network with these weights."""

    source: str
    pack: parity_pack.Pack
    weights: dict[str, torch.Tensor]
    model: Any


@pytest.fixture(scope="module")
def case(request) -> Case:
    pack = parity_pack.read(request.param)
    weights = pack.weights()
    return Case(request.param, pack, weights, load(request.param, weights, pack.config))


def for_sources(*sources: str) -> pytest.MarkDecorator:
    """Run a test once for each of the sources."""
    return pytest.mark.parametrize("case", sources, indirect=True, scope="module")


def with_reconstruction() -> list[str]:
    """Sources of recurrent networks whose pack holds predictions of input frames."""
    packs = {source: parity_pack.read(source) for source in SOURCES if issubclass(find(source).model, Recurrent)}
    return [source for source, pack in packs.items() if "reconstruction" in pack.outputs]


@for_sources(*SOURCES)
def test_the_draw_is_the_recorded_one(case):
    drawn = sum(float(tensor.double().abs().sum()) for tensor in case.weights.values())
    assert drawn == pytest.approx(case.pack.meta["fingerprint"], rel=1e-9)


@for_sources(*SOURCES)
def test_forecast_matches_the_official_code(case):
    with torch.inference_mode():
        assert case.pack.excess(case.model(case.pack.frames)) <= 1


@for_sources(*with_reconstruction())
def test_what_is_made_of_the_past_matches_too(case):
    """Predictions of the input frames 1 and 2: states are handed on as they are in the official code."""
    with torch.inference_mode():
        made = case.model.roll_out(case.pack.frames, every=True)
    assert case.pack.excess(made[:, :2], "reconstruction") <= 1


@for_sources(*SOURCES)
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


# -- ConvLSTM and ConvGRU encoder-forecasters ----------------------------------------------------


def tiny(source: str, cell: type) -> tuple[dict, torch.nn.Module]:
    """A small network of ours and its tensors under their official names."""
    model = cell(in_steps=10, out_steps=10, channels=2, first_width=3, widths=(32, 64, 32), kernel=3)
    state = model.state_dict()
    return {official: state[ours] for ours, official in find(source).names(model).items()}, model


@for_sources("convlstm_ef", "convgru_ef")
def test_encoder_forecaster_states(case):
    pack, model = case.pack, case.model
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


# -- TrajGRU -------------------------------------------------------------------------------------


@for_sources("trajgru")
def test_trajgru_states(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        states = model.encode(pack.frames)
    assert pack.excess(states[0][0], "state1") <= 1
    assert pack.excess(states[2][0], "state3") <= 1


@for_sources("trajgru")
def test_trajgru_samples_as_the_port_does_where_asked(case):
    pack = case.pack
    model = load("trajgru", pack.weights(), pack.config | {"align_corners": False})
    with torch.inference_mode():
        assert pack.excess(model(pack.frames), "prediction_align_false") <= 1


def trajgru_shapes() -> parity_pack.Shapes:
    """What the port would hold at another scale: two stages of stride 3 and 2, other links in each cell."""
    shapes: parity_pack.Shapes = {}

    def layer(name: str, *shape: int, transposed: bool = False) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[1 if transposed else 0],)

    def cell(name: str, inputs: int, width: int, links: int) -> None:
        layer(f"{name}.i2h", 3 * width, inputs, 1, 1)
        layer(f"{name}.i2f_conv1", 32, inputs, 3, 3)
        layer(f"{name}.h2f_conv1", 32, width, 3, 3)
        layer(f"{name}.flows_conv", 2 * links, 32, 3, 3)
        layer(f"{name}.ret", 3 * width, links * width, 1, 1)

    layer("encoder.stage1.conv1_leaky_1", 3, 2, 5, 5)
    layer("encoder.stage2.conv2_leaky_1", 7, 5, 3, 3)
    cell("encoder.rnn1", 3, 5, 4)
    cell("encoder.rnn2", 7, 7, 2)
    cell("forecaster.rnn2", 7, 7, 3)
    cell("forecaster.rnn1", 5, 5, 1)
    layer("forecaster.stage2.deconv1_leaky_1", 7, 5, 4, 4, transposed=True)
    layer("forecaster.stage1.deconv2_leaky_1", 5, 3, 5, 5, transposed=True)
    layer("forecaster.stage1.conv2_leaky_2", 3, 3, 3, 3)
    layer("forecaster.stage1.conv2_3", 2, 3, 1, 1)
    return shapes


def test_trajgru_of_another_scale_is_read_from_the_tensors():
    weights = parity_pack.drawn(trajgru_shapes(), 5, 1)
    model = load("trajgru", weights, {"T_in": 3, "T_out": 4})
    assert (model.in_steps, model.out_steps, model.channels, model.multiple) == (3, 4, 2, 6)
    assert model(torch.rand(1, 3, 2, 13, 20)).shape == (1, 4, 2, 13, 20)
    without = {name: value for name, value in weights.items() if not name.startswith("forecaster.rnn2.i2")}
    torch.testing.assert_close(load("trajgru", without).state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("read", "shown"),
    [
        (None, None),  # as in the port, where each layer ends as wide as the next stage
        (None, (6, 8)),  # as in the original: the layers of the forecaster keep the width
        ((5, 7), (3, 9)),
    ],
)
def test_trajgru_of_three_unequal_widths_is_read_from_the_tensors(read, shown):
    sizes = {"first_width": 2, "widths": (4, 6, 8), "strides": (1, 2, 2), "links": (3, 2, 1)}
    ours = TrajGRU(in_steps=2, out_steps=3, encoder_inputs=read, forecaster_inputs=shown, **sizes).eval()
    weights = {}
    for name, official in find("trajgru").names(ours).items():
        tensor = ours.state_dict()[name]
        if isinstance(official, Made):  # channels of a link side by side, instead of links of a channel
            tensor = tensor.unflatten(1, (len(tensor) // 3, -1)).transpose(1, 2).flatten(1, 2)
        weights[official if isinstance(official, str) else official.names[0]] = tensor
    model, past = load("trajgru", weights, {"T_in": 2, "T_out": 3}), torch.rand(1, 2, 1, 8, 12)
    with torch.inference_mode():
        torch.testing.assert_close(model(past), ours(past), rtol=0, atol=0)


def test_trajgru_refuses_inputs_that_do_not_fit_its_stages():
    with pytest.raises(OptionError, match="of all stages but one"):
        TrajGRU(in_steps=1, out_steps=1, forecaster_inputs=(64,))


# -- PredRNN and its line ------------------------------------------------------------------------


def stepped(pack, model, count: int) -> list:
    """States of a recurrent network after each of the first true frames."""
    states, state = [], None
    with torch.inference_mode():
        for t in range(count):
            _, state = model.step(model.embed(pack.frames[:, t]), state)
            states.append(state)
    return states


def stlstm_shapes(
    *, layers: int, width: int, kernel: int, folded: int, field: tuple[int, int] | None = None, cells: str = "cell_list"
) -> parity_pack.Shapes:
    """Tensors of the official PredRNN at any scale; with a field, the norms of its elements."""
    shapes: parity_pack.Shapes = {"conv_last.weight": (folded, width, 1, 1)}
    for layer in range(layers):
        name, below = f"{cells}.{layer}", width if layer else folded
        convs = {"conv_x": (7, below), "conv_h": (4, width), "conv_m": (3, width), "conv_o": (1, 2 * width)}
        for conv, (gates, inputs) in convs.items():
            shapes[f"{name}.{conv}.0.weight"] = (gates * width, inputs, kernel, kernel)
            if field:
                shapes |= {f"{name}.{conv}.1.{leaf}": (gates * width, *field) for leaf in ("weight", "bias")}
        shapes[f"{name}.conv_last.weight"] = (width, 2 * width, 1, 1)
    return shapes


@for_sources("predrnn", "predrnn_layernorm", "predrnn_v2")
def test_predrnn_states(case):
    pack, model = case.pack, case.model
    first, second = stepped(pack, model, 2)
    assert pack.excess(first[0][0][0], "h0_first") <= 1
    assert pack.excess(first[1], "m_top_first") <= 1
    assert pack.excess(second[0][0][1], "c0_second") <= 1


@for_sources("predrnn_v2")
def test_predrnn_v2_decoupling_loss(case):
    pack, model = case.pack, case.model
    with torch.no_grad():
        clip = torch.cat([pack.frames, model(pack.frames)], dim=1)
        _, states = model.train().roll_out_fed(clip, torch.arange(9)[None] < 5)
        assert pack.excess(model.regularisation(states)[None] / model.decoupling, "decoupling_loss") <= 1
    model.eval()


@for_sources("predrnn_pp")
def test_predrnn_pp_states(case):
    pack, model = case.pack, case.model
    first, second = stepped(pack, model, 2)
    assert pack.excess(first[0][0][0], "h0_first") <= 1
    assert pack.excess(second[0][0][1], "c0_second") <= 1
    assert pack.excess(second[2], "highway_second") <= 1
    assert pack.excess(second[0][1][0], "h1_second") <= 1


@for_sources("mim")
def test_mim_states(case):
    pack, model = case.pack, case.model
    first, second = stepped(pack, model, 2)
    assert pack.excess(first[0][0], "h0_first") <= 1
    assert pack.excess(second[0][1], "c0_second") <= 1
    assert pack.excess(second[2][0][0], "h1_second") <= 1
    assert pack.excess(second[2][0][1], "c1_second") <= 1


@for_sources("convlstm_openstl")
def test_stacked_convlstm_states(case):
    pack, model = case.pack, case.model
    first, second = stepped(pack, model, 2)
    assert pack.excess(first[0][0], "h0_first") <= 1
    assert pack.excess(second[0][1], "c0_second") <= 1
    assert pack.excess(second[1][0], "h1_second") <= 1


@for_sources("motionrnn")
def test_motionrnn_states(case):
    pack, model = case.pack, case.model
    *_, third = stepped(pack, model, 3)
    assert pack.excess(third[1][0][0], "offset_third") <= 1
    with torch.inference_mode():
        x, between = model.embed(pack.frames[:, 0]), model.between[0]
        (h, _), _, _ = model.cells[0](x, None, None, model.conv_first(x))
        assert pack.excess(h, "h0_first") <= 1
        assert pack.excess(between.motion(between.down(h), None)[0], "warped_first") <= 1


@pytest.mark.parametrize("source", ["predrnn", "predrnn_v2"])
@pytest.mark.parametrize("field", [None, (6, 4)])
def test_predrnn_of_another_scale_is_read_from_the_tensors(source, field):
    shapes = stlstm_shapes(layers=3, width=6, kernel=3, folded=8, field=field)
    if source == "predrnn_v2":
        shapes["adapter.weight"] = (6, 6, 1, 1)
    weights = {f"module.{name}": value for name, value in parity_pack.drawn(shapes, 5, 1).items()}
    model = load(source, weights, {"patch_size": 2, "input_length": 3, "total_length": 7})
    assert (model.in_steps, model.out_steps, model.channels, model.patch) == (3, 4, 2, 2)
    assert model.grid == (field and (12, 8))
    assert model(torch.rand(1, 3, 2, 12, 8)).shape == (1, 4, 2, 12, 8)


def motionrnn_shapes(field: tuple[int, int] | None) -> parity_pack.Shapes:
    """Tensors of the official MotionRNN at another scale: three layers of 10, of which motion reads 2."""
    shapes = stlstm_shapes(layers=3, width=10, kernel=3, folded=8, field=field) | {"conv_first_v.weight": (10, 8, 1, 1)}
    for layer in range(2):
        convs = {f"motion_list.{layer}.{gate}": (18, 20, 3, 3) for gate in ("update", "reset", "output")} | {
            f"motion_list.{layer}.warp.warp_gate": (9, 2, 3, 3),
            f"enc_list.{layer}": (2, 10, 3, 3),
            f"dec_list.{layer}": (2, 10, 4, 4),
            f"gate_list.{layer}": (10, 20, 3, 3),
        }
        shapes[f"motion_list.{layer}.warp.conv.weight"] = (2, 2, 3, 3)
        for name, shape in convs.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": (10 if name.startswith("dec") else shape[0],)}
    return shapes


@pytest.mark.parametrize("field", [None, (6, 4)])
def test_motionrnn_of_another_scale_is_read_from_the_tensors(field):
    weights = parity_pack.drawn(motionrnn_shapes(field), 5, 1)
    model = load("motionrnn", weights, {"patch_size": 2, "input_length": 3, "total_length": 7})
    assert (model.in_steps, model.out_steps, model.channels, model.patch) == (3, 4, 2, 2)
    assert model(torch.rand(1, 3, 2, 12, 8)).shape == (1, 4, 2, 12, 8)


def gated(name: str, outputs: int, inputs: int, kernel: int, field: tuple[int, int] | None) -> parity_pack.Shapes:
    """A gate convolution and, with a field, the norm of its elements."""
    norm = {f"{name}.1.{leaf}": (outputs, *field) for leaf in ("weight", "bias")} if field else {}
    return {f"{name}.0.weight": (outputs, inputs, kernel, kernel)} | norm


def openstl_shapes(source: str, field: tuple[int, int] | None) -> parity_pack.Shapes:
    """Tensors of OpenSTL's recurrent networks at another scale: three layers of 6, kernels of 3, patches of 2."""
    n, shapes = 6, {"conv_last.weight": (8, 6, 1, 1)}
    convs = {
        "convlstm_openstl": {"conv_x": (4, 1), "conv_h": (4, 1), "conv_o": (1, 2)},
        "predrnn_pp": {
            "conv_x": (7, 1),
            "conv_h": (4, 1),
            "conv_c": (3, 1),
            "conv_m": (3, 1),
            "conv_o": (1, 2),
            "conv_c2m": (4, 1),
            "conv_om": (1, 1),
        },
    }
    for layer in range(3):
        for conv, (gates, inputs) in convs[source].items():
            below = 8 if conv == "conv_x" and not layer else inputs * n
            shapes |= gated(f"cell_list.{layer}.{conv}", gates * n, below, 3, field)
        shapes[f"cell_list.{layer}.conv_last.weight"] = (n, 2 * n, 1, 1)
    if source == "predrnn_pp":
        for name in ("z_concat", "x_concat"):
            shapes |= gated(f"gradient_highway.{name}", 2 * n, n, 3, field)
    return shapes


def mim_shapes(field: tuple[int, int], norm: tuple[int, int] | None) -> parity_pack.Shapes:
    """The same of MIM, whose peepholes are always bound to a field."""
    n = 6
    lowest = stlstm_shapes(layers=1, width=n, kernel=3, folded=8, field=norm, cells="stlstm_layer")
    blocks = {f"stlstm_layer.{layer}": {"conv_t_cc": 3, "conv_s_cc": 4, "conv_x_cc": 4} for layer in (1, 2)}
    shapes = dict(lowest)
    for name, convs in (blocks | {f"stlstm_layer_diff.{layer}": {} for layer in (0, 1)}).items():
        for conv, gates in (convs | {"conv_h_concat": 4, "conv_x_concat": 4}).items():
            shapes |= gated(f"{name}.{conv}", gates * n, n, 3, norm)
        shapes |= {f"{name}.ct_weight": (2 * n, *field), f"{name}.oc_weight": (n, *field)}
        shapes[f"{name}.conv_last.weight"] = (n, 2 * n, 1, 1)
    return shapes


@pytest.mark.parametrize("source", ["convlstm_openstl", "predrnn_pp", "mim"])
@pytest.mark.parametrize("norm", [None, (6, 4)])
def test_openstl_recurrent_of_another_scale_is_read_from_the_tensors(source, norm):
    shapes = mim_shapes((6, 4), norm) if source == "mim" else openstl_shapes(source, norm)
    config = {"patch_size": 2, "pre_seq_length": 3, "aft_seq_length": 4, "total_length": 7}
    model = load(source, parity_pack.drawn(shapes, 5, 1), config)
    assert (model.in_steps, model.out_steps, model.channels, model.patch) == (3, 4, 2, 2)
    assert model.grid == ((12, 8) if norm or source == "mim" else None)
    assert model(torch.rand(1, 3, 2, 12, 8)).shape == (1, 4, 2, 12, 8)


@pytest.mark.parametrize("source", ["convlstm_openstl", "predrnn_pp"])
def test_openstl_weights_of_before_get_the_cells_of_before(source):
    weights, past = parity_pack.drawn(openstl_shapes(source, None), 5, 1), torch.rand(1, 3, 2, 12, 8)
    config = {"patch_size": 2, "pre_seq_length": 3, "aft_seq_length": 2}
    now, before = load(source, weights, config), load(source, weights, config | {"legacy": True})
    assert not torch.allclose(now(past), before(past), atol=1e-3)


# -- CMS-LSTM ------------------------------------------------------------------------------------


@for_sources("cms_lstm_f3", "cms_lstm_f5")
def test_cms_lstm_first_steps(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        first, second = (model.embed(pack.frames[:, t]) for t in (0, 1))
        assert pack.excess(fold(pack.frames[:, 0], 4, model.order), "folded_first") <= 1
        assert pack.excess(first, "embedded_first") <= 1
        h, c = model.cells[0](first, None)
        assert pack.excess(h, "cell0_first") <= 1
        assert pack.excess(model.cells[0](second, (h, c))[0], "cell0_second") <= 1


def test_cms_lstm_scale_is_read_from_the_tensors():
    """Two layers of eight channels on a grid that is not square, with two scales."""
    options = {"channels": 2, "layers": 2, "width": 8, "kernel": 5, "patch": 2, "scales": 2, "grid": (8, 12)}
    ours = build("cms-lstm", in_steps=3, out_steps=4, **options)
    pieces = {"query": "f_query", "key": "f_key", "value": "f_value"}
    weights = {}
    for key, official in find("cms_lstm_f3").names(ours).items():
        tensor, names = ours.state_dict()[key], getattr(official, "names", (official,))
        kind = key.split(".")[-2]
        parts = tensor.chunk(2) if kind in pieces else (tensor,)
        weights |= {
            name: part[..., None, None] if kind in pieces and part.ndim == 2 else part
            for name, part in zip(names, parts, strict=True)
        }
    weights |= {"lstm.0.SEBlock.stages.1.gamma": torch.zeros(1), "lstm.1.SEBlock.stages.0.f_key.bias": torch.zeros(8)}
    model = load("cms_lstm_f3", weights, {"patch": 2, "T_in": 3, "T_out": 4})
    past = torch.rand(1, 3, 2, 8, 12)
    with torch.inference_mode():
        torch.testing.assert_close(model(past), ours.eval()(past), rtol=0, atol=0)


# -- E3D-LSTM ------------------------------------------------------------------------------------


@for_sources("e3d_lstm")
def test_e3d_lstm_states(case):
    """The pack keeps the first eight channels."""
    pack, model = case.pack, case.model
    with torch.inference_mode():
        _, first = model.step(model.embed(pack.frames[:, 0]), None)
        top, second = model.step(model.embed(pack.frames[:, 1]), first)
    assert pack.excess(first[1][0][0][..., :8], "h0_first") <= 1
    assert pack.excess(second[1][0][1][..., :8], "c0_second") <= 1
    assert pack.excess(top[..., :8], "h_top_second") <= 1


def e3d_shapes(layers: int, width: int, folded: int, kernel: int) -> parity_pack.Shapes:
    """Tensors of the TensorFlow network at any scale."""
    shapes: parity_pack.Shapes = {}
    for layer in range(layers):
        scope, window = f"generator/e3d-lstm/e3d{layer}/", (2, kernel, kernel)
        sizes = [(width, 4), (width if layer else folded, 7), (width, 4), (width, 1), (width, 1)]
        kernels = {f"conv3d{f'_{n}' if n else ''}": (*window, i, o * width) for n, (i, o) in enumerate(sizes)}
        kernels["conv3d_5"] = (1, 1, 1, 2 * width, width)
        norms = {"hidden": 4, "inputs": 7, "self_attn": 1, "global_memory": 4}
        shapes |= {f"{scope}{name}/kernel": shape for name, shape in kernels.items()}
        shapes |= {f"{scope}{name}/bias": shape[-1:] for name, shape in kernels.items()}
        shapes |= {f"{scope}{name}/{leaf}": (n * width,) for name, n in norms.items() for leaf in ("gamma", "beta")}
    head = "generator/e3d-lstm/conv3d/"
    return shapes | {f"{head}kernel": (2, 1, 1, width, folded), f"{head}bias": (folded,)}


def test_e3d_lstm_scale_is_read_from_the_tensors():
    """A checkpoint with moving averages and the slots of Adam; with and without the kernels that see zeros."""
    pack = parity_pack.read("e3d_lstm")
    assert e3d_shapes(4, 64, 16, 5) == pack.shapes
    weights = parity_pack.drawn(e3d_shapes(3, 8, 2 * 2 * 2, 3), 5, 1.0)
    config = {"patch": 2, "input_length": 3, "total_length": 7}
    model = load("e3d_lstm", weights, config)
    assert (model.in_steps, model.out_steps, model.channels, len(model.cells)) == (3, 4, 2, 3)
    without = {name: tensor for name, tensor in weights.items() if not name.endswith("conv3d_2/kernel")}
    averages = {f"{name}/ExponentialMovingAverage": tensor + 1 for name, tensor in without.items()}
    other = load("e3d_lstm", without | averages | {"Variable_1": torch.zeros(3)}, config)
    past = torch.rand(2, 3, 2, 6, 10)
    with torch.inference_mode():
        assert model(past).shape == (2, 4, 2, 6, 10)
        torch.testing.assert_close(model(past), other(past), rtol=0, atol=0)


# -- PhyDNet -------------------------------------------------------------------------------------


@for_sources("phydnet")
def test_phydnet_states_and_moment_loss(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        state = None
        for x in model.embed(pack.frames[0, :2]).split(1):
            _, state = model.step(x, state)
        assert pack.excess(state[0], "physics_second") <= 1
        assert pack.excess(state[1][-1][0], "residual_second") <= 1
        assert pack.excess(model.regularisation([]).reshape(1), "moment_loss") <= 1


@pytest.mark.parametrize("patch", [2, 4])
def test_phydnet_of_another_scale_is_read_from_the_tensors(patch):
    ours = build("phydnet", in_steps=2, out_steps=3, channels=2, widths=(8, 64), kernel=5, patch=patch)
    state = ours.state_dict()
    weights = {official: state[name] for name, official in find("phydnet").names(ours).items()}
    weights |= {f"encoder.{name}": value for name, value in weights.items() if name.startswith(("phycell", "convcell"))}
    weights |= {"k2m._M0": torch.zeros(7, 7), "k2m._invM1": torch.zeros(7, 7)}
    model = load("phydnet", weights, {"patch_size": patch, "pre_seq_length": 2, "aft_seq_length": 3})
    past = torch.rand(1, 2, 2, 13, 10)
    with torch.inference_mode():
        torch.testing.assert_close(model(past), ours.eval()(past))


# -- GS2PM ---------------------------------------------------------------------------------------


@for_sources("gs2pm_small", "gs2pm_medium", "gs2pm_small_tuned")
def test_gs2pm_latent_frames_and_masked_branch(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        latent, _ = model.encode(pack.frames[0] + model.prompt(128, 128))
        assert pack.excess(latent[:2], "encoded") <= 1
        assert pack.excess(model.translate(latent[None])[0, :2], "latent") <= 1
    if "mask" in pack.inputs:
        # Group normalisation of large maps that lie channels last sums up in single precision.
        exact = copy.deepcopy(model).double()
        with torch.inference_mode():
            filled = exact.fill((pack.frames * pack.inputs["mask"])[:, :1].double())
        assert pack.excess(filled.float(), "reconstruction") <= 1


# -- SimVP and TAU -------------------------------------------------------------------------------


@for_sources("simvp_v1", "simvp_incepu", "simvp_v2_gsta", "tau")
def test_simvp_latent_frames(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        latent, _ = model.encode(pack.frames[0])
        assert pack.excess(latent[:2], "encoded") <= 1
        if "block0" in pack.outputs:
            first = model.translator[0] if pack.config["model_type"] != "IncepU" else model.translator.down[0]
            assert pack.excess(first(latent.flatten(0, 1)[None]), "block0") <= 1
        assert pack.excess(model.translate(latent[None])[0, :2], "latent") <= 1


def layer(name: str, *shape: int, bias: bool = True) -> parity_pack.Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def batch_norm(name: str, width: int) -> parity_pack.Shapes:
    return layer(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def counted(weights: dict) -> dict:
    """With the counters that checkpoints hold, and packs do not."""
    counters = {name.replace("running_mean", "num_batches_tracked") for name in weights if "running_mean" in name}
    return weights | dict.fromkeys(counters, torch.tensor(7))


def simvp_ends(frame: int, width: int, down: list[bool], kernel: int, *, original: bool = False) -> parity_pack.Shapes:
    """Encoder and decoder in the official words."""
    shapes: parity_pack.Shapes = {}
    for i in range(len(down)):
        shapes |= layer(f"enc.enc.{i}.conv.conv", width, width if i else frame, kernel, kernel)
        shapes |= layer(f"enc.enc.{i}.conv.norm", width) | layer(f"dec.dec.{i}.conv.norm", width)
        shuffled = down[-1 - i] and not original
        inputs = 2 * width if original and i == len(down) - 1 else width
        conv = (4 * width if shuffled else width, inputs, kernel, kernel)
        shapes |= layer(f"dec.dec.{i}.conv.conv{'.0' if shuffled else ''}", *conv)
    return shapes | layer("dec.readout", frame, width, 1, 1)


def inception_shapes(stacked: int, hidden: int, blocks: int, kernels: tuple[int, ...], groups: int) -> dict:
    shapes: parity_pack.Shapes = {}
    for i in range(blocks):
        for side, inputs, outputs in (
            ("enc", hidden if i else stacked, hidden),
            ("dec", 2 * hidden if i else hidden, hidden if i < blocks - 1 else stacked),
        ):
            shapes |= layer(f"hid.{side}.{i}.conv1", hidden // 2, inputs, 1, 1)
            for k, kernel in enumerate(kernels):
                shapes |= layer(f"hid.{side}.{i}.layers.{k}.conv", outputs, hidden // 2 // groups, kernel, kernel)
                shapes |= layer(f"hid.{side}.{i}.layers.{k}.norm", outputs)
    return shapes


def large_kernel_shapes(n: int, h: int, outputs: int) -> dict:
    gate = "attn.spatial_gating_unit."
    return {
        **batch_norm("norm1", n),
        **batch_norm("norm2", n),
        "layer_scale_1": (n,),
        "layer_scale_2": (n,),
        **layer("attn.proj_1", n, n, 1, 1),
        **layer("attn.proj_2", n, n, 1, 1),
        **layer(gate + "conv0", n, 1, 5, 5),
        **layer(gate + "conv_spatial", n, 1, 7, 7),
        **layer(gate + "conv1", outputs, n, 1, 1),
        **layer("mlp.fc1", h, n, 1, 1),
        **layer("mlp.dwconv.dwconv", h, 1, 3, 3),
        **layer("mlp.fc2", n, h, 1, 1),
    }


def mlp_shapes(name: str, n: int, h: int, *kernel: int) -> dict:
    return layer(f"{name}.fc1", h, n, *kernel) | layer(f"{name}.fc2", n, h, *kernel)


def attention_shapes(n: int, h: int) -> dict:
    parts = layer("attn.qkv", 3 * n, n) | layer("attn.proj", n, n) | mlp_shapes("mlp", n, h)
    return layer("norm1", n) | layer("norm2", n) | parts


def block_shapes(middle: str, n: int, h: int, tokens: int, convolves: bool) -> dict:
    """A block of width n and channel mixing h in the official words."""
    scales = {"layer_scale_1": (n,), "layer_scale_2": (n,)}
    if middle in ("gSTA", "VAN", "tau"):
        shapes = large_kernel_shapes(n, h, 2 * n if middle == "gSTA" else n)
        squeezed, gate = n // max(n // 16, 4), "attn.spatial_gating_unit.fc"
        se = layer(f"{gate}.0", squeezed, n, bias=False) | layer(f"{gate}.2", n, squeezed, bias=False)
        return shapes | (se if middle == "tau" else {})
    if middle == "ConvMixer":
        convs = layer("conv_dw", n, 1, 11, 11) | layer("conv_pw", n, n, 1, 1)
        return convs | batch_norm("norm_1", n) | batch_norm("norm_2", n)
    if middle == "ConvNeXt":
        return layer("conv_dw", n, 1, 7, 7) | layer("norm", n) | mlp_shapes("mlp", n, h, 1, 1) | {"gamma": (n,)}
    if middle == "Poolformer":
        return layer("norm1", n) | layer("norm2", n) | mlp_shapes("mlp", n, h, 1, 1) | scales
    if middle == "HorNet":
        widths = [n // 8, n // 4, n // 2, n]
        shapes = layer("norm1", n) | layer("norm2", n) | layer("pwconv1", h, n) | layer("pwconv2", n, h)
        shapes |= layer("gnconv.proj_in", 2 * n, n, 1, 1) | layer("gnconv.proj_out", n, n, 1, 1)
        for i in range(3):
            shapes |= layer(f"gnconv.pws.{i}", widths[i + 1], widths[i], 1, 1)
        return shapes | layer("gnconv.dwconv", sum(widths), 1, 7, 7) | {"gamma1": (n,), "gamma2": (n,)}
    if middle == "Moga":
        shapes = batch_norm("norm1", n) | batch_norm("norm2", n)
        shapes |= dict.fromkeys((*scales, "attn.sigma"), (1, n, 1, 1)) | {"mlp.sigma": (1, h, 1, 1)}
        for name in ("proj_1", "proj_2", "gate", "value.PW_conv"):
            shapes |= layer(f"attn.{name}", n, n, 1, 1)
        for i, (width, kernel) in enumerate([(n, 5), (n * 3 // 8, 5), (n // 2, 7)]):
            shapes |= layer(f"attn.value.DW_conv{i}", width, 1, kernel, kernel)
        shapes |= layer("mlp.dwconv", h, 1, 3, 3) | layer("mlp.decompose", 1, h, 1, 1)
        return shapes | mlp_shapes("mlp", n, h, 1, 1)
    if middle == "MLP":
        shapes = mlp_shapes("mlp_tokens", tokens, n // 2) | mlp_shapes("mlp_channels", n, h)
        return layer("norm1", n) | layer("norm2", n) | shapes
    if middle == "Swin":
        buffers = {"attn.relative_position_index": (16, 16), "attn_mask": (9, 16, 16)}
        return attention_shapes(n, h) | {"attn.relative_position_bias_table": (49, 8)} | buffers
    if middle == "ViT":
        return attention_shapes(n, h)
    position = layer("pos_embed", n, 1, 3, 3)
    if not convolves:
        return position | attention_shapes(n, h) | {"gamma_1": (n,), "gamma_2": (n,)}
    convs = layer("conv1", n, n, 1, 1) | layer("conv2", n, n, 1, 1) | layer("attn", n, 1, 5, 5)
    return position | convs | batch_norm("norm1", n) | batch_norm("norm2", n) | mlp_shapes("mlp", n, h, 1, 1)


def translator_shapes(middle: str, stacked: int, hidden: int, blocks: int, ratio: float, tokens: int) -> dict:
    shapes: parity_pack.Shapes = {}
    widths = [stacked, *[hidden] * (blocks - 1), stacked]
    for i in range(blocks):
        n, after = widths[i : i + 2]
        block = block_shapes(middle, n, int(n * ratio), tokens, n != after or i == 0)
        shapes |= {f"hid.enc.{i}.block.{name}": shape for name, shape in block.items()}
        if n != after:
            shapes |= layer(f"hid.enc.{i}.reduction", after, n, 1, 1)
    return shapes


MIDDLES = [
    "gSTA",
    "tau",
    "VAN",
    "ConvMixer",
    "ConvNeXt",
    "Poolformer",
    "HorNet",
    "Moga",
    "MLP",
    "Swin",
    "ViT",
    "Uniformer",
]


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize(("hidden", "blocks", "ratio"), [(32, 4, 2.0), (48, 3, 2.5)])
def test_openstl_middles_of_another_scale_are_read_from_the_tensors(middle, hidden, blocks, ratio):
    """Two frames of three channels and width 24, 16 x 32 pixels, halved once; 5 x 5 kernels at both ends."""
    shapes = simvp_ends(3, 24, [False, True], 5) | translator_shapes(middle, 48, hidden, blocks, ratio, 8 * 16)
    weights = counted(parity_pack.drawn(shapes, 3, 1.0))
    config = {"in_shape": [2, 3, 16, 32], "mlp_ratio": ratio, "aft_seq_length": 3, "drop_path": 0.2}
    model = load("tau" if middle == "tau" else "simvp_v2_gsta", weights, config)
    assert (model.in_steps, model.out_steps, model.channels) == (2, 3, 3)
    used = {name for made in find("tau").names(model).values() for name in made.names}
    assert set(weights.keys() - used) == {name for name in weights if name.endswith(("_index", "_mask"))}
    with torch.inference_mode():
        assert model(torch.rand(1, 2, 3, 16, 32)).isfinite().all()


@pytest.mark.parametrize("original", [False, True])
def test_inception_of_another_scale_is_read_from_the_tensors(original):
    down = [False, True, False] if original else [False, True]
    shapes = simvp_ends(2, 6, down, 3, original=original) | inception_shapes(18, 24, 3, (3, 7), 3)
    model = load("simvp_v1" if original else "simvp_incepu", parity_pack.drawn(shapes, 3, 1.0))
    assert (model.in_steps, model.out_steps, model.channels, len(model.encoder)) == (3, 3, 2, len(down))
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 2, 10, 13)).isfinite().all()


# -- U-Net and SmaAt-UNet ------------------------------------------------------------------------


@for_sources("unet", "smaat_unet")
def test_unet_levels(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        levels = [pack.frames.flatten(1, 2)]
        for i, unit in enumerate(model.down):
            levels.append(unit(torch.max_pool2d(levels[-1], 2) if i else levels[-1]))
        assert pack.excess(levels[1], "level1") <= 1
        assert pack.excess(levels[5], "level5") <= 1
        if "attended1" in pack.outputs:
            assert pack.excess(model.skip(0, levels[1]), "attended1") <= 1


def separable(name: str, inputs: int, outputs: int, per_layer: int | None) -> parity_pack.Shapes:
    if per_layer is None:
        return layer(name, outputs, inputs, 3, 3)
    wide = inputs * per_layer
    return layer(f"{name}.depthwise", wide, 1, 3, 3) | layer(f"{name}.pointwise", outputs, wide, 1, 1)


def unet_shapes(
    inputs: int, outputs: int, width: int, per_layer: int | None, bilinear: bool, reduction: int
) -> parity_pack.Shapes:
    """The official names of a U-Net of five levels, as its repository puts them together."""
    widths = [width * 2**level for level in range(5)]
    widths[-1] //= 2 if bilinear else 1
    shapes = layer("outc.conv", outputs, width, 1, 1)
    units = {
        ("inc" if i == 0 else f"down{i}.maxpool_conv.1"): (inputs if i == 0 else widths[i - 1], wide, wide)
        for i, wide in enumerate(widths)
    }
    for i, wide in enumerate(reversed(widths[:4]), start=1):
        units[f"up{i}.conv"] = (2 * wide, wide, max(wide // 2, width) if bilinear else wide)
        if not bilinear:
            shapes |= {f"up{i}.up.weight": (2 * wide, wide, 2, 2), f"up{i}.up.bias": (wide,)}
    for name, (before, between, after) in units.items():
        shapes |= separable(f"{name}.double_conv.0", before, between, per_layer)
        shapes |= separable(f"{name}.double_conv.3", between, after, per_layer)
        shapes |= batch_norm(f"{name}.double_conv.1", between) | batch_norm(f"{name}.double_conv.4", after)
    for i, wide in enumerate(widths if per_layer else [], start=1):
        squeezed = wide // reduction
        shapes |= layer(f"cbam{i}.channel_att.MLP.1", squeezed, wide)
        shapes |= layer(f"cbam{i}.channel_att.MLP.3", wide, squeezed)
        shapes |= {f"cbam{i}.spatial_att.conv.weight": (1, 2, 7, 7)} | batch_norm(f"cbam{i}.spatial_att.bn", 1)
    return shapes


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("per_layer", [None, 1, 3])
def test_unets_of_another_scale_are_read_from_the_tensors(per_layer, bilinear):
    shapes = unet_shapes(4, 6, 20, per_layer, bilinear, 12)
    source = "unet" if per_layer is None else "smaat_unet"
    model = load(source, counted(parity_pack.drawn(shapes, 3, 1.0)))
    assert (model.in_steps, model.out_steps, model.channels, model.bilinear) == (4, 6, 1, bilinear)
    with torch.inference_mode():
        assert model(torch.rand(1, 4, 1, 20, 35)).isfinite().all()


def official_unet(weights: dict, frames_BCHW: torch.Tensor, bilinear: bool) -> torch.Tensor:
    """The official U-Net from its own tensors: sides are rounded down on the way down, and padded on the way up."""

    def twice(name: str, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            w, n = f"{name}.double_conv.{conv}", f"{name}.double_conv.{norm}"
            x = functional.conv2d(x, weights[f"{w}.weight"], weights[f"{w}.bias"], padding=1)
            statistics = (weights[f"{n}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
            x = functional.batch_norm(x, *statistics).relu()
        return x

    levels = [twice("inc", frames_BCHW)]
    for i in range(1, 5):
        levels.append(twice(f"down{i}.maxpool_conv.1", functional.max_pool2d(levels[-1], 2)))
    x = levels.pop()
    for i in range(1, 5):
        skip = levels.pop()
        if bilinear:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = functional.conv_transpose2d(x, weights[f"up{i}.up.weight"], weights[f"up{i}.up.bias"], stride=2)
        below, beside = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = functional.pad(x, [beside // 2, beside - beside // 2, below // 2, below - below // 2])
        x = twice(f"up{i}.conv", torch.cat([skip, x], dim=1))
    return functional.conv2d(x, weights["outc.conv.weight"], weights["outc.conv.bias"])


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (31, 29)])
@pytest.mark.parametrize("bilinear", [True, False])
def test_official_unet_weights_keep_their_function_on_any_grid(size, bilinear):
    weights = parity_pack.drawn(unet_shapes(3, 2, 4, None, bilinear, 1), 3, 1.0)
    model, past = load("unet", counted(weights)), torch.rand(2, 3, 1, *size)
    with torch.inference_mode():
        torch.testing.assert_close(model(past)[:, :, 0], official_unet(weights, past[:, :, 0], bilinear))


@pytest.mark.parametrize("name", ["unet", "smaat-unet"])
def test_padding_inside_is_the_same_where_sides_divide_and_another_function_where_not(name):
    ours = build(f"{name}:debug", in_steps=3, out_steps=2).eval()
    official = build(f"{name}:debug", in_steps=3, out_steps=2, pad_inside=True).eval()
    official.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        for size, alike in (((24, 32), True), ((23, 33), False)):
            past = torch.rand(1, 3, 1, *size)
            assert torch.allclose(official(past), ours(past), atol=1e-6) == alike
        with pytest.raises(ShapeError, match="sides of 4 or more, got"):
            official(torch.rand(1, 3, 1, 3, 8))


# -- SA-ConvLSTM ---------------------------------------------------------------------------------


@for_sources("sa_convlstm")
def test_sa_convlstm_states(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        _, first = model.step(model.embed(pack.frames[:, 0]), None)
        _, second = model.step(model.embed(pack.frames[:, 1]), first)
    assert pack.excess(first[0][0], "h0_first") <= 1
    assert pack.excess(second[0][2], "memory0_second") <= 1


@for_sources("sa_convlstm_seq")
def test_sa_convlstm_seq_first_layer(case):
    """The pack keeps four channels of the first three steps, before the norm."""
    pack, model = case.pack, case.model
    with torch.inference_mode():
        hidden = _unrolled(model.cells[0], pack.frames.transpose(1, 2))
    assert pack.excess(hidden[:, :4, :3], "layer1") <= 1


def test_sa_convlstm_scale_is_read_from_the_tensors():
    """Layers of unlike widths, other kernels and keys."""
    shapes, below = {}, 1
    for layer, width in enumerate((6, 10, 4)):
        sizes = {
            "conv": (4 * width, below + width, 5),
            "sa.conv_h": (9, width, 1),
            "sa.conv_m": (6, width, 1),
            "sa.conv_z": (3, 6, 1),
            "sa.conv_output": (3 * width, width + 3, 5),
        }
        for name, (outputs, inputs, kernel) in sizes.items():
            shapes[f"layers.{layer}.{name}.weight"] = (outputs, inputs, kernel, kernel)
            shapes[f"layers.{layer}.{name}.bias"] = (outputs,)
        below = width
    shapes |= {"conv_output.weight": (1, 4, 1, 1), "conv_output.bias": (1,)}
    model = load("sa_convlstm", parity_pack.drawn(shapes, 5, 1.0), {"input_frames": 2, "future_frames": 3})
    with torch.inference_mode():
        assert model(torch.rand(1, 2, 1, 7, 9)).shape == (1, 3, 1, 7, 9)


@pytest.mark.parametrize("whole", [True, False])
def test_sa_convlstm_seq_scale_is_read_from_the_tensors(whole):
    steps, n, attention, grid, shapes = 3, 6, 2, (5, 8), {}
    for layer in (1, 2, 3):
        cell = f"sequential.sam-convlstm{layer}.sam_convlstm_cell."
        convs = {
            "query_h": (attention, n),
            "key_h": (attention, n),
            "value_h": (n, n),
            "z_h": (n, n),
            "key_m": (attention, n),
            "value_m": (n, n),
            "z_m": (n, n),
            "w_z": (2 * n, 2 * n),
            "w": (3 * n, 3 * n),
        }
        kernels = {f"{cell}attention_memory.{name}": (*sizes, 1, 1) for name, sizes in convs.items()}
        kernels[f"{cell}convlstm_cell.conv"] = (4 * n, n + (n if layer > 1 else 2), 5, 5)
        shapes |= {f"{name}.weight": shape for name, shape in kernels.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in kernels.items()}
        shapes |= {f"{cell}convlstm_cell.W_c{gate}": (n, *grid) for gate in "ifo"}
        shapes |= {f"sequential.layernorm{layer}.{leaf}": (n, steps, *grid) for leaf in ("weight", "bias")}
    shapes |= {"sequential.conv3d.weight": (2, n, 3, 3, 3), "sequential.conv3d.bias": (2,)}
    config = {"return_sequences": whole, "activation": "leakyRelu"}
    model = load("sa_convlstm_seq", parity_pack.drawn(shapes, 5, 1.0), config)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 2, *grid)).shape == (1, 3 if whole else 1, 2, *grid)
        assert model(torch.rand(1, 3, 2, 7, 9)).shape == (1, 3 if whole else 1, 2, 7, 9)


# -- MAU -----------------------------------------------------------------------------------------


@for_sources("mau")
def test_mau_states(case):
    pack, model = case.pack, case.model
    with torch.inference_mode():
        state = None
        memories, shown = [], []
        for x in model.embed(pack.frames[0, :3]).split(1):
            x, state = model.cells[0](x, state)
            shown.append(x)
            memories.append(state[1][-1])
    assert pack.excess(memories[0], "t0_first") <= 1
    assert pack.excess(shown[2], "s0_third") <= 1


@pytest.mark.parametrize(("cell_mode", "model_mode"), [("normal", "recall"), ("residual", "normal")])
def test_mau_of_another_scale_is_read_from_the_tensors(cell_mode, model_mode):
    options = {"patch": 2, "tau": 3, "cell_mode": cell_mode, "model_mode": model_mode}
    scale = {"channels": 2, "width": 5, "layers": 3, "kernel": 3, "downscale": 8, "grid": (16, 32)}
    ours = build("mau", in_steps=4, out_steps=2, **options, **scale)
    shapes: parity_pack.Shapes = {}
    for n in range(3):
        for name, outputs in (("conv_t", 15), ("conv_t_next", 5), ("conv_s", 15), ("conv_s_next", 5)):
            shapes |= {f"cell_list.{n}.{name}.0.weight": (outputs, 5, 3, 3), f"cell_list.{n}.{name}.0.bias": (outputs,)}
            shapes |= {f"cell_list.{n}.{name}.1.{leaf}": (outputs, 1, 2) for leaf in ("weight", "bias")}
    layers = ["encoders.1.encoder_t0", "encoders.2.encoder_t1", "encoders.3.encoder_t2"]
    layers += [f"decoders.{n}.c_decoder{n}" for n in range(3)]
    shapes |= {"encoders.0.encoder_t_conv-1.weight": (5, 8, 1, 1), "encoders.0.encoder_t_conv-1.bias": (5,)}
    shapes |= {f"{name}.weight": (5, 5, 3, 3) for name in layers} | {f"{name}.bias": (5,) for name in layers}
    shapes |= {"srcnn.0.weight": (8, 5, 1, 1), "srcnn.0.bias": (8,)}
    config = {"patch_size": 2, "tau": 3, "cell_mode": cell_mode, "model_mode": model_mode}
    config |= {"pre_seq_length": 4, "aft_seq_length": 2}
    model = load("mau", parity_pack.drawn(shapes, 7, 1), config)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    with torch.inference_mode():
        assert model(torch.rand(1, 4, 2, 20, 35)).shape == (1, 2, 2, 20, 35)


# -- SwinLSTM ------------------------------------------------------------------------------------


@for_sources("swin_lstm_b", "swin_lstm_d")
def test_swin_lstm_first_steps(case):
    pack, model = case.pack, case.model
    cell = (model.cells if hasattr(model, "cells") else model.down)[0]

    def excess(tokens: torch.Tensor, name: str) -> float:
        return pack.excess(by_row(tokens, cell.window).flatten(1, 2)[..., :16], name)

    with torch.inference_mode():
        first, second = (model.embed(pack.frames[:, t]) for t in (0, 1))
        _, memory = cell(first, None)
        assert excess(first, "tokens_first") <= 1
        assert excess(cell.blocks[0](first, None, memory.windows.biases[0]), "block0_first") <= 1
        assert excess(cell(second, memory)[0], "cell0_second") <= 1


def swin_cell_shapes(name: str, width: int, depth: int, heads: int, window: int) -> parity_pack.Shapes:
    shapes: parity_pack.Shapes = {}
    for block in range(depth):
        part = f"{name}.Swin.layers.{block}"
        shapes[f"{part}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
        for layer, outputs, inputs in (
            ("attn.qkv", 3, 1),
            ("attn.proj", 1, 1),
            ("mlp.fc1", 4, 1),
            ("mlp.fc2", 1, 4),
            ("red", 1, 2),
        ):
            shapes[f"{part}.{layer}.weight"] = (outputs * width, inputs * width)
            shapes[f"{part}.{layer}.bias"] = (outputs * width,)
        for norm in ("norm1", "norm2"):
            shapes[f"{part}.{norm}.weight"] = shapes[f"{part}.{norm}.bias"] = (width,)
    return shapes


def swin_patch_shapes(part: str, width: int, channels: int, patch: int) -> parity_pack.Shapes:
    return {
        f"{part}.patch_embed.proj.weight": (width, channels, patch, patch),
        **{f"{part}.patch_embed.{leaf}": (width,) for leaf in ("proj.bias", "norm.weight", "norm.bias")},
    }


def test_swin_lstm_b_of_another_scale_is_read_from_the_tensors():
    shapes = swin_patch_shapes("ST", 12, 2, 2)
    shapes |= {"ST.PatchInflated.ConvT.weight": (12, 2, 3, 3), "ST.PatchInflated.ConvT.bias": (2,)}
    shapes |= swin_cell_shapes("ST.layers.0", 12, 11, 3, 5) | swin_cell_shapes("ST.layers.1", 12, 2, 6, 5)
    weights = parity_pack.drawn(shapes, 5, 1)
    model = load("swin_lstm_b", weights, {"T_in": 3, "T_out": 4, "drop_path_rate": 0.2})
    assert (model.in_steps, model.out_steps, model.channels, model.multiple) == (3, 4, 2, 10)
    assert model.cells[1].blocks[1].drop_path == 0.2
    assert model(torch.rand(1, 3, 2, 20, 37)).shape == (1, 4, 2, 20, 37)
    buffers = {
        "ST.layers.0.Swin.layers.1.attn_mask": torch.zeros(16, 25, 25),
        "ST.layers.0.Swin.layers.0.attn.relative_position_index": torch.zeros(25, 25),
    }
    again = load("swin_lstm_b", {f"module.{name}": value for name, value in (weights | buffers).items()})
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_swin_lstm_d_of_another_scale_is_read_from_the_tensors():
    """Three scales, of which the coarsest is as small as its windows."""
    shapes = swin_patch_shapes("Downsample", 8, 3, 2) | swin_patch_shapes("Upsample", 8, 3, 2)
    shapes |= {"Upsample.Unembed.Conv.weight": (8, 3, 3, 3), "Upsample.Unembed.Conv.bias": (3,)}
    for level, (depth, heads) in enumerate([(1, 2), (2, 1), (3, 4)]):
        width = 8 * 2**level
        shapes |= swin_cell_shapes(f"Downsample.layers.{level}", width, depth, heads, 4)
        shapes |= {f"Downsample.downsample.{level}.reduction.weight": (2 * width, 4 * width)}
        shapes |= {f"Downsample.downsample.{level}.norm.{leaf}": (4 * width,) for leaf in ("weight", "bias")}
    for level, (depth, heads, window) in enumerate([(4, 8, 2), (1, 2, 4), (2, 4, 4)]):
        width = 64 // 2**level
        shapes |= swin_cell_shapes(f"Upsample.layers.{level}", width, depth, heads, window)
        shapes |= {f"Upsample.upsample.{level}.expand.weight": (2 * width, width)}
        shapes |= {f"Upsample.upsample.{level}.norm.{leaf}": (width // 2,) for leaf in ("weight", "bias")}
    model = load("swin_lstm_d", parity_pack.drawn(shapes, 5, 1), {"num_frames_input": 2, "num_frames_output": 3})
    assert (model.in_steps, model.out_steps, model.channels, model.multiple) == (2, 3, 3, 32)
    assert [len(cell.blocks) for cell in (*model.down, *model.up)] == [1, 2, 3, 4, 1, 2]
    assert model(torch.rand(1, 2, 3, 30, 41)).shape == (1, 3, 3, 30, 41)


# -- LMC-Memory ----------------------------------------------------------------------------------


@for_sources("lmc_memory")
def test_lmc_memory_of_both_phases(case):
    pack, model = case.pack, case.model
    past, memory = pack.frames, model.memory
    with torch.inference_mode():
        assert pack.excess(model.encoder(past[:, 0]), "encoded_first") <= 1
        assert pack.excess(memory.matching(past)[:, :64, None], "query_phase2") <= 1
        stored, found = memory.both(past, pack.inputs["long_frames"]).chunk(2)
        assert pack.excess(found, "memory_phase2") <= 1
        assert pack.excess(stored, "memory_phase1") <= 1
        assert pack.excess(model.told(model.watched(past), stored, 10), "prediction_phase1") <= 1


def test_lmc_memory_of_another_scale_is_read_from_the_tensors():
    shapes: parity_pack.Shapes = {"memory.memory_w": (7, 64)}

    def layer(name: str, *shape: int, outputs: int = 0) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (outputs or shape[0],)

    for n, sizes in zip((0, 2, 4, 6), ((8, 2), (8, 8), (16, 8), (16, 16)), strict=True):
        layer(f"encoder.{n}", *sizes, 3, 3)
    for n, sizes in zip((0, 2, 4, 6), ((32, 16), (16, 8), (8, 8), (8, 2)), strict=True):
        layer(f"decoder.{n}", *sizes, 3, 3, outputs=sizes[1])
    for n in range(3):
        layer(f"convlstm_list.{n}.conv2d_x", 64, 16, 3, 3)
        layer(f"convlstm_list.{n}.conv2d_h", 64, 16, 3, 3)
    for encoder in ("matching", "context"):
        sizes = ((8, 2), (16, 8), (32, 16), (32, 32), (64, 32), (64, 64))
        for n, size in zip((0, 3, 6, 8, 11, 13), sizes, strict=True):
            layer(f"memory.motion_{encoder}_encoder.{n}", *size, 3, 3, 3)
    for n, sizes in zip((0, 2), ((64, 32), (32, 16)), strict=True):
        layer(f"memory.embedder.{n}", *sizes, 3, 3, outputs=sizes[1])
    layer("attention_func.2", 2, 32)
    layer("attention_func.4", 16, 2)
    weights = {f"module.{name}": value for name, value in parity_pack.drawn(shapes, 5, 1).items()}
    model = load("lmc_memory", weights, {"dataset": "kth", "short_len": 4, "out_len": 3, "long_len": 5})
    assert (model.in_steps, model.out_steps, model.channels, model.long_steps) == (4, 3, 2, 5)
    assert model.sigmoid
    assert model(torch.rand(1, 4, 2, 30, 41)).shape == (1, 3, 2, 30, 41)
