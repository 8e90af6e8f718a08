"""A cycle goes before a training on its card; nobody waits for the dead, and not for ever for the living."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest
import torch

from nowcast.core import device_lock
from nowcast.core.device_lock import TrainingLock, device_id, hold
from nowcast.registry import checkpoint
from nowcast.training import run as training
from tests.training.test_run import losses, recipe

HOLD = """
import sys, time
from nowcast.core.device_lock import hold
with hold("cpu"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of their own for tests that run beside each other."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def gate() -> Iterator[TrainingLock]:
    found = TrainingLock("cpu")
    yield found
    found.close()


def test_a_training_waits_while_cycles_hold_the_card_and_not_longer(gate: TrainingLock) -> None:
    rooms: list[int] = []
    assert gate.wait(before=lambda: rooms.append(1)) == 0
    with hold("cpu"):
        assert gate.wanted
        with hold("cpu"):  # two domains on one card
            assert gate.wanted
        assert gate.wanted
        release = threading.Event()
        other = threading.Thread(target=_hold, args=(release,))
        other.start()
        sleep(0.1)
    assert gate.wanted
    threading.Timer(0.3, release.set).start()
    assert gate.wait(before=lambda: rooms.append(2)) > 0
    assert rooms == [2]
    other.join()
    assert not gate.wanted


def _hold(release: threading.Event) -> None:
    with hold("cpu"):
        release.wait(60)


def test_another_card_is_of_no_interest(gate: TrainingLock) -> None:
    with hold("gpu-1"):
        assert not gate.wanted


def test_a_training_that_looks_takes_one_look(gate: TrainingLock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_lock, "sleep", lambda _: pytest.fail("slept"))
    looks: list[int] = []
    try_lock = device_lock._try
    monkeypatch.setattr(device_lock, "_try", lambda *lock: looks.append(1) or try_lock(*lock))
    assert [gate.wait() for _ in range(1000)] == [0.0] * 1000
    assert len(looks) == 1000


def test_a_dead_cycle_stops_nobody(gate: TrainingLock, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, env=_environment(tmp_path)) as child:
        assert child.stdout
        child.stdout.readline()
        assert gate.wanted
        child.kill()
        child.wait()
        assert not gate.wanted


def _environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(tmp_path)}


def test_a_cycle_that_hangs_stops_a_training_once_and_not_for_ever(
    gate: TrainingLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lock, "LONGEST_SECONDS", 0.1)
    with hold("cpu"):
        assert gate.wait() >= 0.1
        assert gate.wait() == 0
    assert not gate.wanted
    with hold("cpu"):
        assert gate.wanted


def test_a_cycle_does_not_wait_for_a_training_that_was_stopped_at_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_lock, "PATIENCE_SECONDS", 0.05)
    stopped, other = TrainingLock("cpu"), TrainingLock("cpu")
    assert device_lock._try(stopped._descriptor, device_lock.fcntl.LOCK_EX)
    waits: list[float] = []
    monkeypatch.setattr(device_lock, "sleep", lambda seconds: waits.append(seconds) or sleep(seconds))
    with hold("cpu"):  # comes to this block with the lock still held
        assert not device_lock._try(other._descriptor, device_lock.fcntl.LOCK_EX)
    assert sum(waits) <= device_lock.PATIENCE_SECONDS + device_lock.LOOK_SECONDS
    stopped.close()
    other.close()


def test_the_card_of_a_cpu() -> None:
    assert device_id(torch.device("cpu")) == "cpu"
    if not torch.cuda.is_available():
        assert device_id() == "cpu"


def test_a_training_pauses_between_two_steps_and_learns_the_same(tmp_path: Path) -> None:
    """The steps after the pause are those of an undisturbed run, bit for bit."""
    settings = recipe(tmp_path, batches_per_epoch=6)
    plain = checkpoint.load(training.train(settings)).network.state_dict()
    release, seen = threading.Event(), []
    holder = threading.Thread(target=_hold, args=(release,))
    holder.start()
    disturbed = threading.Thread(
        target=lambda: seen.append(training.train(settings.model_copy(update={"runs": tmp_path / "again"})))
    )
    disturbed.start()
    disturbed.join(4)
    assert disturbed.is_alive()
    assert not list((tmp_path / "again/debug").glob("*.ckpt"))
    release.set()
    disturbed.join()
    holder.join()
    again = checkpoint.load(seen[0]).network.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in plain.items())
    (table,) = (tmp_path / "again/debug/csv").rglob("metrics.csv")
    (paused,) = [
        float(row["paused_seconds"]) for row in csv.DictReader(table.read_text().splitlines()) if row["paused_seconds"]
    ]
    assert paused > 0
    assert losses(tmp_path, "paused_seconds") == [0.0]
