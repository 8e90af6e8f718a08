"""Extrapolation beside pysteps on the KNMI event of 2010-08-26: time of one forecast, and skill.

pysteps runs as its manual shows it: Lucas-Kanade motion of three frames in dB, semi-Lagrangian extrapolation. S-PROG
is ours around its cascade: with the motion of extrapolation, in its scale, and known where that is. STEPS takes minutes
per forecast of this grid and is left out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch

from nowcast.core.units import QUANTITIES
from nowcast.models import build
from nowcast.models.extrapolation import Extrapolation
from nowcast.readers import knmi
from nowcast.verification.categorical import counts
from nowcast.verification.continuous import errors
from tests.paths import REAL_DATA

FOLDER = REAL_DATA / "knmi"
SCALING = QUANTITIES["rainfall_rate"].scaling
IN_STEPS, OUT_STEPS = 4, 12
HOURLY = range(12, 80, 12)
"""Index of the newest frame of each run: 01:00 to 06:00."""
SHOWN = {5: 0, 10: 1, 15: 2, 30: 5, 45: 8, 60: 11}
"""Minutes ahead -> index of the lead."""
MOST_SECONDS = 0.5
NO_PYSTEPS = "pysteps is not installed (pip install '.[pysteps]'): not compared"

Forecaster = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def rates() -> np.ndarray:
    """(time, y, x) mm/h, every five minutes from 00:00."""
    if not FOLDER.exists():
        pytest.skip(f"needs the radar files of {FOLDER}")
    return np.concatenate([knmi.read(item)["rainfall_rate"].values for item in knmi.find(FOLDER)])


def ours(past_THW: np.ndarray, *, name: str = "extrapolation", **options: object) -> np.ndarray:
    model = build(name, in_steps=len(past_THW), out_steps=OUT_STEPS, **options)
    return SCALING.decode(model(scaled(past_THW))[0, :, 0].numpy())


def scaled(past_THW: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(SCALING.encode(past_THW))[None, :, None]


def persistence(past_THW: np.ndarray) -> np.ndarray:
    return np.repeat(past_THW[-1:], OUT_STEPS, axis=0)


def pysteps(past_THW: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that is not ours
        from pysteps import motion, nowcasts

        decibel = np.where(past_THW[-3:] >= 0.1, 10 * np.log10(np.maximum(past_THW[-3:], 0.1)), -15.0)
        decibel[np.isnan(past_THW[-3:])] = np.nan
        field = motion.get_method("LK")(np.ma.masked_invalid(decibel))
        return nowcasts.get_method("extrapolation")(past_THW[-1], field, OUT_STEPS)


CASCADES: dict[str, Forecaster] = {
    "sprog": partial(ours, name="sprog"),
    "sprog mean": partial(ours, name="sprog", matching="mean"),
    "sprog smooth": partial(ours, name="sprog", matching="none"),
}


def forecasters() -> dict[str, Forecaster]:
    known: dict[str, Forecaster] = {"extrapolation": ours, "persistence": persistence}
    return known | (CASCADES | {"pysteps": pysteps} if find_spec("pysteps") else {})


def seconds(*forecasts: Callable[[], object], rounds: int = 3) -> list[float]:
    """Shortest wall time of each, taken in turns so that other work on the machine disturbs all alike."""
    spent = np.empty((rounds + 1, len(forecasts)))
    for turn, which in np.ndindex(spent.shape):
        start = time.perf_counter()
        forecasts[which]()
        spent[turn, which] = time.perf_counter() - start
    return spent[1:].min(axis=0).tolist()  # the first turn warms up


def scored(rates: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """CSI at 1 mm/h and MSE per lead, pooled over the runs, where all forecasts and the observation exist."""
    names = forecasters()
    totals = {name: np.zeros((5, OUT_STEPS)) for name in names}
    for newest in HOURLY:
        runs = {name: forecast(rates[newest - IN_STEPS + 1 : newest + 1]) for name, forecast in names.items()}
        common = np.isfinite(np.stack(list(runs.values()))).all(axis=0)
        observed = np.where(common, rates[newest + 1 : newest + 1 + OUT_STEPS], np.nan)
        for name, future in runs.items():
            table, sums = counts(future, observed, thresholds=[1.0]), errors(future, observed)
            parts = [table[part][:, 0] for part in ("hits", "misses", "false_alarms")]
            totals[name] += np.stack([*parts, sums["squared_error"], sums["n"]])
    return {name: (t[0] / t[:3].sum(axis=0), t[3] / t[4]) for name, t in totals.items()}


def table(skill: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    lines = [f"{'minutes ahead':34}" + "".join(f"{minutes:9d}" for minutes in SHOWN)]
    for title, index in (("CSI at 1 mm/h", 0), ("MSE (mm/h)^2", 1)):
        for name, scores in skill.items():
            values = "".join(f"{scores[index][lead]:9.4f}" for lead in SHOWN.values())
            lines.append(f"{title:17}{name:17}{values}")
    return "\n".join(lines)


def test_time_of_one_forecast(
    benchmark: Callable[..., object], rates: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    past = rates[33:37]
    model = Extrapolation(in_steps=IN_STEPS, out_steps=OUT_STEPS)
    forward = partial(model, scaled(past))
    benchmark.pedantic(forward, rounds=5, warmup_rounds=1)
    rivals = [partial(pysteps, past)] if find_spec("pysteps") else []
    fastest, *reference = seconds(forward, *rivals)
    title = f"{past.shape[1:]}, {OUT_STEPS} leads, {cv2.getNumThreads()} threads: extrapolation {fastest:.2f} s"
    rival = f"pysteps {reference[0]:.2f} s, {reference[0] / fastest:.1f} times as long" if reference else NO_PYSTEPS
    with capsys.disabled():
        print(f"\n{title}; {rival}")
    assert fastest <= MOST_SECONDS


def test_skill(benchmark: Callable[..., object], rates: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    skill = benchmark.pedantic(scored, args=(rates,), rounds=1)
    with capsys.disabled():
        print(f"\n{len(HOURLY)} hourly runs, counts pooled, scored where all exist\n{table(skill)}")
        if "pysteps" not in skill:
            print(NO_PYSTEPS)
    for name in ("persistence", *(["pysteps"] if "pysteps" in skill else [])):
        assert (skill["extrapolation"][0] >= skill[name][0]).all()
        assert (skill["extrapolation"][1] <= skill[name][1]).all()
