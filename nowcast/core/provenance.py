"""The frames that a forecast was made from, as its label ``input_frames`` keeps them.

A JSON list, oldest first. A frame of the archive is ``[time, digest]``; one that was bridged, because the archive has
none at that time, is ``[time, "bridged", [time, digest], [time, digest]]`` with the frames before and after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

BRIDGED = "bridged"
Entry = list[Any]


def stamp(time: np.datetime64) -> str:
    """Format a time as ``2010-08-26T03:00Z``."""
    return f"{np.datetime_as_string(time, unit='m')}Z"


def write(entries: list[Entry]) -> str:
    """Write the label."""
    return json.dumps(entries)


def bridged(label: str) -> list[str]:
    """List the times of the inputs that were bridged."""
    return [entry[0] for entry in _entries(label) if entry[1] == BRIDGED]


def changed(label: str, digests: Mapping[str, str]) -> list[str]:
    """List the times whose frame is another one now, or came only after the forecast was made.

    Args:
        label: Of a forecast; frames without a digest are not known and never change.
        digests: Time -> digest of the frames that are there now.
    """
    times = []
    for time, kept, *around in _entries(label):
        if kept == BRIDGED:
            times += [time] if time in digests else [at for at, digest in around if digests.get(at, digest) != digest]
        elif digests.get(time, kept) != kept:
            times.append(time)
    return list(dict.fromkeys(times))


def digests(times: np.ndarray, fingerprints: np.ndarray) -> dict[str, str]:
    """Map the time of every frame to its digest."""
    return dict(zip(map(stamp, times), map(str, fingerprints), strict=True))


def _entries(label: str) -> list[Entry]:
    entries: list[Entry] = json.loads(label) if label else []
    return entries
