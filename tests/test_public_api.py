"""What a notebook gets from ``import nowcast``."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nowcast
from nowcast.core.errors import BadInput
from tests.paths import SAMPLE

FUNCTIONS = sorted(set(nowcast.__all__) - {"__version__"})


def test_a_notebook_goes_from_files_to_scores_and_a_map(tmp_path: Path) -> None:
    files = sorted(SAMPLE.glob("*.h5"))[:7]
    taken = nowcast.ingest("knmi", files[:6], tmp_path / "frames")
    assert taken.taken == 6
    cube = nowcast.open_store(tmp_path / "frames")
    made = nowcast.forecast(cube, "extrapolation", leads=2)
    assert made["rainfall_rate"].dims == ("lead_time", "y", "x")
    picture = nowcast.plot_map(made.isel(lead_time=1), tmp_path / "map.png")
    assert picture.size[0] > 640
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert nowcast.plot_map(cube["rainfall_rate"].isel(time=-1)).size == picture.size


def test_a_map_is_of_one_frame(tmp_path: Path) -> None:
    nowcast.ingest("knmi", sorted(SAMPLE.glob("*.h5"))[:2], tmp_path / "frames")
    with pytest.raises(BadInput, match="choose one frame by isel"):
        nowcast.plot_map(nowcast.open_store(tmp_path / "frames"))


def test_networks_are_built_and_loaded() -> None:
    network = nowcast.build("convlstm:debug", in_steps=2, out_steps=3)
    assert network.out_steps == 3
    model = nowcast.load_checkpoint("lagrangian-radar.safetensors")
    assert np.isfinite(next(model.network.parameters()).detach().numpy()).all()
    with pytest.raises(BadInput, match="no such checkpoint"):
        nowcast.load_checkpoint("nowhere.safetensors")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(nowcast, name)
    text = inspect.getdoc(function)
    assert "Args:" in text and "Raises:" in text
    signature = inspect.signature(function)
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert signature.return_annotation is not inspect.Signature.empty


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nowcast.nothing
    assert set(nowcast.__all__) == set(dir(nowcast))


def test_the_import_alone_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'xarray', 'numpy', 'matplotlib', 'prefect', 'typer'}"
    code = f"import nowcast, sys; print(sorted(set(sys.modules) & {heavy}))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
