"""Damaged sources: always a Cube or one sentence, never a hang, a crash or unbounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nowcast.readers import READERS
from tests.paths import ROOT

ROUNDS = 100
LIMIT = 300
"""Seconds for all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", name, str(tmp_path), str(ROUNDS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:] or f"ended by signal {-run.returncode}"
    print(run.stdout.strip())
