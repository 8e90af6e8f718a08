"""The stores of an operational chain."""

from __future__ import annotations

from typing import NamedTuple

from nowcast.config import Operations
from nowcast.store import ForecastStore, FrameStore, ScoreStore


class Stores(NamedTuple):
    """Stores of frames, forecasts and scores, passed from step to step so that each is opened once."""

    frames: FrameStore
    forecasts: ForecastStore
    scores: ScoreStore

    @classmethod
    def of(cls, settings: Operations) -> Stores:
        """Return the stores of the products; those of the challengers are in ``promotion.shadow_stores``."""
        return cls(FrameStore(settings.store), ForecastStore(settings.forecasts), ScoreStore(settings.scores))
