"""Which frames a network is given, and in which quantity: the newest ones, by the source's own relation."""

from __future__ import annotations

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
        ([0, 1, 3, 4, 6, 7, 8], None, 6),
        ([0, 1, 3, 4, 6, 7, 8], 4, 3),
        ([0, 1, 3, 4, 6, 7, 8], 1, 0),
        ([0, 2, 4], None, 4),
    ],
)
def test_the_past_begins_after_the_last_gap_before_its_end(
    tmp_path: Path, present: list[int], time: int | None, first: int
) -> None:
    cube = store.open_store(synthetic.make_store(tmp_path / "s", present))
    end = present[-1] if time is None else time
    found = forecasting.past(cube, time=None if time is None else synthetic.START + time * synthetic.STEP)
    assert found.time.tolist() == [(synthetic.START + at * synthetic.STEP).item() for at in range(first, end + 1)]
    np.testing.assert_allclose(found.field[-1], synthetic.rain(end), atol=0.0051)
    assert found.digests == [str(cube["digest"].sel(time=when).item()) for when in found.time]


@pytest.mark.parametrize(("late", "first"), [(-75, 0), (-70, 0), (70, 0), (75, 0), (76, 2), (150, 2)])
def test_frames_may_be_late_by_a_quarter_of_the_cadence(tmp_path: Path, late: int, first: int) -> None:
    """75 s of 300 s; a later one leaves a gap before it."""
    cube = synthetic.cube(range(4))
    moved = cube["time"].values.copy()
    moved[2:] += np.timedelta64(late, "s")
    store.FrameStore(tmp_path / "s").append(cube.assign_coords(time=moved), message="m")
    assert forecasting.past(store.open_store(tmp_path / "s")).time.size == 4 - first


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
