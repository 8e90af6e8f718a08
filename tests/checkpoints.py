"""Small checkpoints for tests: real files of a network that forecasts in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch

from nowcast.config import ScalingSettings
from nowcast.models import build
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card


def save(path: Path, *, seed: int = 0, model: str = "convgru:debug", **card: object) -> Path:
    """A network with the random weights of a seed."""
    facts = {
        "model": model,
        "options": {},
        "in_steps": 2,
        "out_steps": 2,
        "quantity": "rainfall_rate",
        "scaling": ScalingSettings(kind="decibel", low=0.1, high=100),
        "cadence_seconds": 300,
        "code_version": "test",
        "created": "now",
    } | card
    made = Card.model_validate(facts)
    torch.manual_seed(seed)
    network = build(made.model, in_steps=made.in_steps, out_steps=made.out_steps, channels=made.channels)
    return checkpoint.save(path, network, made)
