"""Scores: hand-worked numbers, the reference packages, and what must hold for any field."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import structural_similarity

from nowcast.core.errors import ConfigError
from nowcast.core.units import Scaling
from nowcast.verification import lpips as perceptual
from nowcast.verification.lpips import SETTING, UNTRAINED, lpips
from nowcast.verification.scores import SCORES, derive, per_model, score, sums, title
from nowcast.verification.ssim import similarity

THRESHOLDS = (0.1, 1.0, 5.0)
COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
FIELDS = arrays(np.float32, (2, 13, 12), elements=st.sampled_from([np.nan, 0.0, 0.05, 0.1, 0.7, 1.0, 4.0, 80.0]))


def compare(forecast, observed, thresholds=THRESHOLDS):
    return sums(forecast, observed, thresholds=thresholds, scaling=Scaling("linear", 0.0, 100.0))


def rain(seed, shape=(2, 60, 50)):
    return np.random.default_rng(seed).gamma(0.5, 4.0, shape).astype(np.float32)


def store(*runs, model="convlstm", thresholds=THRESHOLDS):
    """A Scores store of runs given as results of ``sums``."""
    lead_times = len(runs[0]["n"])
    stacked = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    stacked |= {"lpips": np.zeros_like(stacked["ssim"]), "lpips_frames": stacked["frames"]}
    models = [model] * len(runs) if isinstance(model, str) else list(model)
    reference = np.datetime64("2010-08-26T06:00", "ns") + np.arange(len(runs)) * np.timedelta64(5, "m")
    return xr.Dataset(
        {name: (("run", "lead_time", "threshold")[: value.ndim], value) for name, value in stacked.items()},
        coords={
            "threshold": list(thresholds),
            "lead_time": np.arange(1, lead_times + 1) * np.timedelta64(300, "s"),
            "model": ("run", np.asarray(models, object)),
            "state": ("run", np.full(len(models), "ok", object)),
            "forecast_reference_time": ("run", reference),
        },
    )


def counted(hits, misses, false_alarms, correct_negatives):
    """The sums of one lead time and threshold with these counts."""
    values = [np.asarray([[count]], np.int64) for count in (hits, misses, false_alarms, correct_negatives)]
    n = np.asarray([hits + misses + false_alarms + correct_negatives], np.int64)
    zero = np.zeros(1)
    rest = {"squared_error": zero, "absolute_error": zero, "error": zero, "ssim": zero, "frames": zero.astype(np.int64)}
    return dict(zip(COUNTS, values, strict=True)) | {"n": n} | rest


def test_counts_by_hand():
    forecast = np.float32([[[0.0, 0.1, 1.0, 5.0, np.nan, 9.0]]])
    observed = np.float32([[[0.0, 0.0, 2.0, 0.1, 7.0, np.nan]]])
    result = compare(forecast, observed)
    assert result["n"].tolist() == [4]
    assert result["hits"].tolist() == [[2, 1, 0]]
    assert result["false_alarms"].tolist() == [[1, 1, 1]]
    assert result["misses"].tolist() == [[0, 0, 0]]
    assert result["correct_negatives"].tolist() == [[1, 2, 3]]
    assert all(result[name].dtype == np.int64 for name in (*COUNTS, "n", "frames"))


def test_errors_by_hand():
    result = compare(np.float32([[[1, 2, np.nan]]]), np.float32([[[0, 4, 3]]]))
    assert [result[name].tolist() for name in ("squared_error", "absolute_error", "error")] == [[5], [3], [-1]]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_not_compared(bad: float, side: int) -> None:
    pair = [rain(1), rain(2)]
    gone = [field.copy() for field in pair]
    pair[side][0, 5, 5], gone[side][0, 5, 5] = bad, np.nan
    for name, values in compare(*gone).items():
        np.testing.assert_array_equal(compare(*pair)[name], values, err_msg=name)


def test_a_large_error_is_no_infinite_one() -> None:
    forecast, observed = np.zeros((1, 20, 20), np.float32), np.zeros((1, 20, 20), np.float32)
    forecast[0, 3, 3] = 1e20
    assert compare(forecast, observed)["squared_error"][0] == pytest.approx(1e40)


def test_a_value_stored_as_float32_reaches_its_own_threshold():
    field = np.full((1, 2, 2), 0.7, np.float32)
    assert compare(field, field, thresholds=(0.7,))["hits"].item() == 4


def test_thresholds_must_increase():
    with pytest.raises(ValueError, match="increase"):
        compare(rain(0), rain(1), thresholds=(1.0, 0.1))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="of one shape"):
        compare(rain(0), rain(1)[:, :-1])


@given(FIELDS, FIELDS)
def test_counts_add_up_to_n(forecast, observed):
    result = compare(forecast, observed)
    n = np.isfinite(forecast + observed).sum((1, 2))
    assert (result["n"] == n).all()
    assert (sum(result[name] for name in COUNTS) == n[:, None]).all()


@given(FIELDS, FIELDS)
def test_swapping_swaps_misses_and_false_alarms(forecast, observed):
    one, other = compare(forecast, observed), compare(observed, forecast)
    assert (one["misses"] == other["false_alarms"]).all()
    for name in ("hits", "correct_negatives", "n", "squared_error", "absolute_error", "ssim", "frames"):
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(one["error"], -other["error"])


@given(FIELDS, FIELDS)
def test_higher_thresholds_have_fewer_events(forecast, observed):
    result = compare(forecast, observed)
    for events in (result["hits"], result["hits"] + result["misses"], result["hits"] + result["false_alarms"]):
        assert (np.diff(events, axis=1) <= 0).all()


@given(FIELDS, FIELDS)
def test_what_lies_under_missing_pixels_does_not_matter(forecast, observed):
    missing = np.isnan(observed)
    one = compare(forecast, observed)
    other = compare(np.where(missing, np.float32(33), forecast), observed)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@given(FIELDS)
def test_a_perfect_forecast(field):
    result = compare(field, field)
    assert not result["misses"].any() and not result["false_alarms"].any() and not result["absolute_error"].any()
    np.testing.assert_allclose(result["ssim"], result["frames"])


def test_counts_and_errors_match_the_scores_package():
    categorical = pytest.importorskip("scores.categorical")
    continuous = pytest.importorskip("scores.continuous")
    forecast, observed = rain(1), rain(2)
    forecast[:, :5], observed[:, :, :7] = np.nan, np.nan
    result = compare(forecast, observed)
    pair = [xr.DataArray(field.astype(np.float64), dims=("lead", "y", "x")) for field in (forecast, observed)]
    for index, threshold in enumerate(np.float32(THRESHOLDS)):
        operator = categorical.ThresholdEventOperator(default_event_threshold=float(threshold))
        manager = operator.make_contingency_manager(*pair).transform(preserve_dims="lead")
        expected = manager.get_counts()
        for ours, theirs in zip(COUNTS, ("tp_count", "fn_count", "fp_count", "tn_count"), strict=True):
            np.testing.assert_array_equal(result[ours][:, index], expected[theirs])
    mse, mae = continuous.mse(*pair, preserve_dims="lead"), continuous.mae(*pair, preserve_dims="lead")
    np.testing.assert_allclose(result["squared_error"] / result["n"], mse, rtol=1e-6)
    np.testing.assert_allclose(result["absolute_error"] / result["n"], mae, rtol=1e-6)


def reference_ssim(first, second, **options):
    first, second = first.astype(np.float64), second.astype(np.float64)
    settings = {"data_range": 100.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(first, second, **settings, **options)


@pytest.mark.parametrize("shape", [(11, 11), (75, 40), (200, 70)])
def test_ssim_matches_scikit_image(shape):
    forecast, observed = rain(3, (2, *shape)), rain(4, (2, *shape))
    expected = [reference_ssim(*pair) for pair in zip(forecast, observed, strict=True)]
    np.testing.assert_allclose(similarity(forecast, observed, data_range=100.0)["ssim"], expected, atol=1e-6)


def test_ssim_uses_only_complete_windows():
    forecast, observed = rain(5), rain(6)
    _, full = reference_ssim(forecast[0], observed[0], full=True)
    observed[:, 30, 20] = np.nan
    complete = np.zeros(full.shape, bool)
    complete[5:-5, 5:-5] = True
    complete[25:36, 15:26] = False
    result = similarity(forecast[:1], observed[:1], data_range=100.0)
    np.testing.assert_allclose(result["ssim"], full[complete].mean(), atol=1e-6)


def test_ssim_without_a_complete_window_adds_nothing():
    forecast = rain(7)
    forecast[:, ::10, ::10] = np.nan
    result = similarity(forecast, rain(8), data_range=100.0)
    assert result["ssim"].tolist() == [0, 0] and result["frames"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="data_range"):
        similarity(forecast, forecast, data_range=0.0)


def test_a_dry_frame_with_false_alarms_costs_csi():
    scores = store(counted(8, 2, 0, 90), counted(0, 0, 10, 90), thresholds=(1.0,))
    assert derive(scores, ["csi"], over=("run",))["csi"].item() == pytest.approx(0.4)
    assert derive(scores, ["csi"], over=())["csi"].values.ravel().tolist() == [0.8, 0.0]


def test_ratios_by_hand():
    scores = store(counted(82, 23, 38, 222), thresholds=(1.0,))
    values = derive(scores, ["csi", "pod", "far", "bias", "ets", "hss"], over=("run", "lead_time", "threshold"))
    assert values["n"].item() == 365
    expected = {"csi": 82 / 143, "pod": 82 / 105, "far": 38 / 120, "bias": 120 / 105}
    chance = 105 * 120 / 365
    expected["ets"] = (82 - chance) / (143 - chance)
    expected["hss"] = (304 - chance - 260 * 245 / 365) / (365 - chance - 260 * 245 / 365)
    assert {name: values[name].item() for name in expected} == pytest.approx(expected)
    assert values.attrs["pooling"] == "sums over run, lead_time, threshold, then ratios"


def test_skill_scores_survive_the_counts_of_a_year():
    year = 10**10
    values = derive(store(counted(year, 0, 0, year), thresholds=(1.0,)), ["hss", "ets"], over=("run",))
    assert values["hss"].item() == 1 and values["ets"].item() == 1


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_nan_where_nothing_was_compared(name):
    blank = np.full((1, 12, 12), np.nan, np.float32)
    values = derive(store(compare(blank, blank)), [name], over=("run",))
    assert np.isnan(values[name]).all() and values["n"].item() == 0


@pytest.mark.parametrize("name", SCORES)
def test_every_score_tells_a_perfect_forecast(name):
    field = rain(9)
    value = derive(store(compare(field, field)), [name], over=("run", "lead_time"))[name]
    best = 0 if name in ("far", "mse", "mae", "mean_error", "lpips") else 1
    np.testing.assert_allclose(value, best)
    assert len(title(name).split()) <= 4


def test_pooling_is_the_score_of_all_pixels_at_once():
    forecast, observed = rain(10, (6, 40, 40)), rain(11, (6, 40, 40))
    runs = store(*(compare(forecast[i : i + 2], observed[i : i + 2]) for i in (0, 2, 4)))
    once = store(compare(forecast, observed))
    names, over = ["csi", "hss", "mse", "mean_error", "ssim"], ("run", "lead_time")
    xr.testing.assert_allclose(derive(runs, names, over=over), derive(once, names, over=over))


def test_unknown_score_lists_the_known():
    with pytest.raises(ValueError, match="known: csi, pod"):
        score("cis")


def test_per_model_adds_up_runs():
    scores = store(
        counted(1, 0, 0, 0), counted(2, 0, 0, 0), counted(4, 0, 0, 0), model=["a", "b", "a"], thresholds=(1.0,)
    )
    pooled = per_model(scores)
    assert pooled["model"].values.tolist() == ["a", "b"]
    assert pooled["hits"].values.ravel().tolist() == [5, 2]
    assert pooled["runs"].values.ravel().tolist() == [2, 1]


def test_a_fallback_counts_for_nobody():
    scores = store(counted(1, 0, 0, 0), counted(2, 0, 0, 0), model=["a", "b"], thresholds=(1.0,))
    scores["state"] = "run", np.asarray(["fallback", "ok"], object)
    assert per_model(scores)["model"].values.tolist() == ["b"]


def test_one_frame_has_no_lead_axis():
    one, many = compare(rain(1)[0], rain(2)[0]), compare(rain(1), rain(2))
    assert one["hits"].shape == (3,) and one["n"].shape == ()
    assert all(np.array_equal(one[name], many[name][0]) for name in one)


def test_lpips_of_equal_fields_is_zero_and_grows_with_difference():
    field = rain(14, (1, 64, 64)).clip(0, 50)
    noise = np.random.default_rng(0).normal(0, 1, field.shape).astype(np.float32)
    options = {"limits": (0.0, 50.0), "weights": UNTRAINED}
    same, near, far = (lpips((field + size * noise).clip(0, 50), field, **options).item() for size in (0.0, 1.0, 10.0))
    assert same == 0 and 0 < near < far


@pytest.mark.parametrize(("shape", "defined"), [((30, 64), False), ((64, 7), False), ((31, 31), True)])
def test_lpips_of_frames_too_small_for_its_network_is_none(shape, defined):
    pair = np.zeros((2, 1, *shape), np.float32)
    found = lpips(*pair, limits=(0, 1), weights=UNTRAINED)
    assert np.isfinite(found).tolist() == [defined]


def test_lpips_ignores_what_is_missing():
    field = rain(15, (2, 64, 64)).clip(0, 50)
    holed = field.copy()
    holed[0, :20], holed[1] = np.nan, np.nan
    distance = lpips(holed, field, limits=(0.0, 50.0), weights=UNTRAINED)
    assert distance[0] == 0 and np.isnan(distance[1])


def test_lpips_refuses_values_outside_its_limits():
    with pytest.raises(ValueError, match="exceed the limits 0 to 1; clip"):
        lpips(np.full((1, 64, 64), 3.0), np.zeros((1, 64, 64)), limits=(0.0, 1.0), weights=UNTRAINED)


def test_lpips_reads_torchvisions_weights_from_a_file(tmp_path, monkeypatch):
    backbone = perceptual._network(UNTRAINED, "cpu").net.state_dict()
    path = tmp_path / "alexnet.pth"
    torch.save({"features." + name.partition(".")[2]: 2 * value for name, value in backbone.items()}, path)
    monkeypatch.setenv(SETTING, str(path))
    loaded = perceptual._network(str(path), "cpu").net.state_dict()
    assert all(torch.equal(loaded[name], 2 * value) for name, value in backbone.items())
    fields = rain(16, (2, 1, 64, 64)).clip(0, 50)
    assert lpips(*fields, limits=(0.0, 50.0)) == lpips(*fields, limits=(0.0, 50.0), weights=path)


def test_lpips_without_weights_says_what_to_do(monkeypatch):
    perceptual.import_torchvision()
    from torchvision.models import _api

    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(ConfigError, match="set NOWCAST_LPIPS_WEIGHTS"):
        lpips(np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), limits=(0.0, 1.0))


@pytest.mark.parametrize(("name", "mean"), [("mse", 2.5 / 4), ("mae", 1.5 / 4), ("mean_error", -0.5 / 4)])
def test_means_of_errors_by_hand(name: str, mean: float) -> None:
    """Sums of two runs over one and three pixels: the mean is that of all four, and no whole number."""
    table = {"squared_error": [0.25, 2.25], "absolute_error": [0.5, 1.0], "error": [0.5, -1.0], "n": [1, 3]}
    runs = xr.Dataset({key: ("run", values) for key, values in table.items()})
    assert float(derive(runs, [name], over=["run"])[name]) == mean
