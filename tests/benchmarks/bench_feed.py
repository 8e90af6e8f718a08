"""What it costs to find that nothing is new, and to take one new file, beside 600 and 60,000 known names.

Most of the names are links of a few real files: what is measured is the listing, not the decoding.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nowcast.ingestion.run import ingest
from nowcast.store import FrameStore
from nowcast.store.extension import commit, write
from tests import paths

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))
A_DAY_AGO = 86_400 * 10**9
START = np.datetime64("2009-01-01", "s")


def fill(folder: Path, store: Path, count: int, per_folder: int) -> None:
    """Make a folder of names and a store that knows them, without decoding any."""
    ingest("knmi", [SAMPLE[0]], store)
    whole = FrameStore(store)
    labels = whole.labels("digest", "source", "sequence", "missing_share", "wet_share", "mean_value", "status")
    signatures = []
    for number in range(count):
        place = folder / f"{number // per_folder:05}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"RAD_NL25_RAP_5min_{number:012}.h5"
        path.write_bytes(b"")
        os.utime(path, ns=(number * 10**9, number * 10**9))
        signatures.append(f"{path.name}|0|{number * 10**9}")
    with whole.writing():
        growth = whole.extend(whole.read().isel(time=slice(0)), count)
        known = {name: np.repeat(values[:1], count) for name, values in labels.items()}
        known["source"] = np.asarray(signatures, object)
        known["time"] = (START + 300 * np.arange(count).astype("timedelta64[s]")).astype("datetime64[ns]")
        write(growth.arrays, known, slice(growth.start, growth.total))
        commit(growth.session, "known", None)


@pytest.mark.parametrize("per_folder", [288, 10**9], ids=["dated", "flat"])
@pytest.mark.parametrize("known", [600, 60_000])
def test_a_cycle_of_a_feed(benchmark, tmp_path: Path, known: int, per_folder: int) -> None:
    feed, store = tmp_path / "feed", tmp_path / "frames"
    fill(feed, store, known, per_folder)
    ingest("knmi", [feed], store)
    arrivals = iter(SAMPLE[1:])
    newest = max(feed.iterdir())

    def land() -> tuple[tuple, dict]:
        shutil.copy(next(arrivals), newest)
        return ("knmi", [feed], store), {}

    benchmark.pedantic(ingest, setup=land, rounds=10, warmup_rounds=2)
    print(f"\n{known} known names: {benchmark.stats['median'] * 1000:.0f} ms a cycle")
