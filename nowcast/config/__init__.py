"""Settings: frozen pydantic models, read from YAML and checked; a mistake is reported in one sentence.

A field's documentation is the string below it; the values in use are in ``configs/``.
"""

from nowcast.config.base import Frozen
from nowcast.config.benchmark import Benchmark, Budget, Participant
from nowcast.config.load import find, load, override, pairs, shipped_folder, words
from nowcast.config.operations import (
    CHAMPION,
    REGISTRY,
    AgeLimits,
    Feed,
    Operations,
    Product,
    Promotion,
    QualitySettings,
    Shadow,
)
from nowcast.config.training import (
    OWN,
    LossTerm,
    Moving,
    Recipe,
    ScalingSettings,
    Span,
    TrainerSettings,
    WindowSettings,
)

__all__ = [
    "CHAMPION",
    "OWN",
    "REGISTRY",
    "AgeLimits",
    "Benchmark",
    "Budget",
    "Feed",
    "Frozen",
    "LossTerm",
    "Moving",
    "Operations",
    "Participant",
    "Product",
    "Promotion",
    "QualitySettings",
    "Recipe",
    "ScalingSettings",
    "Shadow",
    "Span",
    "TrainerSettings",
    "WindowSettings",
    "find",
    "load",
    "override",
    "pairs",
    "shipped_folder",
    "words",
]
