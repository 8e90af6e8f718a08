"""What can be told of the image without building it: files exist, pins apply, nobody is root."""

from __future__ import annotations

import itertools
import json
import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from nowcast import config
from nowcast.cli import app
from tests.paths import ROOT

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["nowcast"]


def stages() -> list[list[tuple[str, str]]]:
    """(instruction, rest) of each build stage, in order."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines()
    steps = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    starts = [place for place, step in enumerate(steps) if step[0] == "FROM"] + [len(steps)]
    return [steps[start:end] for start, end in itertools.pairwise(starts)]


BUILD, RUNTIME = stages()


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in RUNTIME if name == instruction]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in BUILD:
        if name == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_every_package_of_the_wheel_is_in_the_image() -> None:
    packages = re.search(r"packages = (\[.*\])", (ROOT / "pyproject.toml").read_text())[1]
    assert {f"COPY {name} {name}" for name in json.loads(packages)} <= {" ".join(step) for step in BUILD}


def test_every_install_is_pinned() -> None:
    installs = [rest for name, rest in BUILD if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in install and "--only-binary=:all:" in install for install in installs)


def test_runtime_is_the_environment_alone_and_not_root() -> None:
    assert arguments("COPY") == ["--from=build /opt/nowcast /opt/nowcast"]
    assert not any(word in rest for rest in arguments("RUN") for word in ("pip", "apt", "gcc"))
    assert arguments("USER") == ["nowcast"]
    assert arguments("HEALTHCHECK")


@pytest.mark.parametrize("command", [json.loads(arguments("CMD")[0]), SERVICE["command"]], ids=["image", "compose"])
def test_command_is_one_that_the_program_knows(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Run up to the door: the arguments are read and the settings are valid."""
    started: list[tuple] = []
    monkeypatch.setattr("nowcast.flows.up.up", lambda path, **options: started.append((path, options)))
    words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in command]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    ((path, options),) = started
    assert options["host"] == "0.0.0.0"
    assert config.load(config.Operations, path, options["overrides"]).title


def test_compose_publishes_the_exposed_ports_and_prefect_to_this_machine_only() -> None:
    exposed = arguments("EXPOSE")[0].split()
    assert [port.rpartition(":")[2] for port in SERVICE["ports"]] == exposed
    assert SERVICE["ports"][0].startswith("127.0.0.1:")


def test_compose_keeps_the_data_and_restarts() -> None:
    targets = [re.sub(r"\$\{[^}]*\}", "", volume).split(":")[1] for volume in SERVICE["volumes"]]
    assert targets == ["/feed", arguments("VOLUME")[0]]
    assert "data" in COMPOSE["volumes"]
    assert SERVICE["restart"] == "unless-stopped"
    assert (ROOT / "docker" / SERVICE["build"]["context"] / SERVICE["build"]["dockerfile"]).resolve().is_file()
