"""GS2PM: its prompt, its masks, what each stage trains, and weights of any scale under their official names."""

from __future__ import annotations

import math

import pytest
import torch

from nowcast.models import build
from nowcast.models.blocks import portions
from nowcast.models.gs2pm import GS2PM
from nowcast.models.official import find, load


def debug(**options) -> GS2PM:
    torch.manual_seed(1)
    return build("gs2pm:debug", **({"in_steps": 3, "out_steps": 2} | options))


def clip(steps: int = 3, size: tuple[int, int] = (24, 20)) -> torch.Tensor:
    return torch.rand(2, steps, 1, *size, generator=torch.Generator().manual_seed(2))


def test_prompt_is_a_border_around_zeros():
    prompt = debug(channels=2, prompt_grid=(10, 14), border=3).prompt
    with torch.no_grad():
        for value, side in enumerate(prompt.parameters(), start=1):
            side.fill_(value)
    picture = prompt(10, 14)
    assert picture.shape == (1, 2, 10, 14)
    assert (picture[..., :3, :] == 1).all()
    assert (picture[..., 7:, :] == 2).all()
    assert (picture[..., 3:7, :3] == 3).all()
    assert (picture[..., 3:7, 11:] == 4).all()
    assert not picture[..., 3:7, 3:11].any()
    assert sum(side.numel() for side in prompt.parameters()) == 2 * (10 * 14 - 4 * 8)


def test_prompt_is_stretched_to_frames_of_other_sizes():
    prompt = debug(prompt_grid=(16, 16), border=4).prompt
    with torch.no_grad():
        for side in prompt.parameters():
            side.fill_(1)
    stretched = prompt(32, 48)
    assert stretched.shape == (1, 1, 32, 48)
    assert (stretched[..., :7, :] == 1).all()  # a quarter of the side, less the pixel where it fades
    assert not stretched[..., 9:23, 13:35].any()


@pytest.mark.parametrize(("kept", "seen"), [(0.6, 39), (0.4, 26), (1.0, 64)])
def test_mask_keeps_whole_cells(kept, seen):
    """8 x 8 cells; the official share of 0.6 keeps 39 of them."""
    model = debug(cell=16, kept=kept)
    mask = model.seen(torch.zeros(5, 3, 1, 128, 128))
    assert mask.shape == (5, 1, 1, 128, 128)
    cells = mask.unflatten(3, (8, 16)).unflatten(5, (8, 16))
    assert (cells.amin((4, 6)) == cells.amax((4, 6))).all()
    assert (cells[:, 0, 0, :, 0, :, 0].sum((1, 2)) == seen).all()
    assert (mask[0] != mask[1]).any() or kept == 1
    assert len(debug(cell=16, one_mask=True).seen(torch.zeros(5, 3, 1, 128, 128))) == 1


def test_cells_are_cut_at_the_edge_of_the_grid():
    mask = debug(cell=16).seen(torch.zeros(1, 3, 1, 37, 50))
    assert mask.shape == (1, 1, 1, 37, 50)
    assert mask.sum() < 37 * 50


def test_the_forecast_comes_from_the_prompt_and_the_filling_does_not():
    model, past = debug().eval(), clip()
    with torch.no_grad():
        forecast, filled = model(past), model.fill(past)
        model.prompt.up.add_(1)
        assert not torch.allclose(model(past), forecast)
        assert torch.equal(model.fill(past), filled)


def test_loss_is_the_squared_plus_the_absolute_error():
    model, past, future = debug(masked=False).eval(), clip(), clip(2)
    off = (model(past) - future).detach()
    assert model.training_loss(past, future, 0.0).item() == pytest.approx((off.square() + off.abs()).mean().item())
    weight = torch.zeros_like(future)
    weight[:, 0] = 2
    seen = off[:, 0]
    assert model.training_loss(past, future, 0.0, weight).item() == pytest.approx(
        (seen.square() + seen.abs()).mean().item()
    )


def test_pretraining_adds_the_filling_of_the_past():
    torch.manual_seed(5)
    whole = debug(kept=1.0).eval()
    alone = debug(kept=1.0, masked=False).eval()
    past, future = clip(), clip(2)
    off = (whole.fill(past) - past).detach()
    expected = alone.training_loss(past, future, 0.0) + (off.square() + off.abs()).mean()
    torch.testing.assert_close(whole.training_loss(past, future, 0.0), expected)


def test_prompt_tuning_changes_the_prompt_and_nothing_else():
    model = debug()
    model.tune("prompt")
    assert model.train().training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.Adam((weight for weight in model.parameters() if weight.requires_grad), lr=0.1)
    model.training_loss(clip(), clip(2), 0.0).backward()
    optimiser.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"prompt.{side}" for side in ("up", "down", "left", "right")}
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if not name.startswith("prompt."))


def test_full_tuning_trains_all_on_the_forecast_alone():
    tuned, alone, past, future = debug(), debug(masked=False), clip(), clip(2)
    tuned.tune("prompt")
    tuned.tune("full")
    assert all(weight.requires_grad for weight in tuned.parameters())
    torch.testing.assert_close(
        tuned.eval().training_loss(past, future, 0.0), alone.eval().training_loss(past, future, 0.0)
    )


def test_more_frames_at_once_differ_from_the_plain_network_in_the_last_layer_alone():
    plain, wide = debug(), debug(out_steps=7, at_once=True)
    ours, theirs = plain.state_dict(), wide.state_dict()
    assert ours.keys() == theirs.keys()
    differ = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert differ == {"translator.2.reduction.weight", "translator.2.reduction.bias"}
    assert theirs["translator.2.reduction.weight"].shape == (7 * 8, 16, 1, 1)
    assert wide(clip()).shape == (2, 7, 1, 24, 20)


def test_frames_at_once_are_those_of_the_plain_network_where_lengths_are_equal():
    plain, at_once, past = debug(out_steps=3).eval(), debug(out_steps=3, at_once=True).eval(), clip()
    assert torch.equal(plain(past), at_once(past))


@pytest.mark.parametrize(("out_steps", "numbers"), [(2, [0, 1]), (5, [0, 1, 2, 2, 2])])
def test_first_features_are_those_of_the_same_frame_and_then_of_the_last(out_steps, numbers):
    """Two samples of three frames, in portions of four maps."""
    maps = torch.arange(6.0).view(6, 1, 1, 1)
    matched = debug(out_steps=out_steps, at_once=True).matched(list(maps.split(4)))
    assert [len(part) for part in matched][:-1] in ([], [4], [4, 4])
    assert torch.cat(matched).flatten().tolist() == [*numbers, *(3 + number for number in numbers)]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"border": 8}, r"leave an inside in prompt_grid \(16, 16\), got 8"),
        ({"kept": 0.0}, r"kept must lie in \(0, 1\]"),
        ({"hidden": 18, "heads": 4}, "multiples of 4, got 18"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        debug(**options)


def official(options: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes by the rules of the official code."""
    t, c, s, d, n_s, n_t, r = (options[key] for key in ("t", "c", "s", "d", "n_s", "n_t", "r"))
    stacked, (height, columns), border = t * s, options["grid"], options["border"]
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, weight: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    for i in range(n_s):
        layer(f"enc.enc.{i}.conv.conv", (s, s if i else c, 3, 3))
        layer(f"enc.enc.{i}.conv.norm", (s,))
        layer(f"dec.dec.{i}.conv.conv" + (".0" if i % 2 == 0 else ""), (4 * s if i % 2 == 0 else s, s, 3, 3))
        layer(f"dec.dec.{i}.conv.norm", (s,))
    layer("dec.readout", (c, s, 1, 1))
    widths = [stacked, *[d] * (n_t - 1), stacked]
    for i in range(n_t):
        m, block = widths[i], f"translator.enc.{i}.block"
        attention = m == widths[i + 1] and i > 0
        layer(f"{block}.pos_embed", (m, 1, 3, 3))
        for norm in ("norm1", "norm2"):
            layer(f"{block}.{norm}", (m,))
        matrix = () if attention else (1, 1)
        layer(f"{block}.mlp.fc1", (int(r * m), m, *matrix))
        layer(f"{block}.mlp.fc2", (m, int(r * m), *matrix))
        if attention:
            layer(f"{block}.attn.qkv", (3 * m, m))
            layer(f"{block}.attn.proj", (m, m))
            shapes |= {f"{block}.gamma_1": (m,), f"{block}.gamma_2": (m,)}
        else:
            layer(f"{block}.conv1", (m, m, 1, 1))
            layer(f"{block}.attn", (m, 1, 5, 5))
            layer(f"{block}.conv2", (m, m, 1, 1))
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.{kind}": (m,) for kind in ("running_mean", "running_var")}
                shapes[f"{block}.{norm}.num_batches_tracked"] = ()
        if m != widths[i + 1]:
            layer(f"translator.enc.{i}.reduction", (widths[i + 1], m, 1, 1))
    shapes |= {f"prompt.pad_{side}": (1, c, border, columns) for side in ("up", "down")}
    shapes |= {f"prompt.pad_{side}": (1, c, height - 2 * border, border) for side in ("left", "right")}
    return shapes


SMALL = {"t": 10, "c": 3, "s": 64, "d": 128, "n_s": 4, "n_t": 8, "r": 8, "grid": (128, 128), "border": 32}
SCALES = [
    {"t": 3, "c": 1, "s": 6, "d": 8, "n_s": 2, "n_t": 2, "r": 4, "grid": (12, 20), "border": 5},
    {"t": 5, "c": 2, "s": 4, "d": 24, "n_s": 6, "n_t": 5, "r": 2.5, "grid": (40, 16), "border": 3},
    {"t": 4, "c": 1, "s": 4, "d": 16, "n_s": 4, "n_t": 4, "r": 8, "grid": (16, 16), "border": 4},  # d is t * s
]


def test_official_names_are_counted_as_published():
    shapes = official(SMALL)
    assert len(shapes) == 182
    learned = [shape for name, shape in shapes.items() if "running" not in name and "tracked" not in name]
    assert sum(math.prod(shape) for shape in learned) == 10_379_779


@pytest.mark.parametrize("options", SCALES)
@pytest.mark.parametrize("source", ["gs2pm_small", "gs2pm_small_tuned"])
def test_any_scale_is_read_from_the_tensors(source, options):
    weights = {name: torch.rand(shape) for name, shape in official(options).items()}
    model = load(source, weights, {"heads": 4, "drop_path": 0.1, "mlp_ratio": options["r"]})
    names = find(source).names(model)
    assert set(weights) == {name for made in names.values() for name in made.names}
    past = torch.rand(1, options["t"], options["c"], 13, 22)
    with torch.inference_mode():
        assert model(past).shape == past.shape
    counters = {name for name in weights if name.endswith("tracked")}
    load(source, {f"module.{name}": weights[name] for name in weights.keys() - counters}, {"heads": 4})


def test_the_source_tells_whether_the_masked_branch_is_trained():
    weights = {name: torch.rand(shape) for name, shape in official(SCALES[0]).items()}
    masked = [load(source, weights, {"heads": 4}).masked for source in ("gs2pm_small", "gs2pm_small_tuned")]
    assert masked == [True, False]


def test_frames_in_portions_give_the_same_as_all_at_once(monkeypatch):
    """12 frames of 24 x 20 with 8 channels: five of them are 75 kB."""
    model, past = build("gs2pm:debug", in_steps=6, out_steps=6).eval(), clip(6)
    assert [len(part) for part in portions(past.flatten(0, 1), 8)] == [12]
    whole = model(past)
    monkeypatch.setattr("nowcast.models.blocks.PORTION", 80_000)
    assert [len(part) for part in portions(past.flatten(0, 1), 8)] == [5, 5, 2]
    torch.testing.assert_close(model(past), whole)
    assert [len(part) for part in portions(past.flatten(0, 1), 1000)] == [1] * 12
