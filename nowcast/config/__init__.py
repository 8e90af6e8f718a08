"""Settings: frozen pydantic models, read from YAML, valid or refused in one sentence.

A field's documentation stands under the field; its value stands in ``configs/``.
"""

from nowcast.config.base import ConfigError, Frozen, TrainingError
from nowcast.config.benchmark import Benchmark, Budget, Entrant
from nowcast.config.load import find, load, override, shipped_folder, words
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
    "ConfigError",
    "Entrant",
    "Feed",
    "Frozen",
    "LossTerm",
    "Moving",
    "Operations",
    "Product",
    "Promotion",
    "QualitySettings",
    "Recipe",
    "ScalingSettings",
    "Shadow",
    "Span",
    "TrainerSettings",
    "TrainingError",
    "WindowSettings",
    "find",
    "load",
    "override",
    "shipped_folder",
    "words",
]
