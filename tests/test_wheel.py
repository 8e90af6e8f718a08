"""The wheel is whole: installed elsewhere, the demo runs from outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    packages = Path(run(tmp_path / "venv/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                        cwd=tmp_path).strip())  # fmt: skip
    # The dependencies are those of this environment; its editable install of us is not seen through a path file.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = tmp_path.glob("*.whl")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        packages,
        wheel,
        cwd=tmp_path,
    )
    python = tmp_path / "venv/bin/python"
    assert str(packages) in run(python, "-c", "import nowcast; print(nowcast.__file__)", cwd=tmp_path)
    command = "from nowcast.cli import main; main()"
    printed = run(python, "-c", command, "demo", "--no-serve", cwd=tmp_path)
    assert "CSI≥1" in printed
    assert (tmp_path / "demo/site/latest.json").exists()
