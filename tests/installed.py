"""The package as its users have it: a wheel, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.paths import ROOT

PIP = (sys.executable, "-m", "pip", "--quiet")


def wheel_of(source: Path, folder: Path) -> Path:
    """Builds the wheel of a checkout or of an sdist."""
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def sdist(folder: Path) -> Path:
    """Builds the sdist of this checkout."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def environment(wheel: Path, folder: Path) -> Path:
    """Installs a wheel alone, borrows the dependencies of this environment; returns the packages' folder."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(folder / "venv/bin/python", "-c", where, cwd=folder).strip())
    # a path file in a path file is not followed: the editable install of us stays out of sight
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(*PIP, "install", "--no-deps", "--no-index", "--target", packages, wheel, cwd=folder)
    return packages


def run(*command: object, cwd: Path) -> str:
    """What a command prints; this checkout is not on its path."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=outside, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout
