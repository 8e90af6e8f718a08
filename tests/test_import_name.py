"""One name is installed, and whoever has packages called ``models``, ``flows`` and ``configs`` can use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nowcast.models import MODELS
from nowcast.operations import promotion
from tests import checkpoints, installed, synthetic
from tests.operations.test_promotion import chain
from tests.paths import ROOT

THEIRS = ("models", "flows", "configs")
BROKEN = "raise ImportError('somebody else took this for his own')\n"
NOTEBOOK = """\
import configs, flows, models
assert models.MINE and flows.MINE and configs.MINE
import nowcast
from nowcast.models import MODELS
network = nowcast.build("convgru:debug", in_steps=2, out_steps=2)
assert type(network).__module__ == "nowcast.models.convlstm", type(network)
from nowcast.config import Recipe, load
assert load(Recipe, "training/convgru-debug.yaml").name == "convgru-debug"
from nowcast.flows import deployments
assert deployments.deployments(deployments.SHIPPED)
print(len(MODELS))
"""


def project(folder: Path, content: str) -> Path:
    """A folder with packages of those names."""
    for name in THEIRS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(content)
    return folder


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """One whose packages must not be imported at all."""
    return project(tmp_path, BROKEN)


def python(folder: Path, *arguments: str, given: str = "") -> str:
    """What Python prints in a folder, which comes first on its path as in anybody's project."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_command_line_does_not_take_their_packages_for_ours(theirs: Path) -> None:
    assert "Usage" in python(theirs, "-m", "nowcast.cli", "--help")
    rows = json.loads(python(theirs, "-m", "nowcast.cli", "models", "--readers", "--json"))
    assert len(rows) > 20


@pytest.mark.slow
def test_the_table_of_networks_is_ours(theirs: Path) -> None:
    """Builds every one of them."""
    rows = json.loads(python(theirs, "-m", "nowcast.cli", "models", "--json"))
    assert {row["model"].partition(":")[0] for row in rows} >= set(MODELS)


def test_a_notebook_uses_theirs_and_ours(tmp_path: Path) -> None:
    (project(tmp_path, "MINE = True\n") / "notebook.py").write_text(NOTEBOOK)
    assert int(python(tmp_path, "notebook.py")) > 20


@pytest.mark.slow
def test_a_shadow_run_does_not_take_their_packages_for_ours(theirs: Path) -> None:
    """The real process, started where they are."""
    settings = chain(theirs, registry=theirs / "registry")
    synthetic.make_store(theirs / "frames", range(4))
    for seed, name in enumerate(("old", "new")):
        promotion.register(settings, checkpoints.save(theirs / f"{name}.safetensors", seed=seed), name=name)
    promotion.promote(settings, "old")
    script = (
        "import sys; from datetime import datetime, UTC; from nowcast.config import Operations; "
        "from nowcast.operations import shadow; settings = Operations.model_validate_json(sys.stdin.read()); "
        "print(shadow.run(settings, datetime(2010, 8, 26, 0, 15, tzinfo=UTC), seconds=300))"
    )
    said = python(theirs, "-c", script, given=settings.model_dump_json())
    assert said == "['new 2010-08-26T00:15Z ok']\n"
    assert promotion.shadow_stores(settings).forecasts.read().sizes["run"] == 1


# --- what is installed --------------------------------------------------------------------------------


def tops(wheel: Path) -> set[str]:
    """Names at the top of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name.partition("/")[0] for name in archive.namelist()}


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_a_wheel_holds_one_name_and_all_that_belongs_to_it(wheel: Path, tmp_path: Path) -> None:
    """The same from the checkout and from its sdist."""
    rebuilt = installed.wheel_of(installed.sdist(tmp_path), tmp_path)
    for each in (wheel, rebuilt):
        (facts,) = tops(each) - {"nowcast"}
        assert facts.endswith(".dist-info")
    listings = []
    for each in (wheel, rebuilt):
        with zipfile.ZipFile(each) as archive:
            listings.append({name for name in archive.namelist() if name.startswith("nowcast/")})
    assert listings[0] == listings[1]
    wanted = {
        "nowcast/models/convlstm.py",
        "nowcast/flows/up.py",
        "nowcast/configs/operations/demo.yaml",
        "nowcast/web/site/index.html",
        "nowcast/registry/weights/lagrangian-radar.safetensors",
    }
    assert wanted <= listings[0]


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_what_is_installed_works_beside_their_packages(site_packages: Path, tmp_path: Path) -> None:
    (project(tmp_path, "MINE = True\n") / "notebook.py").write_text(NOTEBOOK)
    program = site_packages.parents[2] / "bin/python"
    assert int(installed.run(program, "notebook.py", cwd=tmp_path)) > 20
    assert str(site_packages) in installed.run(program, "-c", "import nowcast; print(nowcast.__file__)", cwd=tmp_path)
