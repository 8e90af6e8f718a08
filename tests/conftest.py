"""Prefect kept quiet and at home in a temporary folder; no server starts but for the tests that ask for one."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import installed
from tests.paths import ROOT

# How long an example takes says more of the machine than of the code. Where CI is set, every run has the same ones.
settings.register_profile(
    "nowcast", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("nowcast")

LOCKS = tempfile.mkdtemp(prefix="nowcast-locks-")
"""Also where the processes of networks listen: they end when it is gone."""
atexit.register(shutil.rmtree, LOCKS, ignore_errors=True)

# Before anything imports prefect, which reads its settings once.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "NOWCAST_LOCKS": LOCKS,  # a cycle of one test stops no training of another
    "PREFECT_HOME": tempfile.mkdtemp(prefix="nowcast-prefect-"),
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_PLUGINS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
}

OPERATIONS = """\
title: Smoke
feed: {{reader: knmi, source: {folder}/feed}}
store: {folder}/frames
forecasts: {folder}/forecasts
scores: {folder}/scores
site: {folder}/site
products: [{{name: persistence, model: persistence}}]
every_minutes: 0.5
"""


def pytest_unconfigure() -> None:
    for folder in ("PREFECT_HOME", "NOWCAST_LOCKS"):
        shutil.rmtree(os.environ[folder], ignore_errors=True)


@pytest.fixture(scope="session")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Operations file of a chain whose feed folder is empty."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "feed").mkdir()
    file = folder / "operations.yaml"
    file.write_text(OPERATIONS.format(folder=folder))
    return file


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Tests that use it share the group ``wheel``, so that it is built once."""
    return installed.wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def site_packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment whose only package is the wheel; it borrows the dependencies of this one."""
    return installed.environment(wheel, tmp_path_factory.mktemp("installed"))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
