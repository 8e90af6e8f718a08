"""The stores of a chain."""

from __future__ import annotations

from typing import NamedTuple

from nowcast.config import Operations
from nowcast.store import ForecastStore, FrameStore, ScoreStore


class Stores(NamedTuple):
    """Frames, and forecasts from them with their scores; passed on from step to step, so that each is opened once."""

    frames: FrameStore
    forecasts: ForecastStore
    scores: ScoreStore

    @classmethod
    def of(cls, settings: Operations) -> Stores:
        """Those of the products; see ``promotion.shadow_stores`` for the challengers'."""
        return cls(FrameStore(settings.store), ForecastStore(settings.forecasts), ScoreStore(settings.scores))
