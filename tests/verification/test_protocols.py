"""Scores of published tables: hand-worked numbers for every protocol, after the code behind each table."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import nowcast
from nowcast.config.benchmark import PROTOCOLS as SETTINGS
from nowcast.core.errors import OptionError
from nowcast.core.units import vil_from_level
from nowcast.verification import lpips as perceptual
from nowcast.verification.lpips import SETTING, UNTRAINED
from nowcast.verification.protocols import HKO_PIXELS, PROTOCOLS
from nowcast.verification.published import dataset, derive, overall, pixels, score_as, sums

SHAPE = (1, 1, 8, 12)
"""Of (clip, lead, H, W): not square, so that sums over one axis show."""


def flat(value: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.full(shape, value, np.float32)


def ssim_of_flat(first: float, second: float, data_range: float) -> float:
    """Of frames without variance: (2 a b + C1) / (a^2 + b^2 + C1), C1 = (0.01 x range)^2."""
    c1 = (0.01 * data_range) ** 2
    return (2 * first * second + c1) / (first**2 + second**2 + c1)


# --- pictures -------------------------------------------------------------------------------------


def test_moving_mnist_truncates_to_8_bits_and_sums_over_a_frame() -> None:
    """0.5 is level 127, and 1.2 is clipped to white: 128 levels apart on 96 pixels."""
    found = score_as(flat(1.2), flat(0.5), "moving-mnist")
    assert found["mse"] == pytest.approx(96 * 0.25)
    assert found["mae"] == pytest.approx(96 * 0.5)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 128))
    assert found["ssim"] == pytest.approx(ssim_of_flat(255, 127, 255))
    assert found["sharpness"] == 0


def test_sharpness_is_the_largest_laplacian_of_the_forecast() -> None:
    """A pixel of level 51 on black: -4 x 51 there; one of level 102 is beyond 8 bits."""
    spot = flat(0)
    spot[0, 0, 4, 4] = 0.2
    assert score_as(spot, flat(0.5), "moving-mnist")["sharpness"] == 204
    assert score_as(2 * spot, flat(0.5), "moving-mnist")["sharpness"] == 255


def test_kth_has_a_data_range_of_two_and_lpips_by_the_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, UNTRAINED)
    found = score_as(flat(0.5), flat(0.25), "kth")
    assert found == {
        "mse": pytest.approx(96 * 0.0625),
        "psnr": pytest.approx(20 * np.log10(4)),
        "ssim": pytest.approx(ssim_of_flat(0.5, 0.25, 2)),
    }
    frames = np.random.default_rng(0).random((2, 1, 1, 1, 32, 40)).astype(np.float32)
    lpips = score_as(*frames, "kth", lpips=True)["lpips"]
    assert lpips == pytest.approx(1000 * perceptual.distance(*frames[:, 0, 0]), rel=1e-6), "left on [0, 1]"


def test_openstl_sums_what_leaves_the_network_and_clips_for_psnr_and_ssim() -> None:
    found = score_as(flat(1.5), flat(0.5), "openstl")
    assert (found["mse"], found["mae"]) == (96, 96)
    assert found["rmse"] == pytest.approx(np.sqrt(96))
    assert found["psnr"] == pytest.approx(20 * np.log10(2))
    assert found["ssim"] == pytest.approx(ssim_of_flat(1, 0.5, 2))


def test_openstl_takes_the_root_of_the_mean_of_all_clips() -> None:
    forecast, observed = np.concatenate([flat(0.5), flat(1.0)]), np.concatenate([flat(0), flat(0)])
    found = score_as(forecast, observed, "openstl")
    assert found["mse"] == pytest.approx(96 * (0.25 + 1) / 2)
    assert found["rmse"] == pytest.approx(np.sqrt(60))


def test_the_mse_of_gs2pm_grows_with_the_width_alone() -> None:
    """Twelve columns x the mean squared error of 255 levels, in millions; a forecast beyond white counts as it is."""
    error = 255**2 * 0.5**2
    assert score_as(flat(1.5), flat(1), "gs2pm")["mse"] == pytest.approx(12 * error / 1e6)
    assert score_as(flat(1.5, (1, 1, 16, 12)), flat(1, (1, 1, 16, 12)), "gs2pm")["mse"] == pytest.approx(
        12 * error / 1e6
    )
    assert score_as(flat(1.5, (1, 1, 8, 24)), flat(1, (1, 1, 8, 24)), "gs2pm")["mse"] == pytest.approx(24 * error / 1e6)
    assert score_as(flat(1.5), flat(1), "gs2pm")["psnr"] == pytest.approx(20 * np.log10(2))


def test_the_ssim_of_gs2pm_is_that_of_the_first_channel() -> None:
    colour = np.stack([flat(0.5), flat(0), flat(0)], axis=2)
    seen = np.stack([flat(0.25), flat(1), flat(1)], axis=2)
    assert score_as(colour, seen, "gs2pm")["ssim"] == pytest.approx(ssim_of_flat(0.5, 0.25, 1))
    other = np.mean([ssim_of_flat(0.5, 0.25, 2), *[ssim_of_flat(0, 1, 2)] * 2])
    assert score_as(colour, seen, "openstl")["ssim"] == pytest.approx(other), "the mean of the channels elsewhere"


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("moving-mnist", lambda frame: np.clip(frame, 0, 1)),
        ("openstl", lambda frame: 2 * np.clip(frame, 0, 1) - 1),
        ("gs2pm", lambda frame: frame * 65025 / 127.5 - 1),
    ],
)
def test_lpips_gets_frames_as_the_published_code_scales_them(
    name: str, scale: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, UNTRAINED)
    frames = np.random.default_rng(1).random((2, 1, 1, 3, 32, 32)).astype(np.float32) * 1.2
    distance = perceptual.distance(*map(scale, frames[:, 0, 0]))
    assert score_as(*frames, name, lpips=True)["lpips"] == pytest.approx(distance, rel=1e-5)


def test_ssim_is_that_of_windows_of_seven() -> None:
    """Computed by the formula: equal weights, unbiased variances, windows within the frame."""
    one, other = np.random.default_rng(2).random((2, 8, 12)).astype(np.float32)
    c1, c2, values = 0.01**2, 0.03**2, []
    for top in range(2):
        for left in range(6):
            a, b = (frame[top : top + 7, left : left + 7].astype(float).ravel() for frame in (one, other))
            (va, cab), (_, vb) = np.cov(a, b)
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(luminance * (2 * cab + c2) / (va + vb + c2))
    assert score_as(one[None, None], other[None, None], "gs2pm")["ssim"] == pytest.approx(np.mean(values), abs=1e-5)


def test_equal_frames_have_an_infinite_psnr_as_officially() -> None:
    pair = np.concatenate([flat(0.5), flat(0.5)])
    assert score_as(pair, np.concatenate([flat(0.5), flat(0)]), "gs2pm")["psnr"] == np.inf


def test_missing_pixels_of_pictures_are_black_in_both() -> None:
    forecast, observed = flat(0.5), flat(0.5)
    forecast[..., 0], observed[..., 1] = np.nan, np.nan
    assert score_as(forecast, observed, "openstl")["mse"] == pytest.approx(8 * 0.25), "a forecast has to say something"


# --- radar ----------------------------------------------------------------------------------------


def test_rates_of_hko7_are_the_pixels_of_its_code() -> None:
    assert np.multiply(HKO_PIXELS, 255) == pytest.approx([83.70, 117.92, 140.53, 157.64, 184.75], abs=0.006)
    assert pixels(np.array([-10.0, 60.0]), "hko7", quantity="reflectivity").tolist() == [0, 1]
    rates = np.array([0.5, 30], np.float32)
    assert pixels(rates, "hko7", quantity="rainfall_rate") == pytest.approx([HKO_PIXELS[0], HKO_PIXELS[4]], abs=1e-6)


def dbz(pixel: float) -> float:
    return 70 * pixel - 10


def test_hko7_weighs_by_what_was_observed_and_sums_over_the_mask() -> None:
    """Four pixels: 20 and 3 mm/h observed, both forecast 0.1 lower; a dry one; one outside of the mask."""
    heavy, light = 0.68, 0.5
    observed = np.array([[[[dbz(heavy), dbz(light)], [dbz(0), np.nan]]]], np.float32)
    forecast = np.array([[[[dbz(heavy - 0.1), dbz(light - 0.1)], [dbz(0), dbz(1)]]]], np.float32)
    found = score_as(forecast, observed, "hko7", quantity="reflectivity")
    assert found["mse"] == pytest.approx(0.02)
    assert found["mae"] == pytest.approx(0.2)
    assert found["b_mse"] == pytest.approx((10 + 2) * 0.01)
    assert found["b_mae"] == pytest.approx((10 + 2) * 0.1)
    # Rows and columns within the mask: 0.18 as observed between the first two; 0.68 against 0.58 down the column.
    assert found["gdl"] == pytest.approx(0.1)
    assert found["csi≥0.5 mm/h"] == 1
    assert found["csi≥2 mm/h"] == 0.5, "0.4 is below 2 mm/h"
    assert found["hss≥2 mm/h"] == pytest.approx(2 * (1 * 1 - 0 * 1) / ((2 * 2) + (1 * 1)))
    assert np.isnan(found["csi≥30 mm/h"])


def test_hko7_counts_by_lead_time_and_sevir_all_together() -> None:
    """One hit of one event in the first frame, none of three in the second: mean(1, 0) or 1 / 4."""
    observed, forecast = np.zeros((2, 1, 2, 2, 2), np.float32)
    observed[0, 0, 0, 0] = observed[0, 1].flat[0] = observed[0, 1].flat[1] = observed[0, 1].flat[2] = 0.9
    forecast[0, 0, 0, 0] = 0.9
    assert score_as(forecast, observed, "hko7")["csi≥30 mm/h"] == 0.5
    found = score_as(forecast, observed, "sevir")
    assert found["csi≥219"] == found["csi_m"] == 0.25
    assert found["bias≥16"] == 0.25 and found["sucr≥16"] == 1


def test_sevir_is_scored_in_levels() -> None:
    levels = np.array([[[[74, 15], [219, 255]]]], np.uint8)
    observed = vil_from_level(levels)  # the last pixel is missing
    forecast = vil_from_level(np.array([[[[74, 17], [218, 0]]]], np.uint8))
    found = score_as(forecast, observed, "sevir", quantity="vil")
    assert (found["csi≥16"], found["csi≥74"], found["csi≥219"]) == (pytest.approx(2 / 3), 1, 0)
    assert found["mse"] == pytest.approx((0 + 4 + 1) / 3, abs=1e-3)
    assert found["mae"] == pytest.approx(1, abs=1e-3)


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_sums_may_be_added_up(name: str) -> None:
    rng = np.random.default_rng(4)
    clips = [rng.random((2, 3, 1, 9, 9)).astype(np.float32) for _ in range(4)]
    parts = [sums(*clip, name) for clip in clips]
    together = dataset({key: np.stack([part[key] for part in parts]) for key in parts[0]}, name).sum("window")
    whole = score_as(*np.swapaxes(clips, 0, 1), name)
    table = overall(together, name)
    assert table["mse"].item() == pytest.approx(whole["mse"])
    by_lead = derive(together, name)
    assert by_lead["mse"].mean().item() == pytest.approx(whole["mse"])
    assert set(by_lead) == set(PROTOCOLS[name].names(lpips=False))


def test_settings_know_all_protocols_and_scores() -> None:
    assert {name: tuple(found.scores) for name, found in PROTOCOLS.items()} == SETTINGS


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(OptionError, match="Unknown protocol 'nix'; known: moving-mnist, kth, openstl"):
        score_as(flat(0), flat(0), "nix")
    with pytest.raises(OptionError, match="Protocol hko7 scores reflectivity, or pictures of it, and not vil"):
        score_as(flat(0), flat(0), "hko7", quantity="vil")


def test_notebooks_score_by_protocol() -> None:
    assert nowcast.score_as(flat(1), flat(0.5), "gs2pm")["psnr"] == pytest.approx(20 * np.log10(2))


def test_opencv_computes_the_laplacian_that_is_meant() -> None:
    assert cv2.Laplacian(np.eye(3, dtype=np.uint8), 3).dtype == np.int16, "the 3 of the official code is a type"
