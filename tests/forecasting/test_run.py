"""Never dark, never lying: fallbacks are named, the withheld is withheld, provenance is complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from nowcast.config import Product, ScalingSettings
from nowcast.core.errors import ConfigError, ForecastError
from nowcast.forecasting import fallback as fallbacks
from nowcast.forecasting import netcdf
from nowcast.forecasting import run as forecasting
from nowcast.models import MODELS, Nowcaster
from nowcast.models.lagrangian import Lagrangian
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.store import FrameStore, Store, open_store
from tests import synthetic

FALLBACK = ("extrapolation", "persistence")


class Broken(Nowcaster):
    """A network that returns NaN, or raises."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1, raises: bool = False) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.raises = raises

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        if self.raises:
            raise RuntimeError("out of memory\nwith a long trace")
        return self.weight * past_BTCHW[:, -1:].expand(-1, self.out_steps, -1, -1, -1) * float("nan")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Saves a checkpoint of a small network, broken or not, and returns its path."""
    monkeypatch.setitem(MODELS, "broken", "broken:Broken")
    monkeypatch.setitem(__import__("sys").modules, "nowcast.models.broken", type("module", (), {"Broken": Broken}))

    def make(model: str = "convlstm", *, in_steps: int = 3, cadence: int = 300, **options: object) -> str:
        if model == "convlstm":
            options = {"first_width": 4, "widths": (32, 32, 32), "kernel": 3, "strides": (2, 2, 2)}
        from nowcast.models import build

        card = Card(
            model=model,
            options=options,
            in_steps=in_steps,
            out_steps=4,
            quantity="rainfall_rate",
            scaling=ScalingSettings(kind="decibel", low=0.1, high=100),
            cadence_seconds=cadence,
            code_version="test",
            created="now",
        )
        net = build(model, in_steps=in_steps, out_steps=4, **options)
        return str(checkpoint.save(tmp_path / f"{model}-{in_steps}-{cadence}-{len(options)}.safetensors", net, card))

    return make


def run_of(
    tmp_path: Path,
    model: str,
    *,
    frames: list[int] | range = range(6),
    leads: int = 6,
    fallback: tuple[str, ...] = FALLBACK,
) -> xr.Dataset:
    path = synthetic.make_store(tmp_path / "frames", frames)
    fallbacks.issue(
        path, str(tmp_path / "forecasts"), [Product(name="wanted", model=model)], fallback=fallback, leads=leads
    )
    return open_store(tmp_path / "forecasts").isel(run=0).load()


def test_a_forecast_is_cf_and_knows_where_it_comes_from(tmp_path: Path) -> None:
    cube = open_store(synthetic.make_store(tmp_path / "frames", range(6)))
    made = forecasting.forecast(cube, "extrapolation", leads=3)
    assert made["rainfall_rate"].dims == ("lead_time", "y", "x")
    reference = synthetic.START + 5 * synthetic.STEP
    assert made["forecast_reference_time"].values == reference
    assert (made["time"].values == reference + np.arange(1, 4) * synthetic.STEP).all()
    used = json.loads(made.attrs["input_frames"])
    assert [time for time, _ in used] == [f"2010-08-26T00:{minute:02d}Z" for minute in (10, 15, 20, 25)]
    assert [digest for _, digest in used] == cube["digest"].values[-4:].tolist()
    assert made.attrs["snapshot"] == Store(tmp_path / "frames").snapshot()
    with xr.open_dataset(netcdf.write_netcdf(made, tmp_path / "out.nc"), decode_timedelta=True) as read:
        assert read["rainfall_rate"].attrs["standard_name"] == "rainfall_rate"
        assert read["rainfall_rate"].attrs["grid_mapping"] == "crs"
        assert read["lead_time"].attrs["standard_name"] == "forecast_period"
        np.testing.assert_allclose(read["rainfall_rate"], made["rainfall_rate"], atol=0.0051)


def test_probabilities_come_with_a_network_that_gives_them(tmp_path: Path) -> None:
    cube = open_store(synthetic.make_store(tmp_path / "frames", range(6)))
    made = forecasting.forecast(cube, "lagrangian-radar.safetensors", leads=14)
    chance = made["probability_of_rainfall_rate_above_threshold"]
    assert chance.dims == ("threshold", "lead_time", "y", "x")
    assert chance["threshold"].values.tolist() == [0.1, 0.5, 1, 2, 5, 10, 20, 40]
    assert chance["threshold"].attrs["units"] == "mm h-1"
    assert chance["threshold"].attrs["spp__relative_to_threshold"] == "greater_than_or_equal_to"
    within = chance.isel(lead_time=slice(12)).values
    assert (np.isnan(within) == np.isnan(made["rainfall_rate"].values[:12])).all()
    assert (np.diff(np.nan_to_num(within), axis=0) <= 0).all() and np.nanmin(within) >= 0 and np.nanmax(within) <= 1
    assert chance.isel(lead_time=slice(12, None)).isnull().all()  # it makes twelve at once
    with xr.open_dataset(netcdf.write_netcdf(made, tmp_path / "out.nc"), decode_timedelta=True) as read:
        stored = read["probability_of_rainfall_rate_above_threshold"]
        assert stored.attrs["grid_mapping"] == "crs" and stored.attrs["units"] == "1"
        np.testing.assert_allclose(stored, chance, atol=0.0026)
        np.testing.assert_allclose(read["rainfall_rate"], made["rainfall_rate"], atol=0.0051)


def test_a_network_with_probabilities_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = open_store(synthetic.make_store(tmp_path / "frames", range(6)))
    runs, made = [], Lagrangian.exceedance
    monkeypatch.setattr(Lagrangian, "exceedance", lambda self, past: runs.append(past.shape) or made(self, past))
    forecasting.forecast(cube, "lagrangian-radar.safetensors", leads=12)
    assert len(runs) == 1


def test_the_same_forecast_twice_is_the_same_bits(tmp_path: Path) -> None:
    cube = open_store(synthetic.make_store(tmp_path / "frames", range(6)))
    first, second = (forecasting.forecast(cube, "extrapolation") for _ in range(2))
    assert first["rainfall_rate"].identical(second["rainfall_rate"])


def test_a_network_goes_beyond_its_length_but_not_its_coverage(tmp_path: Path, network: Callable[..., str]) -> None:
    run = run_of(tmp_path, network(), leads=6)
    assert run["state"] == "ok"
    assert run["producer"] == "convlstm"
    field = run["rainfall_rate"]
    assert np.isnan(field[:, :6, :6]).all()
    assert np.isfinite(field[:, 6:, 6:]).all()


@pytest.mark.parametrize(
    ("model", "options", "frames", "reason"),
    [
        ("broken", {}, range(6), "values that are not finite"),
        ("broken", {"raises": True}, range(6), "out of memory"),
        ("convlstm", {"in_steps": 5}, [0, 1, 2, 6, 7], "needs 5 frames at steps of 5 min with no more than 2"),
        ("convlstm", {"cadence": 360}, range(6), "trained on a step of 360 s, the feed has 300 s"),
    ],
)
def test_the_fallback_is_named_with_the_reason(
    tmp_path: Path, network: Callable[..., str], model: str, options: dict, frames: list[int], reason: str
) -> None:
    run = run_of(tmp_path, network(model, **options), frames=frames)
    assert (run["state"], run["model"], run["producer"]) == ("fallback", "wanted", "extrapolation")
    assert reason in str(run["reason"].item())
    assert "\n" not in str(run["reason"].item())


def test_a_missing_checkpoint_falls_back(tmp_path: Path) -> None:
    run = run_of(tmp_path, "gone.safetensors")
    assert (run["state"], run["producer"]) == ("fallback", "extrapolation")
    assert "no such checkpoint" in str(run["reason"].item())


def test_one_frame_only_is_persistence_and_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path, "extrapolation", frames=[0])
    assert (run["state"], run["producer"]) == ("fallback", "persistence")


def test_nothing_usable_is_withheld_with_the_reason(tmp_path: Path, network: Callable[..., str]) -> None:
    run = run_of(tmp_path, network("broken"), fallback=())
    assert (run["state"], run["producer"]) == ("withheld", "")
    assert "not finite" in str(run["reason"].item())
    assert np.isnan(run["rainfall_rate"]).all()


def test_a_forecast_is_made_once(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(6))
    products = [Product(name="a", model="persistence"), Product(name="b", model="extrapolation")]
    options = {"fallback": (), "leads": 2}
    assert len(fallbacks.issue(path, str(tmp_path / "f"), products[:1], **options)) == 1
    assert fallbacks.issue(path, str(tmp_path / "f"), products, **options) == ["b 2010-08-26T00:25Z ok"]
    assert fallbacks.issue(path, str(tmp_path / "f"), products, **options) == []
    assert open_store(tmp_path / "f").sizes["run"] == 2


def test_a_run_comes_back_from_the_store_as_it_was_made(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(6))
    fallbacks.issue(path, str(tmp_path / "f"), [Product(name="p", model="persistence")], fallback=(), leads=2)
    reference = synthetic.START + 5 * synthetic.STEP
    run = netcdf.read_run(str(tmp_path / "f"), reference, "p")
    made = forecasting.forecast(open_store(path), "persistence", leads=2)
    np.testing.assert_allclose(run["rainfall_rate"], made["rainfall_rate"], atol=0.0051)
    assert run.attrs["input_frames"] == made.attrs["input_frames"]
    assert run.attrs["state"] == "ok"
    with pytest.raises(ForecastError, match="has no q from"):
        netcdf.read_run(str(tmp_path / "f"), reference, "q")


def test_a_time_without_a_frame_says_which_is_the_newest(tmp_path: Path) -> None:
    cube = open_store(synthetic.make_store(tmp_path / "frames", range(3)))
    with pytest.raises(ForecastError, match="no frame at 2010-08-26T05:00Z; the newest is 2010-08-26T00:10Z"):
        forecasting.forecast(cube, "persistence", time=np.datetime64("2010-08-26T05:00"))


def test_rain_beyond_what_a_file_can_hold_is_cut_not_wrapped(tmp_path: Path) -> None:
    frames = synthetic.cube(range(4))
    frames["rainfall_rate"][:, 20:30, 20:30] = 8646.0
    FrameStore(tmp_path / "frames").append(frames, message="an outlier as OPERA has them")
    made = forecasting.forecast(open_store(tmp_path / "frames"), "persistence", leads=1)
    with xr.open_dataset(netcdf.write_netcdf(made, tmp_path / "out.nc"), decode_timedelta=True) as read:
        assert read["rainfall_rate"].max() == pytest.approx(327.67)


def test_another_number_of_leads_needs_another_store(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(6))
    products = [Product(name="p", model="persistence")]
    fallbacks.issue(path, str(tmp_path / "f"), products, fallback=(), leads=2)
    with pytest.raises(ConfigError, match="holds forecasts of 2 leads, not 3; set leads: 2"):
        fallbacks.issue(path, str(tmp_path / "f"), products, fallback=(), leads=3)
