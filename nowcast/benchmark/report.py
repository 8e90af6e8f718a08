"""Scores of a trained network on its validation windows beside reference forecasts, and one sample forecast.

The run folder gets ``scorecard.md``, with the scores by lead time as ``skill.png`` and one forecast as ``sample.png``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from nowcast.benchmark import costs
from nowcast.benchmark.evaluate import Evaluation, sound
from nowcast.benchmark.leaderboard import Row, markdown, ranked
from nowcast.config import Moving, Recipe, Span
from nowcast.core.units import UNIT_SIGNS
from nowcast.plotting.charts import leaderboard_chart, sample_chart
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model
from nowcast.verification.bootstrap import LEVEL, estimates

CARD, SKILL, SAMPLE = "scorecard.md", "skill.png", "sample.png"
REFERENCES = ("persistence", "extrapolation")
SAMPLE_LEADS = 4
"""Lead times of the sample forecast."""


def scorecard(recipe: Recipe, path: Path, *, windows: int = 24) -> Path | None:
    """Score a network on whole frames of validation windows.

    Args:
        recipe: The recipe it was trained with.
        path: Its checkpoint, in the run folder.
        windows: Number of windows, spread evenly over the validation spans.

    Returns:
        Path of the page; None where no validation span holds the quantity that is forecast.
    """
    spans = [span for span in recipe.valid if _quantity(span, recipe) == recipe.windows.quantity]
    if not spans:
        return None
    evaluation = Evaluation(spans, recipe.windows, references=REFERENCES, most=windows)
    models = {model.name: model for model in evaluation.references} | dict(_networks(recipe, path, evaluation))
    folder = path.parent
    rows = [_row(name, model, evaluation, folder) for name, model in models.items()]
    parts = [row.by_lead for row in rows if row.by_lead is not None]
    skill = xr.concat(parts, xr.Variable("model", [row.name for row in rows]))
    note = f"{sum(map(len, evaluation.chosen))} validation windows; sums, then ratios; bands: {LEVEL:.0%}"
    (folder / SKILL).write_bytes(leaderboard_chart(skill, learned=[row.learned for row in rows], note=note))
    (folder / SAMPLE).write_bytes(_sample(models, evaluation))
    text = markdown(ranked(rows), title=recipe.name, protocol=_protocol(recipe, evaluation))
    pictures = f"![Scores by lead time]({SKILL})\n\n![A forecast and what happened]({SAMPLE})\n"
    (folder / CARD).write_text(f"{text}\n## By lead time\n\n{_by_lead(rows, evaluation)}\n\n{pictures}")
    return folder / CARD


def _quantity(span: Span | Moving, recipe: Recipe) -> str:
    return "intensity" if isinstance(span, Moving) else span.quantity or recipe.windows.quantity


def _networks(recipe: Recipe, path: Path, evaluation: Evaluation) -> Iterator[tuple[str, Model]]:
    """Load the trained network and the one it was tuned from, with the scaling of this recipe."""
    device = "cuda" if torch.cuda.is_available() and recipe.trainer.accelerator != "cpu" else "cpu"
    yield recipe.name, checkpoint.load(path, device=device, shared=True)
    if recipe.tuning and recipe.start_from:
        base = checkpoint.load(checkpoint.find(recipe.start_from), device=device, shared=True)
        scaling = recipe.windows.scaling.build() if recipe.windows.scaling else evaluation.quantity.scaling
        if base.network.in_steps <= recipe.windows.in_steps:
            yield "before tuning", replace(base, quantity=evaluation.quantity.name, scaling=scaling)


def _row(name: str, model: Model, evaluation: Evaluation, folder: Path) -> Row:
    learned = model.network.trainable
    sums = evaluation.sums(model, folder / f"scorecard-{name.replace(' ', '-')}.nc")
    seconds = sums["seconds"].values
    together, blocks = sound(sums).expand_dims("seed"), evaluation.blocks()
    spent = {"parameters": float(costs.parameters(model.network)), "milliseconds": 1000 * float(np.median(seconds))}
    by_lead = estimates(together, evaluation.names, blocks=blocks)
    overall = estimates(together, evaluation.names, blocks=blocks, over=("lead_time",))
    return Row(name, learned, by_lead, overall, costs=spent)


def _by_lead(rows: list[Row], evaluation: Evaluation) -> str:
    """Write a table of the MSE, and the CSI at the middle threshold, of every model by lead time."""
    middle = evaluation.thresholds[len(evaluation.thresholds) // 2] if evaluation.thresholds else None
    unit = UNIT_SIGNS.get(evaluation.quantity.unit, evaluation.quantity.unit)
    kinds: list[tuple[str, str, dict[str, float]]] = [("MSE", "mse", {})]
    if middle is not None:
        kinds.append((f"CSI≥{middle:g} {unit}", "csi", {"threshold": middle}))
    header = ["lead", *(f"{heading} {row.name}" for heading, *_ in kinds for row in rows)]
    columns = [
        row.by_lead.sel(estimate="value")[key].sel(chosen).values  # type: ignore[union-attr]
        for _, key, chosen in kinds
        for row in rows
    ]
    lines = [f"| {' | '.join(header)} |", f"|{'--:|' * len(header)}"]
    for lead, values in enumerate(zip(*columns, strict=True), start=1):
        lines.append(f"| {_lead(lead, evaluation)} | {' | '.join(f'{value:.3g}' for value in values)} |")
    return "\n".join(lines)


def _lead(number: int, evaluation: Evaluation) -> str:
    seconds = number * evaluation.sources[0].step_seconds
    return f"{seconds // 60} min" if seconds >= 60 else f"frame {number}"


def _sample(models: Mapping[str, Model], evaluation: Evaluation) -> bytes:
    """Draw the window with the most rain, as observed and as forecast by all models."""
    past, seen = max(evaluation.pairs(), key=lambda pair: float(np.nan_to_num(pair[1]).mean()))
    leads = np.unique(np.linspace(0, len(seen) - 1, SAMPLE_LEADS).round().astype(int))
    fields = {"observed": seen[leads]} | {
        name: evaluation.forecast(model, past)[leads] for name, model in models.items()
    }
    return sample_chart(fields, [_lead(int(lead) + 1, evaluation) for lead in leads], quantity=evaluation.quantity.name)


def _protocol(recipe: Recipe, evaluation: Evaluation) -> dict[str, str]:
    size = " x ".join(map(str, evaluation.frame))
    return {
        "Windows": f"{sum(map(len, evaluation.chosen))} of the validation, spread evenly, "
        + "; ".join(found.name for found in evaluation.sources),
        "Pixels": f"whole frames of {size}"
        + (f", where all of {', '.join(REFERENCES)} have a forecast" if evaluation.deciding else ""),
        "Pooling": "sums over windows and lead times first, then ratios",
        "Chosen on": "the same windows decided which weights are kept, so a test on others will be a little worse",
        **({"Tuned": f"{recipe.tuning}, over {recipe.start_from}"} if recipe.tuning else {}),
    }
