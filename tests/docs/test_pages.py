"""What the pages say exists: commands, options, settings, files, names of the Python API."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import nowcast
from nowcast.cli import app
from nowcast.config import Benchmark, Operations, Recipe, load
from tests.paths import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SETTINGS = {"train": Recipe, "benchmark": Benchmark, "cycle": Operations, "up": Operations}
"""Command -> class of the settings that its first argument names."""
VARIABLES = {"$m": "extrapolation", "$t": "04:00"}
"""Of the loops in the tutorial."""
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> Iterator[str]:
    """Fenced blocks of one language; of none for commands."""
    yield from (found[3] for found in BLOCK.finditer(page.read_text()) if found[2] == language)


def commands() -> list[tuple[str, str]]:
    """Page and command of every line that begins with ``nowcast``."""
    found = []
    for page in PAGES:
        for block in blocks(page, ""):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.strip()) for line in lines if re.match(r" *nowcast [a-z-]", line)]
    return found


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a command, as the command line itself parses them."""
    for variable, value in VARIABLES.items():
        line = line.replace(variable, value)
    words = shlex.split(line, comments=True)[1:]
    group: Any = typer.main.get_command(app)
    context = group.make_context("nowcast", [], resilient_parsing=True)
    shared = {option for parameter in group.params for option in parameter.opts}
    while words and words[0].startswith("--"):
        assert words[0] in shared
        words = words[2 if words[0] == "--log-format" else 1 :]
    command, name = group, "nowcast"
    while words and hasattr(command, "get_command") and (below := command.get_command(context, words[0])):
        command, name, words = below, words[0], words[1:]
    assert command is not group or not words, f"there is no command {words[0]}"
    return name, command.make_context(name, words).params if command is not group else {}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_understood(page: str, line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOWCAST_DOMAIN", "operations/knmi.yaml")
    name, parameters = parsed(line)
    if name in SETTINGS:
        file = str(next(value for key, value in parameters.items() if key in ("recipe", "config")))
        if file.partition("/")[0] in ("operations", "training", "benchmarks"):
            load(SETTINGS[name], file, parameters["overrides"] or ())


def test_a_wrong_command_is_seen():
    with pytest.raises(AssertionError, match="no command"):
        parsed("nowcast forcast --store var/frames")
    with pytest.raises(Exception, match="--shop"):
        parsed("nowcast ingest knmi /data/knmi --shop var/frames")


@each_page
def test_links_between_files_lead_somewhere(page: Path):
    made = {"reference", "rooms.svg"}  # when the site is built
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not made & set(Path(target).parts):
            assert (page.parent / target).exists(), target


@each_page
def test_settings_are_valid(page: Path):
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        (Operations if "feed" in values else Recipe).model_validate(values)


@each_page
def test_public_functions_exist(page: Path):
    used = {name for block in blocks(page, "python") for name in re.findall(r"\bnowcast\.(\w+)\(", block)}
    assert used <= set(getattr(nowcast, "__all__", ()))


@each_page
def test_named_files_of_the_repository_exist(page: Path):
    folders = r"`((?:nowcast|models|flows|configs|tests|docs|docker|examples)/[\w./-]*\w)`"
    names = [name for name in re.findall(folders, page.read_text()) if "<" not in name]
    assert [name for name in names if not (ROOT / name).exists()] == []
