"""A network that hangs, crashes or eats the memory costs its own forecast alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nowcast.config import Operations
from nowcast.core import machine
from nowcast.core.errors import ForecastError, StoppedError
from nowcast.forecasting import worker as workers
from nowcast.forecasting.worker import Worker
from nowcast.models import MODELS
from nowcast.operations import cycle, issuing
from nowcast.store import FrameStore, open_store
from tests import checkpoints, misbehaving, synthetic
from tests.operations.test_cycle import land, manifest
from tests.operations.test_promotion import chain

TIME = synthetic.START + 3 * synthetic.STEP
LEADS = [300, 600]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is in the table, here and in the process of the networks."""
    monkeypatch.setattr(workers, "COMMAND", misbehaving.COMMAND)
    monkeypatch.setitem(MODELS, "misbehaving", "")
    misbehaving.register()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(str(tmp_path), memory_gigabytes=1.5)
    yield made
    made.close()


def network(folder: Path, deed: str) -> str:
    return str(checkpoints.save(folder / f"{deed}.safetensors", model="misbehaving", options={"deed": deed}))


def ask(worker: Worker, frames: FrameStore, model: str, seconds: float = 60) -> np.ndarray:
    return worker.run(frames, model, LEADS, time=TIME, channel="rainfall_rate", seconds=seconds).values


@pytest.mark.slow
def test_the_process_of_the_networks_survives_what_it_runs_and_stays_warm(tmp_path: Path, worker: Worker) -> None:
    frames = FrameStore(synthetic.make_store(tmp_path / "frames", range(4)))
    good = network(tmp_path, "none")
    np.testing.assert_allclose(ask(worker, frames, good)[1], synthetic.rain(3), atol=0.3)
    first = worker._pid
    with pytest.raises(ForecastError, match="no such luck") as told:
        ask(worker, frames, network(tmp_path, "raise"))
    assert "Traceback" in told.value.__notes__[0]
    worker.release()
    ask(worker, frames, good)
    assert worker._pid == first, "the next cycle finds it warm"
    for deed, reason in {
        "crash": "its process was killed by SIGSEGV",
        "eat": "needed more than 1.5 GB of memory",
        "hang": "took longer than 2 s",
    }.items():
        ask(worker, frames, good)
        with pytest.raises(StoppedError, match=reason):
            ask(worker, frames, network(tmp_path, deed), seconds=2 if deed == "hang" else 60)
    ask(worker, frames, good)
    last = worker._pid
    assert last not in (0, first)
    worker.retire()
    assert worker._child is not None
    assert worker._child.wait(60) == 0, "it ends by itself when nobody will ask again"


@pytest.mark.slow
def test_a_process_that_is_killed_between_cycles_or_runs_other_code_is_replaced(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, good = FrameStore(synthetic.make_store(tmp_path / "frames", range(4))), network(tmp_path, "none")
    ask(worker, frames, good)
    first = worker._pid
    worker.release()
    os.kill(first, signal.SIGKILL)
    worker._child.wait()  # type: ignore[union-attr]
    ask(worker, frames, good)
    second = worker._pid
    worker.release()
    monkeypatch.setattr(workers, "code", lambda: "of yesterday")
    with pytest.raises(StoppedError, match="took longer than 3 s"):  # every new one differs from this too
        ask(worker, frames, good, seconds=3)
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0) or os.waitpid(second, 0)


def test_the_limit_of_memory_is_that_of_machine_or_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    assert machine.free_memory() == 1000 * 1024
    (tmp_path / "memory.max").write_text("max")
    assert machine.free_memory() == 1000 * 1024
    (tmp_path / "memory.max").write_text("900000")
    (tmp_path / "memory.current").write_text("400000")
    assert machine.free_memory() == 500_000
    assert machine.resident_memory(1) == 0


class Stopping:
    """In place of the process of the networks: looks at the page when it is asked, and is stopped."""

    def __init__(self, settings: Operations) -> None:
        self.settings, self.asked, self.seen = settings, [], []  # type: ignore[var-annotated]

    def warm(self) -> None:
        pass

    def release(self) -> None:
        pass

    def run(self, _: FrameStore, model: str, *__: object, seconds: float, **___: object) -> None:
        page = manifest(self.settings)
        self.asked.append((Path(model).stem, round(seconds)))
        newest = page["runs"][0]
        self.seen.append(
            (page["observed"][-1]["time"], newest["reference_time"], [m["model"] for m in newest["models"]])
        )
        raise StoppedError("took longer than 150 s")


def test_the_page_has_radar_and_baselines_before_a_network_is_asked_and_the_fallback_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = [{"name": "net", "model": "net.safetensors"}, {"name": "base", "model": "persistence"}]
    products.insert(1, {"name": "quick", "model": "quick.safetensors", "deadline_seconds": 20})
    settings = chain(tmp_path, products=products, registry=None)
    settings.feed.source.mkdir()
    land(settings, 0)
    cycle.cycle(settings.model_copy(update={"products": settings.products[2:]}))
    stopping = Stopping(settings)
    monkeypatch.setattr(issuing, "worker", lambda _: stopping)
    land(settings, 1, 2)
    report = cycle.cycle(settings)
    assert stopping.asked == [("net", 150), ("quick", 20)]
    assert stopping.seen[0] == ("2010-08-26T04:15:00Z", "2010-08-26T04:15:00Z", ["base"])
    assert len(report.alarms) == 2
    newest = {entry["model"]: entry for entry in manifest(settings)["runs"][0]["models"]}
    assert {name: (entry["state"], entry["producer"]) for name, entry in newest.items()} == {
        "net": ("fallback", "extrapolation"),
        "quick": ("fallback", "extrapolation"),
        "base": ("ok", "persistence"),
    }
    assert newest["net"]["reason"] == "net.safetensors: took longer than 150 s"


def test_networks_share_the_time_of_a_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products = [{"name": "net", "model": "net.safetensors"}]
    settings = chain(tmp_path, products=products, registry=None)
    settings.feed.source.mkdir()
    monkeypatch.setattr(issuing, "monotonic", iter(range(0, 10**6, 150)).__next__)
    land(settings, 0)
    stopping = Stopping(settings)
    monkeypatch.setattr(issuing, "worker", lambda _: stopping)
    cycle.cycle(settings)
    runs = open_store(settings.forecasts)
    assert runs["state"].values.tolist() == ["fallback"]
    assert stopping.asked == [] or stopping.asked[0][1] <= 90


def test_a_file_that_cannot_be_written_stops_no_page(tmp_path: Path) -> None:
    settings = chain(tmp_path, products=[{"name": "p", "model": "persistence"}], netcdf=tmp_path / "file")
    settings.feed.source.mkdir()
    (tmp_path / "file").write_text("no folder")
    land(settings, 0)
    report = cycle.cycle(settings)
    assert report.published
    assert len(report.failures) == 1 and report.failures[0].startswith("NetCDF: ")
