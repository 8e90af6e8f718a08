"""Of every reader a small folder that it reads, in its exact format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests import (
    fixtures,
    sources_benchmarks,
    sources_clips,
    sources_composites,
    sources_gridded,
    sources_services,
    sources_video,
)

SOURCES: dict[str, Callable[[Path], Path]] = {
    **fixtures.SOURCES,
    **sources_benchmarks.SOURCES,
    **sources_composites.SOURCES,
    **sources_gridded.SOURCES,
    **sources_services.SOURCES,
    **sources_clips.SOURCES,
    **sources_video.SOURCES,
}
"""Reader -> maker of a folder."""
