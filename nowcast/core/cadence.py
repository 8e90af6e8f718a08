"""The step of a live feed: how far apart its frames are, found from their times.

What a file says of it, or its name, is a hint: the same names are used for feeds of other steps, and services change
theirs. A gap that is a multiple of the step is an outage; the step changes where several gaps in a row agree on another
one. Fewer are enough where nothing spoke for the old step yet, and where they are shorter than it, which no outage
explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

HINT, OVERRIDE = "cadence_hint_seconds", "cadence_override_seconds"
"""Attributes of a Cube: what its files state, where ``cadence_seconds`` is what the store found; what the operator
states."""

NEAR, SLACK = 0.1, 0.25
"""Shares of a step by which a gap may miss it: as clocks do, and as single late frames do."""
LONGER, SHORTER = 4, 3
"""Gaps in a row that prove a longer or a shorter step than frames had before."""
MULTIPLE, OTHER = 3, 2
"""Gaps in a row that prove another step than a hint: a multiple of it, which outages explain too, or not."""
MOST_PARTS = 12
"""A hint that is at most so many times the first gap is believed to be a wrong multiple of it."""
OUTAGE = 86_400
"""Seconds; longer gaps prove nothing."""
USUAL = np.array([10, 15, 20, 30, 60, 90, 120, 150, 180, 240, 300, 360, 450, 600, 720, 900, 1200, 1800, 3600])
"""Steps, in seconds, that trembling times are rounded to if they are near."""
ON_TIME = 0.25
"""Share of the step by which a frame may be early or late and still be that of its time."""
BLOCK = 4096


@dataclass(frozen=True)
class Change:
    """From which frame on a feed has which step."""

    frame: int
    """Number of the first frame, by time."""
    seconds: int
    """0 where nothing is known."""
    seen: bool
    """Whether times of frames speak for it, not only a hint."""


def find_changes(time: np.ndarray, *, hint: float = 0, override: float = 0) -> list[Change]:
    """Find the steps of a live feed.

    Args:
        time: Sorted datetime64 stamps, all of them.
        hint: Seconds that the files state; 0: none.
        override: Seconds that the operator states: the only step; 0: none.

    Returns:
        One or more, in order of time; the last is the present step.
    """
    if override:
        return [Change(0, int(override), False)]
    gaps = np.diff(np.asarray(time, "datetime64[s]")).astype(np.int64)
    found = _phases(np.maximum(gaps, 1), float(hint))
    ends = [phase.start for phase in found[1:]] + [gaps.size]
    return [
        Change(
            phase.start and phase.start + 1,
            _refined(gaps[phase.start : end], phase.step, hint),
            phase.support > 0,
        )
        for phase, end in zip(found, ends, strict=True)
    ]


def step_of_frames(time: np.ndarray, *, hint: float = 0, override: float = 0) -> np.ndarray:
    """Find the step that every frame came with, in seconds (int64); see ``find_changes``."""
    size = np.size(time)
    steps = np.zeros(size, np.int64)
    for change in find_changes(time, hint=hint, override=override):
        steps[change.frame :] = change.seconds
    return steps


def newest_step(time: np.ndarray, *, hint: float = 0, override: float = 0) -> int:
    """Find the present step of a live feed in seconds; 0 where one frame and no hint leave it open."""
    return find_changes(time, hint=hint, override=override)[-1].seconds


def contradictions(time: np.ndarray, *, hint: float = 0, override: float = 0) -> list[str]:
    """Say what the times of the frames say against the stated step, and where the step changed; one sentence each."""
    changes = find_changes(time, hint=hint)
    last, said = changes[-1], []
    if override and last.seen and abs(last.seconds - override) > NEAR * override:
        said.append(
            f"frames come every {last.seconds} s, and cadence_seconds is set to {override:g} s; correct or remove it"
        )
    elif hint and changes[0].seen and abs(changes[0].seconds - hint) > NEAR * hint and not override:
        said.append(f"frames come every {changes[0].seconds} s, and their files say {hint:g} s; their times are used")
    stamps = np.asarray(time, "datetime64[s]")
    said += [
        f"the step changed from {before.seconds} s to {after.seconds} s at {stamps[after.frame]}Z"
        for before, after in pairwise(changes)
        if not override and before.seconds != after.seconds
    ]
    return said


def stated_cadence(attrs: Mapping[Any, Any]) -> dict[str, float]:
    """Read hint and override from the attributes of a Cube or of a store."""
    return {"hint": float(attrs.get(HINT, attrs.get("cadence_seconds", 0))), "override": float(attrs.get(OVERRIDE, 0))}


# --- one step after the other ---------------------------------------------------------------------


@dataclass
class _Phase:
    """Gaps with one step."""

    start: int
    """Number of the first gap."""
    step: float
    support: int = 0
    """0: a hint only; 1: one gap, which may hold an outage; 2: more."""


def _phases(gaps: np.ndarray, hint: float) -> list[_Phase]:
    found, row, at = [_Phase(0, hint)], list[int](), 0
    while at < gaps.size:
        phase, gap = found[-1], int(gaps[at])
        if not phase.step:
            phase.step, phase.support, at = gap, 1, at + 1
            continue
        if near := _run_of_near(gaps, at, phase.step):
            phase.support, row, at = 2, [], at + near
            continue
        if abs(gap - phase.step) <= SLACK * phase.step:
            phase.support = max(phase.support, 1)
        row = _continued(row, gap, phase.step)
        at += 1
        if gap <= OUTAGE and len(row) >= _needed(phase, gap):
            start = at - len(row) if phase.support else phase.start
            changed = _Phase(start, float(np.mean(row)), min(len(row), 2))
            found[-1 if start == phase.start else len(found) :] = [changed]
            row = []
    return found


def _run_of_near(gaps: np.ndarray, at: int, step: float) -> int:
    """Count the gaps from ``at`` on that are near the step."""
    if abs(gaps[at] - step) > NEAR * step:
        return 0
    far = np.abs(gaps[at : at + BLOCK] - step) > NEAR * step
    return int(far.argmax()) if far.any() else far.size


def _continued(row: list[int], gap: int, step: float) -> list[int]:
    """Add a gap to those in a row that agree with it, or begin a new row."""
    usual = float(np.mean(row)) if row else 0
    agrees = abs(gap - usual) <= SLACK * usual and (gap > step) == (usual > step)
    return [*row, gap] if agrees else [gap]


def _needed(phase: _Phase, gap: int) -> int:
    """Say how many gaps in a row like this one end a phase."""
    shorter = gap < (1 - SLACK) * phase.step
    if shorter and phase.support < 2:
        parts = round(phase.step / gap)
        return 1 if parts <= MOST_PARTS and abs(phase.step - parts * gap) <= SLACK * gap else OTHER
    if phase.support:
        return SHORTER if shorter else LONGER
    parts = round(gap / phase.step)
    return MULTIPLE if parts > 1 and abs(gap - parts * phase.step) <= SLACK * phase.step else OTHER


def _refined(gaps: np.ndarray, step: float, hint: float) -> int:
    """Choose the exact step of a phase: what most single gaps are, else their rounded mean."""
    single = gaps[np.abs(gaps - step) <= SLACK * step]
    if single.size < 2:
        return round(step)
    values, counts = np.unique(single, return_counts=True)
    if counts.max() >= max(2, single.size / 2):
        return int(values[counts.argmax()])
    mean = float(single.mean())
    if hint and abs(mean - hint) <= NEAR * hint:
        return round(hint)
    usual = int(USUAL[np.abs(USUAL - mean).argmin()])
    return usual if abs(usual - mean) <= NEAR / 2 * usual else round(mean)
