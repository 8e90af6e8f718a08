"""Train networks under one protocol and score them on the same frames and pixels: one table, one figure.

    nowcast benchmark benchmarks/radar-debug.yaml
    nowcast benchmark benchmarks/moving-mnist.yaml budget.steps=20000 seeds=[0,1,2]

``<runs>/<name>/`` holds ``leaderboard.md`` (table and protocol), ``leaderboard.csv`` (all values) and
``leaderboard.png``, and ``protocols.csv`` with the scores of published tables; beside them a run folder, a recipe and
a log of every training, and the sums that the tables are made of. A second run continues where the first stopped: what
is trained and scored stays. With domains there is such a folder for each, and ``tables.md`` for all of them.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml

from nowcast.benchmark import costs, leaderboard
from nowcast.benchmark.evaluate import BenchmarkEvaluation, sound, totals
from nowcast.benchmark.leaderboard import Row
from nowcast.config import Benchmark, Participant, Recipe
from nowcast.core.errors import ConfigError, NowcastError, TrainingError
from nowcast.core.log import LogFormat
from nowcast.core.machine import device_name
from nowcast.core.units import PICTURES, UNIT_SIGNS
from nowcast.core.version import code_version
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card, Model
from nowcast.verification.bootstrap import DRAWS, LEVEL, differences, estimates

TABLES = "tables.md"
FEW_BLOCKS = 10
"""With fewer blocks than this the intervals are rough."""
Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)


def benchmark(settings: Benchmark, *, progress: Progress | None = None) -> Path:
    """Train every network with every seed, score it on the test windows, and write the table after each.

    Args:
        settings: Networks, data, budget.
        progress: Called with trainings done, trainings in all, name of the next one.

    Returns:
        Path of the table, ``<runs>/<name>/leaderboard.md``, or of all tables, ``tables.md``, where there are domains.

    Raises:
        ConfigError: If a frame is in two of train, valid and test, or the data changed since this benchmark began; with
            domains, if there is a table of none.
    """
    if settings.domains:
        return _domains(settings, progress)
    return _one(settings, progress)[0]


def _one(settings: Benchmark, progress: Progress | None) -> tuple[Path, list[Row]]:
    evaluation = BenchmarkEvaluation(settings)
    folder = _prepare(settings)
    reference_sums = {
        model.name: evaluation.sums(model, folder / f"{model.name}.nc") for model in evaluation.references
    }
    rows = [_row(name, [sums], evaluation, {"parameters": 0}) for name, sums in reference_sums.items()]
    total = len(settings.participants) * len(settings.seeds)
    for place, participant in enumerate(settings.participants):
        if progress:
            progress(place * len(settings.seeds), total, str(participant.name))
        rows.append(_network(participant, evaluation, reference_sums))
        leaderboard.write(
            folder,
            rows,
            title=settings.name,
            protocol=_protocol(evaluation, reference_sums),
            note=_figure_note(evaluation),
        )
    if progress:
        progress(total, total, "done")
    return folder / leaderboard.TABLE, rows


def _domains(settings: Benchmark, progress: Progress | None) -> Path:
    """Compare the networks on every domain, and write the tables of all of them on one page after each."""
    folder = settings.runs / settings.name
    sections: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    for domain in settings.domains:
        try:
            table, rows = _one(settings.of(domain), progress)
        except NowcastError as error:  # a domain that is not there must not cost the tables of all others
            log.warning("%s has no table: %s", domain.name, error, exc_info=True)
            failures[domain.name] = str(error)
        else:
            failed = [f"- {failure}" for row in rows for failure in row.failures]
            failed = ["", "Failed:", "", *failed] if failed else []
            scores = f"All scores: {table.relative_to(folder)}"
            sections[domain.name] = [scores, *leaderboard.by_protocol(rows), *failed]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLES).write_text(_page(settings.name, sections, failures))
    if not sections:
        raise ConfigError(f"{settings.name}: no domain has a table:\n" + "\n".join(failures.values()))
    return folder / TABLES


def _page(name: str, sections: Mapping[str, list[str]], failures: Mapping[str, str]) -> str:
    lines = [f"# {name}"]
    for domain, section in sections.items():
        lines += ["", f"# {domain}", "", *section]
    if failures:
        lines += ["", "# Without a table", "", *(f"- {domain}: {why}" for domain, why in failures.items())]
    return "\n".join(lines) + "\n"


def _prepare(settings: Benchmark) -> Path:
    """Make the folder and store the settings; refuse other data, whose scores cannot be compared."""
    folder, now = settings.runs / settings.name, settings.model_dump(mode="json")
    path = folder / "benchmark.yaml"
    before = yaml.safe_load(path.read_text()) if path.exists() else now
    if changed := [key for key in ("train", "valid", "windows") if before.get(key) != now[key]]:
        raise ConfigError(f"{folder}: {', '.join(changed)} changed since this benchmark began; use another name.")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(now, sort_keys=False))
    return folder


# --- rows -----------------------------------------------------------------------------------------


def _network(
    participant: Participant, evaluation: BenchmarkEvaluation, reference_sums: Mapping[str, xr.Dataset]
) -> Row:
    """Train and score a network with every seed; note failures and go on with the next seed."""
    sums, failures, seed_costs = [], [], []
    for seed in evaluation.settings.seeds if not participant.checkpoint else (0,):
        try:
            cost, found = (
                _scored(participant, evaluation)
                if participant.checkpoint
                else _trained_and_scored(participant, evaluation, seed)
            )
        except Exception as error:  # one failing network must not cost the table of all others
            log.warning("%s-%s has no row: %s", participant.name, seed, error, exc_info=True)
            failures.append(f"{participant.name}-{seed}: {_reason(error)}")
            torch.cuda.empty_cache()
            continue
        seed_costs.append(cost)
        sums.append(found)
    if not sums:
        return Row(str(participant.name), True, failures=tuple(failures), figures=participant.published)
    mean = {key: float(np.mean([cost[key] for cost in seed_costs])) for key in seed_costs[0]}
    row = _row(str(participant.name), sums, evaluation, mean, reference_sums=reference_sums, failures=tuple(failures))
    return replace(row, figures=participant.published)


def _row(
    name: str,
    sums: list[xr.Dataset],
    evaluation: BenchmarkEvaluation,
    cost: dict[str, float],
    *,
    reference_sums: Mapping[str, xr.Dataset] | None = None,
    failures: tuple[str, ...] = (),
) -> Row:
    """Estimate the scores of a model; a network is compared with the references window by window."""
    together = xr.concat(sums, "seed", combine_attrs="drop")
    seconds = together["seconds"].values[:, 1:] if together.sizes["window"] > 1 else together["seconds"].values
    cost = cost | {"milliseconds": 1000 * float(np.median(seconds))}  # the first forecast warms up
    table, blocks = sound(together), evaluation.blocks()
    by_lead = estimates(table, evaluation.names, blocks=blocks)
    overall = estimates(table, evaluation.names, blocks=blocks, over=("lead_time",))
    # The sums of a reference count once per seed, so that both have equal numbers of pixels.
    gains = {
        reference: differences(sound(theirs) * len(sums), table.sum("seed"), evaluation.names, blocks=blocks)
        for reference, theirs in (reference_sums or {}).items()
    }
    measured = {protocol: totals(together, protocol) for protocol in evaluation.protocols}
    return Row(name, reference_sums is not None, by_lead, overall, gains, cost, failures, measured)


def _scored(participant: Participant, evaluation: BenchmarkEvaluation) -> tuple[dict[str, float], xr.Dataset]:
    """Score a network that was trained elsewhere.

    Raises:
        ConfigError: If its input frames are others than those of the test.
    """
    path = checkpoint.find(str(participant.checkpoint))
    card, windows = checkpoint.read_card(path), evaluation.windows
    step = evaluation.sources[0].step_seconds
    other_step = card.cadence_seconds != step and windows.quantity not in PICTURES  # pictures have no step
    if card.quantity != windows.quantity or card.in_steps > windows.in_steps or other_step:
        raise ConfigError(
            f"{path} takes {card.in_steps} frames of {card.quantity} every {card.cadence_seconds} s; the "
            f"test has {windows.in_steps} of {windows.quantity} every {step} s."
        )
    model = checkpoint.load(path, device="cuda" if torch.cuda.is_available() else "cpu")
    folder = evaluation.settings.runs / evaluation.settings.name
    return _costs(model, card, evaluation), evaluation.sums(model, folder / f"{participant.name}.nc")


def _trained_and_scored(
    participant: Participant, evaluation: BenchmarkEvaluation, seed: int
) -> tuple[dict[str, float], xr.Dataset]:
    """Train a network with one seed, unless that is done already, and score it."""
    recipe = evaluation.settings.recipe(participant, seed=seed)
    folder = recipe.runs / recipe.name
    path = folder / "best.safetensors"
    if not path.exists() or checkpoint.read_card(path).recipe != recipe.model_dump(mode="json"):
        _train(recipe)
    on_gpu = torch.cuda.is_available() and recipe.trainer.accelerator != "cpu"
    model = checkpoint.load(path, device="cuda" if on_gpu else "cpu")
    return _costs(model, checkpoint.read_card(path), evaluation), evaluation.sums(model, folder / "test.nc")


def _train(recipe: Recipe) -> None:
    """Train in a process of its own, which may start others for more GPUs, so that a crash ends only that process."""
    file, output = (recipe.runs / f"{recipe.name}.{kind}" for kind in ("yaml", "log"))
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-P", "-m", "nowcast.cli", "train", str(file)]
    with (
        output.open("a") as stream,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"NOWCAST_LOG": LogFormat.TEXT, "PYTHONSAFEPATH": "1"},
        ) as child,
    ):
        try:
            child.wait()
        except BaseException:
            child.terminate()
            raise
    if child.returncode < 0:
        raise TrainingError(f"ended by signal {-child.returncode}, as where memory is short; see {output}")
    if child.returncode:
        raise TrainingError(_last_line(output))


def _last_line(output: Path) -> str:
    """Read the last line of a log, where the command line states the reason of a failure."""
    lines = [line.strip() for line in output.read_text(errors="replace").replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), f"no word in {output}")


def _reason(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    return text if isinstance(error, TrainingError) else f"{type(error).__name__}: {text}"


def _costs(model: Model, card: Card, evaluation: BenchmarkEvaluation) -> dict[str, float]:
    """Collect the costs of a training and of a forecast."""
    facts: Any = card.training
    shape = (1, card.in_steps, card.channels, *evaluation.frame)
    hours = facts["seconds"] * facts["devices"] / 3600
    on_gpu = facts["device"].startswith("cuda")
    cost: dict[str, float] = {"parameters": costs.parameters(model.network), "macs": costs.macs(model.network, shape)}
    cost |= {"gpu_hours": hours} if on_gpu else {"cpu_hours": hours * facts["threads"]}
    return cost | {key: facts[key] for key in ("steps", "seconds", "peak_memory_bytes") if key in facts}


# --- protocol -------------------------------------------------------------------------------------


def _protocol(evaluation: BenchmarkEvaluation, reference_sums: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """Describe all that the scores depend on: aspect -> sentence."""
    settings, windows, quantity = evaluation.settings, evaluation.windows, evaluation.quantity
    unit = UNIT_SIGNS.get(quantity.unit, quantity.unit) or "1"
    own = windows.scaling.build() if windows.scaling else quantity.scaling
    limits = ", ".join(f"{limit:g}" for limit in evaluation.thresholds)
    crop = f"crops of {settings.windows.crop} x {settings.windows.crop}" if settings.windows.crop else "whole frames"
    size = " x ".join(map(str, evaluation.frame))
    return {
        "Pooling": "sums over all test windows, lead times and seeds first, then ratios; sorted by "
        + ("the mean CSI of all thresholds" if limits else "MSE"),
        "Pixels": f"whole frames of {size}" + _pixels(evaluation, reference_sums),
        "Scores": (f"CSI of events at or above {limits} {unit}; " if limits else "")
        + f"MSE in ({unit})², MAE in {unit}; SSIM on {_scaling_text(quantity.scaling)}",
        "Intervals": f"{LEVEL:.0%} of {DRAWS} draws, with replacement, of {_block_text(evaluation)}; ± is the standard "
        "deviation over seeds",
        **{
            name.capitalize(): "; ".join(map(evaluation.words, part.sources)) + f": {part.windows} windows"
            for name, part in evaluation.parts.items()
        },
        "Windows": f"{windows.in_steps} frames in, {windows.out_steps} out, every "
        f"{evaluation.sources[0].step_seconds} s; {crop} in training; test windows start every "
        f"{windows.stride} frames",
        "Scaling": f"networks see {quantity.long_name} on {_scaling_text(own)}",
        **_training_protocol(settings),
        "Costs": "GMACs and ms of one forecast of one sample of a whole frame, with scaling there and back; median of "
        "the test windows but the first; hours times devices, on CPUs times threads",
        "Machine": f"forecasts on {device_name('cuda' if torch.cuda.is_available() else 'cpu')}; "
        f"{platform.system()} {platform.machine()}",
        "Versions": f"nowcast {code_version()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "numpy")),
        "Made": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
    }


def _pixels(evaluation: BenchmarkEvaluation, reference_sums: Mapping[str, xr.Dataset]) -> str:
    """Say which pixels are compared, and how many are left out."""
    if not reference_sums:
        return ""
    covered = f", and covered by {' and '.join(reference_sums)}" if evaluation.deciding else ""
    return (
        f"; pixels observed at the valid time and in the last frame{covered}: the same for all models; what a network "
        f"leaves out there counts as dry; {evaluation.left_out(reference_sums)}"
    )


def _scaling_text(scaling: Any) -> str:
    return f"[0, 1], {scaling.kind} from {scaling.low:g} to {scaling.high:g}"


def _block_text(evaluation: BenchmarkEvaluation) -> str:
    count = np.unique(evaluation.blocks()).size
    rough = "; so few that the intervals are rough" if count < FEW_BLOCKS else ""
    minutes = evaluation.settings.block_minutes
    return f"{count} blocks, each the windows that begin in the same {minutes:g} minutes of a sequence{rough}"


def _training_protocol(settings: Benchmark) -> dict[str, str]:
    """Describe how the networks were trained, and which ones were trained before."""
    before = [str(participant.name) for participant in settings.participants if participant.checkpoint]
    facts = {"Trained before": ", ".join(before)} if before else {}
    if len(before) < len(settings.participants):
        ways = "; ".join(_optimiser(participant) for participant in settings.participants if not participant.checkpoint)
        facts |= {"Budget": _budget(settings), "Seeds": ", ".join(map(str, settings.seeds)), "Optimisers": ways}
    return facts


def _budget(settings: Benchmark) -> str:
    budget = settings.budget
    length = f"{budget.steps} steps" if budget.steps else f"{budget.minutes:g} minutes"
    return f"{length}, validated every {budget.validate_every} steps; the best weights of them are scored"


def _optimiser(participant: Participant) -> str:
    way = participant.trainer
    return f"{participant.name} {way.optimiser} {way.learning_rate:g} {way.schedule}, batch {way.batch_size}"


def _figure_note(evaluation: BenchmarkEvaluation) -> str:
    test = evaluation.parts["test"]
    return (
        f"{test.windows} test windows, {' + '.join(found.name for found in test.sources)}; sums, then ratios; "
        f"bands: {LEVEL:.0%} of draws of {np.unique(evaluation.blocks()).size} blocks"
    )
