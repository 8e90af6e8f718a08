"""Promises that every network of the registry keeps, and the blocks they share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.core.errors import OptionError
from nowcast.models import MODELS, build, model_class
from nowcast.models.blocks import FOLDS, FieldNorm, each_frame, fold, lean, on_multiple, tiled, unfold
from nowcast.models.persistence import Persistence
from nowcast.models.recurrent import Schedule, _either_way


def smallest(name: str, **steps: int) -> torch.nn.Module:
    """The network in its smallest size, with repeatable weights."""
    if (extra := model_class(name).extra) and not find_spec(extra):
        pytest.skip(f"{name} needs {extra}, which is not installed")
    torch.manual_seed(1)
    size = ":debug" if model_class(name).trainable else ""
    return build(name + size, **({"in_steps": 3, "out_steps": 2} | steps)).eval()


def frames(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def moving_square(steps: int, size: int) -> torch.Tensor:
    """A bright square that moves by a pixel a step: unlike noise, something a network can learn."""
    clip = torch.zeros(1, steps, 1, size, size)
    for t in range(steps):
        clip[:, t, :, 4:12, 1 + t : 9 + t] = 1
    return clip


each_model = pytest.mark.parametrize("name", MODELS)
each_trainable_model = pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).trainable])
each_model_for_missing = pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).handles_missing])


@each_model
@pytest.mark.parametrize(
    ("in_steps", "out_steps", "channels", "height", "width"),
    [(3, 5, 1, 37, 50), (1, 1, 1, 16, 16), (5, 7, 2, 23, 41), (2, 3, 1, 1, 5)],
)
def test_any_length_and_grid(name, in_steps, out_steps, channels, height, width):
    model = smallest(name, in_steps=in_steps, out_steps=out_steps, channels=channels)
    with torch.inference_mode():
        future = model(frames(2, in_steps, channels, height, width))
    assert future.shape == (2, out_steps, channels, height, width)
    if not model.handles_missing:  # others may answer NaN where rain from outside the grid would come in
        assert future.isfinite().all()


@each_model
def test_eval_is_deterministic_and_leaves_the_input_alone(name):
    model, past = smallest(name), frames(1, 3, 1, 33, 40)
    kept = past.clone()
    with torch.inference_mode():
        torch.testing.assert_close(model(past), model(past), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(past, kept)


@each_model
def test_a_sample_does_not_depend_on_its_batch(name):
    model, past = smallest(name), frames(3, 3, 1, 32, 48)
    with torch.inference_mode():
        together = model(past)
        torch.testing.assert_close(model(past.flip(0)).flip(0), together, rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(model(past[1:2]), together[1:2], rtol=1e-4, atol=1e-5, equal_nan=True)


@each_model_for_missing
def test_missing_stays_missing_where_it_is_handled(name):
    model, past = smallest(name), frames(1, 3, 1, 40, 40)
    past[..., :20] = torch.nan
    with torch.inference_mode():
        future = model(past)
    assert future[..., :5].isnan().all()
    assert future[..., 25:35].isfinite().any()


@each_trainable_model
def test_gradient_reaches_every_parameter(name):
    model = smallest(name).train()
    model.training_loss(frames(2, 3, 1, 24, 20), frames(2, 2, 1, 24, 20), 0.5).backward()
    without = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@each_trainable_model
def test_loss_falls_on_a_repeated_batch(name):
    model, clip = smallest(name).train(), moving_square(5, 16)
    past, future = clip[:, :3], clip[:, 3:]
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(20):
        optimiser.zero_grad()
        loss = model.training_loss(past, future, step / 20)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@each_model
def test_state_dict_round_trip_is_exact(name, tmp_path):
    model, past = smallest(name), frames(1, 3, 1, 32, 32)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = smallest(name)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.inference_mode():
        torch.testing.assert_close(other(past), model(past), rtol=0, atol=0, equal_nan=True)


@each_trainable_model
def test_bfloat16_is_close_to_float32(name):
    model, past = smallest(name), frames(1, 3, 1, 24, 24)
    with torch.inference_mode():
        exact = model(past)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = model(past)
    span = max(1.0, exact.nan_to_num().abs().max().item())  # untrained networks may answer far beyond [0, 1]
    off = (coarse.float() - exact).nan_to_num()
    assert off.abs().mean() <= 0.02 * span  # the mean: a network that decides may decide otherwise at a pixel


@each_model
def test_wrong_input_is_refused_in_one_sentence(name):
    model = smallest(name)
    for shape in [(1, 4, 1, 32, 32), (1, 3, 2, 32, 32), (3, 1, 32, 32)]:
        with pytest.raises(ValueError, match=r"takes \(batch, 3 frames, 1 channels"):
            model(frames(*shape))


def published() -> list[tuple[str, str]]:
    return [(name, size) for name in MODELS for size in model_class(name).PUBLISHED]


@each_model
def test_every_named_size_builds(name):
    with torch.device("meta"):
        for size in model_class(name).SIZES:
            assert build(f"{name}:{size}", in_steps=2, out_steps=2).SIZES


@pytest.mark.parametrize(("name", "size"), published())
def test_published_parameter_counts(name, size):
    paper = model_class(name).PUBLISHED[size]
    lengths = {"in_steps": paper.in_steps, "out_steps": paper.out_steps, "channels": paper.channels}
    with torch.device("meta"):
        ours = build(f"{name}:{size}", **lengths)
    assert sum(weight.numel() for weight in ours.parameters()) + paper.unused == paper.parameters


@each_trainable_model
def test_says_where_it_comes_from(name):
    assert model_class(name).PAPER
    assert "debug" in model_class(name).SIZES


@each_model
def test_no_state_is_kept_between_calls(name):
    """Another batch in between changes nothing, and leaves no tensor on a module."""
    model, past = smallest(name), frames(1, 3, 1, 32, 32)
    held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with torch.inference_mode():
        first = model(past)
        model(frames(2, 3, 1, 32, 32) / 2)
        torch.testing.assert_close(model(past), first, rtol=0, atol=0, equal_nan=True)
    for module in model.modules():
        kept = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor) and id(value) not in held]
        assert kept == []


@each_trainable_model
def test_checkpointing_changes_memory_and_nothing_else(name):
    clip, losses, gradients, buffers = moving_square(5, 16), [], [], []
    for checkpointing in (False, True):
        model = smallest(name).train()
        model.checkpointing = checkpointing
        torch.manual_seed(3)
        loss = model.training_loss(clip[:, :3], clip[:, 3:], 0.4)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([weight.grad for weight in model.parameters()])
        buffers.append(dict(model.named_buffers()))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(buffers[0], buffers[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_compiler_follows_the_loss_of_clips_in_either_direction():
    model = build("predrnn:debug", in_steps=2, out_steps=2, reverse_input=True).train()
    past, future = frames(2, 2, 1, 16, 16), frames(2, 2, 1, 16, 16)
    compiled = torch.compile(model.training_loss, fullgraph=True, backend="eager")
    losses = {}
    for kind, loss in (("plain", model.training_loss), ("compiled", compiled)):
        torch.manual_seed(3)
        losses[kind] = torch.stack([loss(past, future, 0.4) for _ in range(6)])
    torch.testing.assert_close(losses["compiled"], losses["plain"])


def test_clips_run_in_either_direction():
    torch.manual_seed(3)
    orders = [_either_way(4).tolist() for _ in range(100)]
    assert 30 < orders.count([0, 1, 2, 3]) < 70
    assert orders.count([0, 1, 2, 3]) + orders.count([3, 2, 1, 0]) == 100


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"Unknown model 'covlstm'; known: persistence, .*convlstm"):
        build("covlstm", in_steps=1, out_steps=1)
    with pytest.raises(ValueError, match="Unknown size 'huge' of convlstm; known: published, small, debug"):
        build("convlstm:huge", in_steps=1, out_steps=1)
    with pytest.raises(
        ValueError, match="Unknown option depth of convgru; known: first_width, widths, kernel, strides"
    ):
        build("convgru", in_steps=1, out_steps=1, depth=3)
    with pytest.raises(ValueError, match="Unknown option depth of persistence; known: none"):
        build("persistence", in_steps=1, out_steps=1, depth=3)


# -- ConvLSTM and ConvGRU ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convlstm", "convgru"])
def test_small_size_fits_eight_megabytes(name):
    weights = build(f"{name}:small", in_steps=12, out_steps=12).parameters()
    assert sum(4 * weight.numel() for weight in weights) < 8e6


@pytest.mark.parametrize("name", ["convlstm", "convgru"])
def test_none_stands_for_zeros(name):
    """Leaving a zero input or state out of the convolution is the same as convolving zeros."""
    cell = build(name, in_steps=1, out_steps=1, widths=(32,), strides=(1,), kernel=3, first_width=4).encoder[0]
    x, zeros = frames(2, 4, 6, 7), torch.zeros(2, 32, 6, 7)
    state = cell(x, ())
    torch.testing.assert_close(state, cell(x, (zeros,) * len(state)))
    torch.testing.assert_close(cell(None, state), cell(torch.zeros_like(x), state))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"widths": (48, 64, 64)}, "multiples of 32"),
        ({"widths": (32, 64)}, "one value per stage"),
        ({"kernel": 4}, "odd"),
        ({"strides": (1, 3, 2)}, "1 or even"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("convlstm", in_steps=1, out_steps=1, **options)


# -- persistence ---------------------------------------------------------------------------------


def test_persistence_repeats_the_newest_frame():
    past = torch.tensor([1.0, 2.0, torch.nan]).reshape(1, 3, 1, 1, 1) * torch.ones(1, 1, 1, 1, 2)
    past[0, 2, 0, 0, 1] = 5.0
    future = Persistence(in_steps=3, out_steps=2)(past)
    assert future[0, :, 0, 0, 0].isnan().all()
    assert future[0, :, 0, 0, 1].tolist() == [5.0, 5.0]


# -- blocks --------------------------------------------------------------------------------------


def test_each_frame_equals_frame_by_frame():
    conv, sequence = torch.nn.Conv2d(2, 3, 3, padding=1), [frames(2, 2, 5, 4) + t for t in range(3)]
    for folded, frame in zip(each_frame(conv, sequence), sequence, strict=True):
        torch.testing.assert_close(folded, conv(frame))


@pytest.mark.parametrize(
    ("order", "channels_of_the_first_patch"),
    [
        ("pixels-first", [0, 100, 1, 101, 10, 110, 11, 111]),
        ("rows-first", [0, 1, 10, 11, 100, 101, 110, 111]),
        ("columns-first", [0, 10, 1, 11, 100, 110, 101, 111]),
    ],
)
def test_folds_have_their_three_orders(order, channels_of_the_first_patch):
    """The value of a pixel is 100 * channel + 10 * row + column."""
    axes = torch.meshgrid(100 * torch.arange(2), 10 * torch.arange(4), torch.arange(6), indexing="ij")
    pixels = sum(axes)[None]
    assert fold(pixels, 2, order)[0, :, 0, 0].tolist() == channels_of_the_first_patch
    assert fold(pixels, 2, order).shape == (1, 8, 2, 3)


@pytest.mark.parametrize("order", FOLDS)
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_unfold_undoes_fold(order, patch):
    clip = frames(2, 3, 6 * patch, 4 * patch)
    assert torch.equal(unfold(fold(clip, patch, order), patch, order), clip)
    torch.testing.assert_close(fold(clip, patch, "rows-first"), torch.nn.functional.pixel_unshuffle(clip, patch))


def test_field_norm_is_over_channels_and_pixels():
    fields, free, bound = frames(2, 3, 4, 5), FieldNorm(3), FieldNorm(3, (4, 5))
    expected = (fields - fields.mean((1, 2, 3), keepdim=True)) / fields.var((1, 2, 3), False, keepdim=True).sqrt()
    torch.testing.assert_close(free(fields), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bound(fields), expected, rtol=1e-3, atol=1e-4)
    assert (free.weight.numel(), bound.weight.numel()) == (3, 60)


def test_lean_keeps_results_and_gradients():
    inputs = [frames(3, 4).requires_grad_() for _ in range(2)]
    plain, saved = torch.sigmoid(inputs[0]) * torch.tanh(inputs[1]), lean(lambda a, b: a.sigmoid() * b.tanh(), *inputs)
    assert torch.equal(plain, saved)
    torch.testing.assert_close(
        torch.autograd.grad(saved.sum(), inputs), torch.autograd.grad(plain.sum(), inputs), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("sampling", "done", "expected"),
    [
        ("scheduled", 0.0, (1, 1)),
        ("scheduled", 0.25, (1, 0.75)),
        ("scheduled", 1.0, (1, 0)),
        ("reverse", 0.0, (0.5, 0.5)),
        ("reverse", 0.49, (0.5, 0.5)),
        ("reverse", 0.75, (1 - 0.5 * 0.0067379, 0.25)),  # exp(-5)
        ("reverse", 1.2, (1, 0)),
        ("never", 0.0, (1, 0)),
    ],
)
def test_shares_of_true_frames_follow_the_papers(sampling, done, expected):
    for until in (0.4, 1):
        assert Schedule.of(sampling, until).shares(done * until) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "iteration", "expected"),
    [
        ({}, 20_000, (1, 0.6)),
        ({}, 50_000, (1, 0)),
        ({"sampling_start_value": 0.5, "sampling_delta": 1e-5}, 20_000, (1, 0.3)),
        ({"sampling_start_value": 0.5, "sampling_delta": 2e-5}, 40_000, (1, 0)),
        ({"sampling_delta": 0, "sampling_stop_iter": 60_000}, 59_000, (1, 1)),
        # PredRNN-V2 on KTH
        ({"kind": "reverse", "r_sampling_step_1": 5_000, "r_exp_alpha": 2_000}, 4_000, (0.5, 0.5)),
        (
            {"kind": "reverse", "r_sampling_step_1": 5_000, "r_exp_alpha": 2_000},
            9_000,
            (1 - 0.5 * 0.1353353, 0.4555556),
        ),
        ({"kind": "reverse", "r_sampling_step_1": 5_000, "r_exp_alpha": 2_000}, 50_000, (1, 0)),
    ],
)
def test_sampling_can_be_given_in_the_flags_of_the_official_codes(flags, iteration, expected):
    network = build("predrnn:debug", in_steps=2, out_steps=2, sampling={"iterations": 80_000, **flags})
    assert network.sampling.shares(iteration / 80_000) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"kind": "sometimes"}, "known: scheduled, reverse, never"),
        ({"r_alpha": 1}, "Unknown r_alpha in sampling; known: kind, iterations"),
        ({"sampling_start_value": 2}, r"must lie in \[0, 1\]"),
        ({"r_sampling_step_1": 60_000}, "must be <= r_sampling_step_2"),
        ({"r_exp_alpha": "fast"}, "r_exp_alpha of sampling must be numbers"),
    ],
)
def test_flags_that_make_no_schedule_are_refused(flags, fault):
    with pytest.raises(OptionError, match=fault):
        build("predrnn:debug", in_steps=2, out_steps=2, sampling=flags)


def test_on_multiple_repeats_the_edge_and_cuts_it_off():
    seen = []
    past = torch.arange(6.0).reshape(1, 1, 1, 2, 3)
    future = on_multiple(lambda past: seen.append(past) or past + 1, past, multiple=4)
    edge = [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert seen[0][0, 0, 0].tolist() == edge
    assert torch.equal(future, past + 1)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    data=st.data(),
)
def test_tiles_are_exact_for_a_pointwise_network(height, width, tile, data):
    overlap = data.draw(st.integers(0, min(tile) - 1))
    past = frames(2, 3, 1, height, width)
    sizes = set()

    def pointwise(past):
        sizes.add(tuple(past.shape[-2:]))
        return past[:, -2:].square()

    assert torch.equal(tiled(pointwise, past, tile=tile, overlap=overlap), pointwise(past)[..., :height, :width])
    assert sizes <= {tile, (height, width)}


def test_tiles_fade_smoothly_and_share_what_was_asked():
    """Two tiles that answer 0 and 1 meet in a monotone ramp, one half in the middle of the overlap."""
    answers = iter([0.0, 1.0])
    past = torch.zeros(1, 1, 1, 8, 12)
    future = tiled(lambda past: torch.full_like(past, next(answers)), past, tile=(8, 8), overlap=4)
    row = future[0, 0, 0, 3]
    assert row[:4].tolist() == [0.0] * 4
    assert row[8:].tolist() == [1.0] * 4
    assert (row.diff() >= 0).all()
    assert (row[5] + row[6]).item() == pytest.approx(1.0)
    assert row[4].item() == pytest.approx(0.0381, abs=1e-4)  # sin²(π/16)


def test_tiles_refuse_an_overlap_as_large_as_the_tile():
    with pytest.raises(ValueError, match="overlap must be >= 0 and smaller than the tile"):
        tiled(lambda past: past, frames(1, 1, 1, 9, 9), tile=(8, 4), overlap=4)
