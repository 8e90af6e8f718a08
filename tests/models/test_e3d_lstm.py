"""Blocks of E3D-LSTM beside what their formulas say, written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nowcast.models import build
from nowcast.models.e3d_lstm import E3DCell, WindowConv, WindowNorm
from nowcast.models.official import load


def fields(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) - 0.5


def cell(*, stale: bool = False) -> E3DCell:
    torch.manual_seed(0)
    made = E3DCell(3, 4, kernel=3, stale_memory=stale, eps=1e-5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_window_convolution_is_3d_with_a_zero_after_the_window():
    conv, window = WindowConv(3, 5, kernel=3), fields(2, 2, 6, 7, 3)
    kernel = torch.stack([conv.here[0].weight, conv.after[0].weight], dim=2)
    padded = functional.pad(window.movedim(-1, 1), (1, 1, 1, 1, 0, 1))
    expected = functional.conv3d(padded, kernel).movedim(1, -1)
    torch.testing.assert_close(conv(window), expected)


def test_window_norm_is_over_slices_pixels_and_channels():
    window, norm = fields(2, 2, 3, 4, 5), WindowNorm(5)
    mean, spread = window.mean((1, 2, 3, 4), keepdim=True), window.var((1, 2, 3, 4), False, keepdim=True).sqrt()
    torch.testing.assert_close(norm(window), (window - mean) / spread, rtol=1e-3, atol=1e-4)
    constant = fields(5)
    torch.testing.assert_close(norm(constant), norm(constant.expand(1, 2, 3, 4, 5))[0, 0, 0, 0])


def test_none_stands_for_zeros():
    made, x, zeros = cell(), fields(2, 2, 5, 6, 3), torch.zeros(2, 2, 5, 6, 4)
    (h, c, history), memory = made(made.from_x(x), None, None)
    (h0, c0, _), memory0 = made(made.from_x(x), (zeros, zeros, ()), zeros)
    torch.testing.assert_close((h, c, memory), (h0, c0, memory0))
    assert len(history) == 1
    assert not history[0].any()


def test_recall_is_attention_to_all_positions_of_all_steps():
    recaller, history = fields(2, 2, 3, 4, 4), (fields(2, 2, 3, 4, 4) * 3, fields(2, 2, 3, 4, 4) + 1)
    past = torch.cat(history, dim=1).reshape(2, -1, 4)
    expected = (recaller.reshape(2, -1, 4) @ past.mT).softmax(-1) @ past
    torch.testing.assert_close(cell().recall(recaller, history).reshape(2, -1, 4), expected)


@pytest.mark.parametrize("stale", [False, True])
def test_stale_memory_depends_on_nothing_before(stale):
    made, x = cell(stale=stale), fields(1, 2, 5, 6, 3)
    _, first = made(made.from_x(x), None, None)
    _, second = made(made.from_x(x), None, first)
    assert torch.equal(first, second) == stale


def test_stale_memory_has_no_kernel_for_it():
    fresh, stale = (build("e3d-lstm:published", in_steps=1, out_steps=1, stale_memory=stale) for stale in (False, True))
    count = [sum(weight.numel() for weight in model.parameters()) for model in (fresh, stale)]
    assert count[0] - count[1] == 4 * 819_200


def test_error_is_half_squared_plus_absolute_where_measured():
    model = build("e3d-lstm:debug", in_steps=1, out_steps=1)
    made, truth = torch.tensor([2.0, 5.0]), torch.tensor([0.0, 4.0])
    assert model.error(made, truth, None) == (4.0 + 1.5) / 2
    assert model.error(made, truth, torch.tensor([1.0, 0.0])) == 4.0


@pytest.mark.parametrize("options", [{"kernel": 2}, {"layers": 0}, {"width": 0}, {"widths": ()}, {"widths": (4, 0)}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="There is a layer or more, widths are >= 1 and kernel is odd"):
        build("e3d-lstm", in_steps=1, out_steps=1, **options)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("stale_memory", [True, False])
def test_layers_may_be_unequal_and_gates_not_normalised(layer_norm, stale_memory):
    """The official flags ``num_hidden`` and ``layer_norm``; the memory of the top enters the lowest layer."""
    options = {"widths": (4, 6, 8), "kernel": 3, "layer_norm": layer_norm, "stale_memory": stale_memory}
    network = build("e3d-lstm", in_steps=3, out_steps=2, **options)
    clip = torch.rand(1, 5, 1, 16, 16)
    network.training_loss(clip[:, :3], clip[:, 3:], 0.5).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert any(name.endswith("norm_x.weight") for name in network.state_dict()) == layer_norm
    assert all(any(name.endswith("norm_recall.weight") for name in cell.state_dict()) for cell in network.cells)


def test_widths_are_read_from_official_tensors():
    """Three layers of unequal widths without norms of the gates, under TensorFlow's names."""
    scope, widths, tensors = "generator/e3d-lstm/", (4, 6, 8), {}

    def layer(name: str, *kernel: int) -> None:
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = torch.rand(kernel), torch.rand(kernel[-1])

    for number, (inputs, width) in enumerate(zip((16, 4, 6), widths, strict=True)):
        cell = f"{scope}e3d{number}"
        layer(f"{cell}/conv3d", 2, 3, 3, width, 4 * width)
        layer(f"{cell}/conv3d_1", 2, 3, 3, inputs, 7 * width)
        layer(f"{cell}/conv3d_2", 2, 3, 3, 4, 4 * width)
        layer(f"{cell}/conv3d_3", 2, 3, 3, width, width)
        layer(f"{cell}/conv3d_4", 2, 3, 3, width, width)
        layer(f"{cell}/conv3d_5", 1, 1, 1, 2 * width, width)
        tensors |= {f"{cell}/self_attn/{leaf}": torch.rand(width) for leaf in ("gamma", "beta")}
    layer(f"{scope}conv3d", 2, 1, 1, 8, 16)
    model = load("e3d_lstm", tensors, {"input_length": 3, "total_length": 5})
    assert [cell.width for cell in model.cells] == list(widths)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 1, 16, 16)).shape == (1, 2, 1, 16, 16)
