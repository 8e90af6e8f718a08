"""How commands fail, and the options that all of them have."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import nowcast
from nowcast.cli import app
from nowcast.cli.failures import explained, extra_of
from nowcast.core import errors
from nowcast.core.errors import BadInput, FromFuture, NowcastError, StoreError
from nowcast.core.log import Stderr
from nowcast.store import Store

OURS = [found for found in vars(errors).values() if isinstance(found, type)]
HEAVY = ("numpy", "torch", "xarray", "pandas", "pydantic", "matplotlib", "prefect", "lightning", "cv2", "icechunk")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The log of the process as it was."""
    yield
    logging.captureWarnings(False)
    logging.getLogger("nowcast").setLevel(logging.NOTSET)
    for handler in [each for each in logging.getLogger().handlers if isinstance(each, Stderr)]:
        logging.getLogger().removeHandler(handler)


def show(monkeypatch: pytest.MonkeyPatch, error: Exception, *options: str) -> Result:
    """``nowcast show`` where the store raises an error."""

    def describe(_: str) -> dict:
        raise error

    monkeypatch.setattr(Store, "describe", describe)
    return CliRunner().invoke(app, [*options, "show", "var/frames"])


def command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The real program."""
    return subprocess.run(
        [sys.executable, "-m", "nowcast.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | more,
    )


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_an_error_of_ours_is_a_sentence(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {BadInput: ("a.h5", "is torn"), FromFuture: ("a.h5", "2030-01-01", 0.0)}.get(kind, ("a.h5: is torn.",))
    error = kind(*parts)
    result = show(monkeypatch, error)
    assert (result.exit_code, result.stderr) == (2, f"{kind.__name__}: {error}\n")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        RuntimeError("x"),
        KeyError("x"),
        TypeError("x"),
        OSError("a library's own words"),
        ModuleNotFoundError("No module named 'nowcast.nix'", name="nowcast.nix"),
    ],
    ids=repr,
)
def test_a_programming_error_is_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    result = show(monkeypatch, error)
    assert (result.exit_code, result.exception, result.stderr) == (1, error, "")


def test_a_programming_error_keeps_its_traceback() -> None:
    code = (
        "import nowcast.store\n"
        "def describe(path): raise ValueError('a bug')\n"
        "nowcast.store.Store.describe = describe\n"
        "import sys; sys.argv = ['nowcast', 'show', 'x']\n"
        "from nowcast.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "line 2, in describe" in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: a bug"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"), "x.yaml: No such file or directory."),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied."),
        (OSError(errno.ENOSPC, "No space left on device"), "OSError: No space left on device."),
        (ModuleNotFoundError("No module named 'rasterio'", name="rasterio"), "pip install 'nowcast-radar[geotiff]'"),
        (ModuleNotFoundError("No module named 'av.codec'", name="av.codec"), "pip install 'nowcast-radar[video]'"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_the_user_can_mend_is_a_sentence_too(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = show(monkeypatch, error)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_extra_is_the_smallest_that_brings_a_library() -> None:
    found = [extra_of(name) for name in ("mlflow", "lightning.pytorch", "skimage", "numpy", "wradlib", "")]
    assert found == ["mlflow", "train", "verify", None, None, None]


def test_explaining_leaves_a_bug_alone() -> None:
    assert explained(ZeroDivisionError("x")) is None
    assert explained(NowcastError("what is wrong.")) == "NowcastError: what is wrong."


def test_debug_shows_the_traceback_of_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    result = show(monkeypatch, StoreError("var/frames: is torn."), "--debug")
    assert result.exit_code == 2
    assert "in describe" in result.stderr
    assert result.stderr.splitlines()[-1] == "StoreError: var/frames: is torn."


@pytest.mark.parametrize(("options", "traced"), [((), False), (("--debug",), True)])
def test_for_programs_the_sentence_is_a_line_of_the_log(
    options: tuple[str, ...], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = show(monkeypatch, StoreError("var/frames: is torn."), "--log-format", "json", *options)
    (line,) = map(json.loads, result.stderr.splitlines())
    assert (result.exit_code, line["level"]) == (2, "ERROR")
    assert line["message"] == "StoreError: var/frames: is torn."
    assert ("in describe" in line.get("traceback", "")) is traced


def test_the_environment_chooses_the_log(tmp_path: Path) -> None:
    done = command("show", str(tmp_path / "nowhere"), NOWCAST_LOG="json")
    assert done.returncode == 2
    assert "there is no store here" in json.loads(done.stderr)["message"]


@pytest.mark.parametrize(
    ("options", "level"), [((), logging.WARNING), (("--verbose",), logging.INFO), (("--debug",), logging.DEBUG)]
)
def test_how_much_is_told(options: tuple[str, ...], level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, StoreError("x"), *options)
    assert logging.getLogger("nowcast.store").getEffectiveLevel() == level


def test_the_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"{nowcast.__version__}\n")


def test_help_waits_for_nothing_heavy() -> None:
    code = f"import sys, nowcast.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
