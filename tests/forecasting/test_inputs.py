"""Which frames a network is given, and in which quantity: the newest ones, by the source's own relation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from nowcast import store
from nowcast.config import ScalingSettings
from nowcast.core import cube as cubes
from nowcast.core.errors import ForecastError
from nowcast.core.units import convert
from nowcast.forecasting import run as forecasting
from nowcast.models import MODELS, Nowcaster
from nowcast.registry import checkpoint
from tests import checkpoints, synthetic

OWN = (316.0, 1.4)
"""Z = a R^b of a source, far from Marshall and Palmer's."""
DRY = -32.0
"""dBZ of no echo."""


class Changed(Nowcaster):
    """A network that repeats the newest frame, multiplied by one number and raised by another."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1, gain: float = 1, more: float = 0) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.gain, self.more = gain, more

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        return (self.gain * past_BTCHW[:, -1:] + self.more).expand(-1, self.out_steps, -1, -1, -1)


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network under a name of its own in the table."""
    module = ModuleType("nowcast.models.changed")
    module.Changed = Changed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODELS, "changed", "changed:Changed")


def frames(path: Path, quantity: str, *, zr: tuple[float, float] | None = OWN) -> xr.Dataset:
    """Rain of a source that states its own relation, or none."""
    cube = synthetic.cube(range(4))
    if zr:
        cube.attrs |= {"zr_a": zr[0], "zr_b": zr[1]}
    if quantity == "reflectivity":
        dbz = convert(cube["rainfall_rate"].values, "rainfall_rate", "reflectivity", zr=zr or (200.0, 1.6))
        echo = cube["rainfall_rate"].copy(data=dbz).assign_attrs(units="dBZ")
        cube = cube.drop_vars("rainfall_rate").assign(reflectivity=echo)
    store.FrameStore(path).append(cube, message="m")
    return store.open_store(path)


@pytest.mark.parametrize(
    ("present", "time", "first"),
    [
        ([0, 1, 2, 3], None, 0),
        ([0, 1, 5, 6, 10, 11, 12], None, 10),
        ([0, 1, 5, 6, 10, 11, 12], 6, 5),
        ([0, 1, 5, 6, 10, 11, 12], 1, 0),
        ([0, 3, 6], None, 0),
        ([0, 4], None, 4),
    ],
)
def test_the_past_begins_after_the_last_gap_that_is_not_bridged(
    tmp_path: Path, present: list[int], time: int | None, first: int
) -> None:
    cube = store.open_store(synthetic.make_store(tmp_path / "s", present))
    end = present[-1] if time is None else time
    found = forecasting.past(cube, time=None if time is None else synthetic.START + time * synthetic.STEP)
    expected = [at for at in present if first <= at <= end]
    assert found.time.tolist() == [(synthetic.START + at * synthetic.STEP).item() for at in expected]
    np.testing.assert_allclose(found.field[-1], synthetic.rain(end), atol=0.0051)
    assert found.digests == [str(cube["digest"].sel(time=when).item()) for when in found.time]


@pytest.mark.parametrize(
    ("present", "step", "chosen"),
    [
        (range(6), 300, [2, 3, 4, 5]),
        ([0, 1, 2, 4, 5], 300, [2, (2, 4), 4, 5]),
        ([0, 1, 4, 5], 300, [(1, 4), (1, 4), 4, 5]),
        ([0, 2, 4, 6], 300, [(2, 4), 4, (4, 6), 6]),
        ([0, 4, 5], 300, [4, 5]),
        (range(0, 12, 2), 600, [4, 6, 8, 10]),
        (range(6), 600, [1, 3, 5]),
        (range(6), 450, [(0, 1), 2, (3, 4), 5]),
        ([0, 1, 2, 2.5, 3, 3.1, 4], 300, [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_a_model_is_given_even_steps(
    present: list[float], step: int, chosen: list[int | tuple[int, int]], tmp_path: Path
) -> None:
    """A frame of the archive, or the two around a time that has none."""
    cube = store.open_store(synthetic.make_store(tmp_path / "s", list(present)))
    frames = forecasting.past(cube)
    stamps = [float((time - synthetic.START) / synthetic.STEP) for time in frames.time]
    inputs = frames.inputs(4, step)
    found = [(stamps[one.before], stamps[one.after]) if one.is_bridged else stamps[one.before] for one in inputs]
    assert found == chosen
    times = [float((one.time - inputs[-1].time) / np.timedelta64(1, "s")) for one in inputs]
    assert times == [-step * back for back in range(len(chosen))][::-1]


@pytest.mark.parametrize(("late", "bridged"), [(-75, 0), (-70, 0), (70, 0), (75, 0), (76, 2), (150, 2)])
def test_frames_may_be_late_by_a_quarter_of_the_cadence(tmp_path: Path, late: int, bridged: int) -> None:
    """75 s of 300 s; what would be later is bridged."""
    cube = synthetic.cube(range(5))
    moved = cube["time"].values.copy()
    moved[3:] += np.timedelta64(late, "s")
    store.FrameStore(tmp_path / "s").append(cube.assign_coords(time=moved), message="m")
    inputs = forecasting.past(store.open_store(tmp_path / "s")).inputs(4)
    assert sum(one.is_bridged for one in inputs) == bridged


@pytest.mark.parametrize("missing", [[3], [3, 4]])
def test_a_gap_is_bridged_along_the_motion(tmp_path: Path, missing: list[int]) -> None:
    """Rain that moves three pixels a frame is where it would have been, not faded in and out in two places."""
    indices = [index for index in range(7) if index not in missing]
    fields = np.stack([synthetic.rain(index, speed=3) for index in indices])
    cube = synthetic.cube(indices)
    cube["rainfall_rate"].values[:] = fields
    store.FrameStore(tmp_path / "s").append(cube, message="m")
    frames = forecasting.past(store.open_store(tmp_path / "s"))
    inputs = frames.inputs(7)
    for one, made in zip(inputs, frames.values(inputs), strict=True):
        index = round((one.time - synthetic.START) / synthetic.STEP)
        truth = synthetic.rain(index, speed=3)
        assert (np.isnan(made) == np.isnan(truth)).all()
        before, error = fields[one.before], np.nanmean((made - truth) ** 2)
        assert one.is_bridged == (index in missing)
        assert error <= 0.1 * np.nanmean((before - truth) ** 2) or not one.is_bridged
        np.testing.assert_allclose(made, truth, atol=1.5 if one.is_bridged else 0.0051)


def test_a_bridged_frame_is_named_and_is_not_in_the_archive(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", [0, 1, 2, 4, 5])
    cube = store.open_store(path)
    made = forecasting.forecast(cube, "extrapolation", leads=1)
    assert made.attrs["bridged"] == "2010-08-26T00:15Z"
    digest = dict(zip(cube["time"].values, cube["digest"].values, strict=True))
    entries = [[f"2010-08-26T00:{5 * at:02d}Z", digest[synthetic.START + at * synthetic.STEP]] for at in (2, 4, 5)]
    entries.insert(1, ["2010-08-26T00:15Z", "bridged", entries[0], entries[1]])
    assert json.loads(made.attrs["input_frames"]) == entries
    assert store.open_store(path).sizes["time"] == 5
    whole = forecasting.forecast(store.open_store(synthetic.make_store(tmp_path / "w", range(6))), "extrapolation")
    assert whole.attrs["bridged"] == ""


@pytest.mark.parametrize(("seconds", "any_step"), [(600, True), (600, False), (360, True), (900, True)])
def test_a_network_that_may_works_at_its_own_step_and_gives_the_lead_times_of_the_feed(
    tmp_path: Path, changed: None, monkeypatch: pytest.MonkeyPatch, seconds: int, any_step: bool
) -> None:
    monkeypatch.setattr(Changed, "any_step", any_step)
    fields = np.stack([synthetic.rain(index, speed=seconds / 300) for index in range(5)])
    times = [synthetic.START + index * np.timedelta64(seconds, "s") for index in range(5)]
    cube = cubes.make({"rainfall_rate": fields}, times, synthetic.GRID, cadence=seconds)
    store.FrameStore(tmp_path / "s").append(cube, message="m")
    network = checkpoints.save(tmp_path / "net.safetensors", model="changed", in_steps=3)
    if not any_step:
        with pytest.raises(ForecastError, match="trained on a step of 300 s, the feed has 600 s"):
            forecasting.forecast(store.open_store(tmp_path / "s"), network)
        return
    made = forecasting.forecast(store.open_store(tmp_path / "s"), network, leads=4)
    assert (made["lead_time"].values == np.arange(1, 5) * np.timedelta64(seconds, "s")).all()
    np.testing.assert_allclose(made["rainfall_rate"][-1], fields[-1], atol=0.3)  # the network repeats the newest


@pytest.mark.usefixtures("changed")
def test_rain_is_raised_by_ten_decibels_of_its_own_source(tmp_path: Path) -> None:
    """10 dB are a factor of 10 ^ (1 / b) in rain rate."""
    cube = frames(tmp_path / "s", "rainfall_rate")
    network = checkpoints.save(
        tmp_path / "dbz.safetensors",
        model="changed",
        options={"more": 0.1},
        quantity="reflectivity",
        scaling=ScalingSettings(kind="linear", low=DRY, high=DRY + 100),
    )
    made = forecasting.forecast(cube, network, leads=1)["rainfall_rate"].values[0]
    rain = cube["rainfall_rate"].values[-1]
    np.testing.assert_allclose(made[rain > 0], rain[rain > 0] * 10 ** (1 / OWN[1]), rtol=1e-3)


@pytest.mark.usefixtures("changed")
def test_twice_the_rain_is_so_many_decibels_of_its_own_source(tmp_path: Path) -> None:
    """A factor of 2 in rain rate is 10 b log10(2) in dBZ."""
    cube = frames(tmp_path / "s", "reflectivity")
    network = checkpoints.save(
        tmp_path / "rate.safetensors",
        model="changed",
        options={"gain": 2.0},
        scaling=ScalingSettings(kind="linear", low=0, high=200),
    )
    made = forecasting.forecast(cube, network, leads=1)["reflectivity"].values[0]
    echo = cube["reflectivity"].values[-1]
    wet = echo > 0
    np.testing.assert_allclose(made[wet], echo[wet] + 10 * OWN[1] * np.log10(2), atol=0.01)
    assert np.isnan(made[np.isnan(echo)]).all()


@pytest.mark.parametrize("zr", [OWN, None])
def test_thresholds_of_probabilities_are_those_of_the_source(tmp_path: Path, zr: tuple[float, float] | None) -> None:
    cube = frames(tmp_path / "s", "reflectivity", zr=zr)
    network = checkpoints.save(tmp_path / "levels.safetensors", model="lagrangian:debug", in_steps=3)
    made = forecasting.forecast(cube, network, leads=2)
    model = checkpoint.load(network)
    rates = model.scaling.decode(model.network.levels.numpy())  # type: ignore[union-attr]
    a, b = zr or (200.0, 1.6)
    wanted = 10 * np.log10(a) + 10 * b * np.log10(rates)
    assert made["threshold"].values == pytest.approx(wanted, rel=0.05)  # two digits
    assert made["threshold"].attrs["units"] == "dBZ"


@pytest.mark.parametrize("count", [2, 3])
def test_the_step_of_an_event_is_that_of_its_frames(tmp_path: Path, count: int) -> None:
    """Where a store states none, two frames are enough to know it, and one is not."""
    path = synthetic.make_store(tmp_path / "s", range(0, 2 * count, 2), sequence="event", cadence=None)
    cube = store.open_store(path)
    assert forecasting.past(cube).cadence_seconds == 600
    assert forecasting.past(cube).time.size == count
    with pytest.raises(ForecastError, match="the step is unknown"):
        forecasting.past(cube, time=synthetic.START)
