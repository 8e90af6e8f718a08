"""The version that runs, and the fingerprint of code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nowcast.core import code_digest as digests
from nowcast.core import version

SOURCE = '''\
"""A module."""
from nowcast.low import rain

def twice(x):
    """Twice."""
    return 2 * rain(x)  # a comment
'''
LOW = "def rain(x):\n    return x\n"


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_says_its_commit_and_whether_files_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(version, "CHECKOUT", tmp_path)
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert version.code_version.__wrapped__().endswith(f"+g{commit}")
    (tmp_path / "code.py").write_text("2\n")
    assert version.code_version.__wrapped__().endswith(f"+g{commit}.dirty")


def test_an_installed_package_says_what_it_was_built_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "CHECKOUT", tmp_path)
    monkeypatch.setattr(version, "version", lambda name: "1.2.3")
    assert version.code_version.__wrapped__() == "1.2.3"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two modules of which one imports the other."""
    (tmp_path / "high.py").write_text(SOURCE)
    (tmp_path / "low.py").write_text(LOW)
    monkeypatch.setattr(digests, "PACKAGE", tmp_path)
    return tmp_path


def fresh(module: str) -> str:
    digests.code_digest.cache_clear()
    return digests.code_digest(module)


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("high.py", "# a comment", "# another", True),
        ("high.py", '"""Twice."""', '"""Two times."""', True),
        ("high.py", "2 * rain(x)", "2   *   rain( x )", True),
        ("high.py", "2 * rain", "3 * rain", False),
        ("low.py", "return x", "return -x", False),
    ],
)
def test_what_computes_counts_and_nothing_else(package: Path, file: str, old: str, new: str, same: bool) -> None:
    before = fresh("nowcast.high")
    (package / file).write_text((package / file).read_text().replace(old, new))
    assert (fresh("nowcast.high") == before) is same


def test_the_versions_of_libraries_that_compute_count(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "low.py").write_text("import cv2\n" + LOW)
    before = fresh("nowcast.high")
    monkeypatch.setattr(digests, "_version", lambda name: "0")
    assert fresh("nowcast.high") != before


def test_references_differ_by_their_code() -> None:
    names = ("persistence", "extrapolation", "sprog", "steps")
    assert len({fresh(f"nowcast.models.{name}") for name in names}) == len(names)


def teardown_module() -> None:
    digests.code_digest.cache_clear()
