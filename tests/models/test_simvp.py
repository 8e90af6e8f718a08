"""SimVP and its middles, TAU, the U-Nets: blocks by hand, longer forecasts, losses, refused options."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nowcast.models import build
from nowcast.models.blocks import channels_last
from nowcast.models.metaformers import (
    Attention,
    Dilated,
    MultiOrder,
    Place,
    Pooling,
    WindowAttention,
    add_branch,
    depthwise,
)
from nowcast.models.simvp import SimVP
from nowcast.models.smaat_unet import CBAM, Separable
from nowcast.models.tau import TemporalGate, differential_divergence

MIDDLES = ("incepu", *SimVP.METAFORMERS)


def fields(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


def small(middle: str, **options: object) -> SimVP:
    torch.manual_seed(1)
    bound = {"grid": (24, 16)} if middle == "mlp-mixer" else {}
    lengths = {"in_steps": 2, "out_steps": 2} | {key: options.pop(key) for key in ("out_steps",) if key in options}
    return build("simvp:debug", **lengths, middle=middle, **bound, **({"blocks": 3} | options))


# -- all middles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", MIDDLES)
def test_every_middle_learns_and_takes_any_grid(middle):
    model = small(middle)
    model.training_loss(fields(2, 2, 1, 24, 16), fields(2, 2, 1, 24, 16) / 2, 0.1).backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []
    with torch.inference_mode():
        assert model.eval()(fields(1, 2, 1, 29, 33)).shape == (1, 2, 1, 29, 33)


@pytest.mark.parametrize("middle", MIDDLES)
def test_maps_lie_channels_last_through_the_translator(middle):
    model, seen = small(middle).eval(), []
    model.translator.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        model(fields(1, 2, 1, 24, 16))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_longer_forecasts_read_what_was_forecast():
    model = small("gsta", out_steps=5).eval()
    past = fields(1, 2, 1, 24, 16)
    with torch.inference_mode():
        first = model.block(past)
        second = model.block(first)
        third = model.block(second)
        torch.testing.assert_close(model(past), torch.cat([first, second, third[:, :1]], dim=1))


def test_the_gradient_runs_through_the_whole_forecast():
    model, past = small("vit", out_steps=6), fields(1, 2, 1, 24, 16).requires_grad_()
    model(past)[:, 5].sum().backward()
    assert past.grad.abs().sum() > 0


def test_the_translator_of_version_1_joins_like_a_u():
    """Outputs of the way down join the way up in reverse order, the last one alone."""
    model, joined = small("incepu", blocks=3), []
    for i, module in enumerate([*model.translator.down, *model.translator.up]):
        module.register_forward_hook(
            lambda _, parts, made, i=i: joined.append((i, [id(part) for part in parts], id(made)))
        )
    kept = model.translate(fields(1, 2, 8, 6, 4))
    made = {i: result for i, _, result in joined}
    assert kept.shape == (1, 2, 8, 6, 4)
    assert [parts for _, parts, _ in joined[3:]] == [[made[2]], [made[3], made[1]], [made[4], made[0]]]


def test_drop_path_starts_at_one_percent_even_where_it_is_off():
    rates = [stage.block.drop_path for stage in small("gsta", blocks=5).translator]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0])
    rates = [stage.block.drop_path for stage in small("gsta", blocks=3, drop_path=0.2).translator]
    assert rates == pytest.approx([0.01, 0.105, 0.2])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"middle": "resnet"}, "Unknown middle 'resnet'; known: incepu, gsta, "),
        ({"middle": "mlp-mixer"}, r"needs grid=\(height, width\)"),
        ({"middle": "mlp-mixer", "grid": (64, 62)}, "Sides of the grid must divide by 4, got 64 x 62"),
        ({"grid": (64, 64)}, "no other middle has one"),
        ({"middle": "swin", "hidden": 20}, "Widths of the middle swin are multiples of 8, got 20"),
        ({"middle": "hornet", "width": 6, "hidden": 20}, "Widths of the middle hornet are multiples of 8"),
        ({"width": 7}, "width must be even, got 7"),
        ({"blocks": 1}, "blocks >= 2"),
        ({"encoder_kernel": 4}, "Kernels must be odd, got 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("simvp", in_steps=2, out_steps=2, **options)


def test_weights_bound_to_a_grid_do_not_train_on_another():
    with pytest.raises(ValueError, match="bound to a grid of 24 x 16"):
        small("mlp-mixer").train()(fields(1, 2, 1, 24, 24))


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 7), (1, 2), (10, 3)])
@pytest.mark.parametrize(("kernel", "dilation"), [(7, 3), (5, 2)])
def test_dilated_kernels_are_those_of_torch(height, width, kernel, dilation):
    conv = depthwise(6, kernel, dilation=dilation)
    assert isinstance(conv, Dilated)
    x = channels_last(fields(2, 6, height, width)).requires_grad_()
    plain = functional.conv2d(x, conv.weight, conv.bias, 1, conv.padding, dilation, 6)
    torch.testing.assert_close(conv(x), plain)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), (x, conv.weight)) for y in (conv(x), plain)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_skipped_branch_counts_more_in_the_samples_that_keep_it():
    torch.manual_seed(0)
    x, branch = torch.zeros(4000, 1, 1, 1), torch.ones(4000, 1, 1, 1)
    added = add_branch(x, branch, torch.tensor([3.0]), 0.25)
    assert set(added.flatten().tolist()) == {0, 4}
    assert added.mean().item() == pytest.approx(3, abs=0.1)
    assert torch.equal(add_branch(x, branch, None, 0), branch)


def test_pooling_leaves_out_what_is_not_there():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    corner, edge = (0 + 1 + 3 + 4) / 4 - 0, sum(range(6)) / 6 - 1
    assert Pooling()(x)[0, 0, 0, :2].tolist() == pytest.approx([corner, edge])


def test_attention_by_hand():
    """Two pixels, one head: weights are the softmax of the product over the root of the width."""
    attention = Attention(2, 1)
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.eye(2).repeat(3, 1))
        attention.qkv.bias.zero_()
        attention.proj.weight.copy_(torch.eye(2))
        attention.proj.bias.zero_()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)  # channels, then pixels
    share = torch.softmax(torch.tensor([1.0, 0.0]) / 2**0.5, 0)[0].item()
    torch.testing.assert_close(attention(x)[0, :, 0, 0], torch.tensor([share, 2 * (1 - share)]))


@pytest.mark.parametrize("shifted", [False, True])
def test_windows_see_themselves_alone_and_wrap_around_the_edges(shifted):
    attention = WindowAttention(8, 2, window=4, shifted=shifted)
    x = fields(1, 8, 8, 8).requires_grad_()
    attention(x)[0, :, 0, 0].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    rows = [0, 1, 6, 7] if shifted else [0, 1, 2, 3]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[torch.tensor(rows)[:, None], torch.tensor(rows)] = True
    assert torch.equal(seen, expected)


def test_window_bias_is_by_relative_position():
    attention = WindowAttention(4, 2, window=3, shifted=False)
    pairs = attention.index
    assert pairs[0, 0] == pairs[4, 4] == pairs[8, 8] == 12  # no offset: the middle of 5 x 5
    assert pairs[0, 1] == pairs[3, 4] == 11  # the other one is right of it
    assert pairs[0, 3] == 7  # the other one is below


def test_orders_share_the_channels_one_three_four():
    mixing = MultiOrder(16)
    x = torch.zeros(1, 16, 31, 31)
    x[..., 15, 15] = 1
    with torch.no_grad():
        for conv in (mixing.first, mixing.second, mixing.third):
            conv.weight.fill_(1)
            conv.bias.zero_()
        mixing.point.weight.copy_(torch.eye(16)[:, :, None, None])
        mixing.point.bias.zero_()
        reach = (mixing(x)[0] > 0).any(1).sum(1)
    # 5 x 5; then every second pixel of 5: 5 + 8; then every third of 7: 5 + 18.
    assert reach.tolist() == [5] * 2 + [13] * 6 + [23] * 8


def test_place_of_attention_in_uniformer():
    """Convolutions at the start and where the width changes, attention between, and at the end if it stays."""
    kinds = [isinstance(stage.block.mix, Attention) for stage in small("uniformer", blocks=4, hidden=8).translator]
    assert kinds == [False, True, True, False]
    kinds = [isinstance(stage.block.mix, Attention) for stage in small("uniformer", blocks=4, hidden=16).translator]
    assert kinds == [False, True, True, True]
    assert Place(8, 1, 2.0, 0.0, True, 4, 16, 8).keeps_width


# -- TAU -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "squeezed"), [(640, 16), (512, 16), (48, 12), (100, 16)])
def test_squeeze_of_the_released_code(channels, squeezed):
    assert TemporalGate(channels).squeeze[0].out_features == squeezed


def test_divergence_by_hand():
    """One pixel more changes by 0.1 in the forecast: shares e / (e + 1) and 1 / (e + 1) against halves."""
    made, truth = torch.zeros(1, 2, 1, 1, 2), torch.zeros(1, 2, 1, 1, 2)
    made[0, 1, 0, 0, 0] = 0.1
    high, low = (torch.tensor([1.0, 0.0]).softmax(0)).tolist()
    expected = sum(p * torch.tensor(2 * p).log().item() for p in (high, low)) / 2
    assert differential_divergence(made, truth).item() == pytest.approx(expected, rel=1e-5)
    assert differential_divergence(truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert differential_divergence(made[:, :1], truth[:, :1]).item() == 0
    weight = torch.ones_like(made)
    weight[0, 0, 0, 0, 0] = 0
    assert differential_divergence(made, truth, weight).item() == pytest.approx(0, abs=1e-6)


def test_tau_adds_the_divergence_with_its_weight():
    past, future = fields(1, 2, 1, 8, 8), fields(1, 3, 1, 8, 8) / 3
    losses = []
    for divergence in (0.0, 0.1, 0.2):
        torch.manual_seed(1)
        model = build("tau:debug", in_steps=2, out_steps=3, divergence=divergence).eval()
        losses.append(model.training_loss(past, future, 0).item())
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=1e-3)
    made = model(past)
    assert losses[1] - losses[0] == pytest.approx(0.1 * differential_divergence(made, future).item(), rel=1e-3)
    with pytest.raises(ValueError, match="divergence must be >= 0"):
        build("tau", in_steps=2, out_steps=2, divergence=-1)


# -- U-Nets ----------------------------------------------------------------------------------------


def test_attention_of_cbam_by_hand():
    """Zero weights gate by one half twice; the bias of the channels then opens one of them."""
    attention = CBAM(2, 1).eval()
    with torch.no_grad():
        for weight in attention.parameters():
            weight.zero_()
        x = fields(1, 2, 3, 4)
        torch.testing.assert_close(attention(x), x / 4)
        attention.channel[2].bias[0] = 50
        torch.testing.assert_close(attention(x), x * torch.tensor([0.5, 0.25])[:, None, None])


@pytest.mark.parametrize("kernels", [1, 2, 3])
def test_separable_is_depthwise_then_pointwise(kernels):
    conv = Separable(4, 5, kernels)
    wide = functional.conv2d(fields(2, 4, 6, 7), conv.depthwise.weight, conv.depthwise.bias, padding=1, groups=4)
    torch.testing.assert_close(conv(fields(2, 4, 6, 7)), conv.pointwise(wide))


@pytest.mark.parametrize("name", ["unet", "smaat-unet"])
def test_loss_is_the_sum_over_pixels_per_sample(name, monkeypatch):
    model, future = build(f"{name}:debug", in_steps=1, out_steps=1), torch.zeros(2, 1, 1, 3, 4)
    monkeypatch.setattr(model, "forward", lambda past: future + 0.5)
    assert model.training_loss(future, future, 0).item() == pytest.approx(12 * 0.25)
    mask = torch.zeros_like(future)
    mask[0, 0, 0, 0] = 2
    assert model.training_loss(future, future, 0, mask).item() == pytest.approx(4 * 2 * 0.25 / 2)


@pytest.mark.parametrize("options", [{"width": 3}, {"levels": 1}])
def test_unet_refuses_widths_and_levels(options):
    with pytest.raises(ValueError, match="width must be even and levels >= 2"):
        build("unet", in_steps=1, out_steps=1, **options)


@pytest.mark.parametrize("options", [{"reduction": 128}, {"kernels_per_layer": 0}])
def test_smaat_unet_refuses_narrower_than_one(options):
    with pytest.raises(ValueError, match="reduction between 1 and width"):
        build("smaat-unet", in_steps=1, out_steps=1, **options)


@pytest.mark.parametrize(("steps", "parameters"), [((10, 10), 17_272_010), ((12, 1), 17_272_577)])
def test_unet_counts_of_other_lengths(steps, parameters):
    with torch.device("meta"):
        model = build("unet:published", in_steps=steps[0], out_steps=steps[1])
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize(("steps", "parameters"), [((10, 10), 4_033_826), ((4, 1), 4_032_353)])
def test_smaat_unet_counts_of_other_lengths(steps, parameters):
    with torch.device("meta"):
        model = build("smaat-unet:published", in_steps=steps[0], out_steps=steps[1])
    assert sum(weight.numel() for weight in model.parameters()) == parameters
