"""Where tests find things."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
"""The repository."""
SAMPLE = ROOT / "nowcast" / "operations" / "sample"
"""Radar files that come with the package."""
REAL_DATA = Path(os.environ.get("NOWCAST_TEST_DATA") or ROOT / "tests" / "real")
"""Real files of the sources, one folder each: bom fmi hko7 knmi mch meteonet mnist mrms opera radolan."""


def needs_real(folder: str) -> pytest.MarkDecorator:
    """Skips where the real files of a source are not at hand."""
    return pytest.mark.skipif(
        not (REAL_DATA / folder).exists(), reason="NOWCAST_TEST_DATA names no folder with " + folder
    )
