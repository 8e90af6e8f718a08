"""What the doctor finds: disks, feeds, steps, pages, runs; and what it says that it did not look at."""

from __future__ import annotations

import os
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from nowcast.flows import health
from nowcast.flows.processes import Mark
from nowcast.operations import cycle, doctor
from nowcast.registry import checkpoint
from nowcast.store import FrameStore
from tests import synthetic
from tests.conftest import free_port

Usage = namedtuple("Usage", "total used free")


def findings(config: Path, *overrides: str) -> dict[str, doctor.Finding]:
    return {found.what: found for found in doctor._chain(str(config), overrides)}


def test_overrides_are_those_that_the_chain_runs_with(operations: Path, tmp_path: Path) -> None:
    assert findings(operations)["feed"].ok
    found = findings(operations, f"feed.source={tmp_path}/nowhere")
    assert not found["feed"].ok
    assert "nowhere" in found["feed"].found
    assert not findings(operations, "feed.reader=nix")["settings"].ok


@pytest.mark.parametrize(("pattern", "there"), [("*.h5", True), ("**/*.h5", True), ("*.nc", False)])
def test_a_pattern_is_a_feed_too(operations: Path, tmp_path: Path, pattern: str, there: bool) -> None:
    (tmp_path / "a.h5").write_text("")
    assert findings(operations, f"feed.source={tmp_path}/{pattern}")["feed"].ok is there


def test_the_disk_is_that_of_the_stores(operations: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: looked.append(folder) or Usage(1, 1, 2**30))
    found = findings(operations, f"store={tmp_path}/deep/frames")["disk"]
    assert tmp_path in looked
    assert not found.ok
    assert f"{tmp_path}/deep/frames" in found.found


def test_a_folder_that_cannot_be_written_is_named(operations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: not mode & os.W_OK)
    assert "cannot be written" in findings(operations)["disk"].found


def test_an_object_store_is_not_looked_at(operations: Path) -> None:
    assert list(doctor._disks(cycle.load(operations, ["store=s3://bucket/frames"])))[-1].found.startswith("not looked")


@pytest.mark.parametrize(("feed", "fits"), [(300, True), (360, False), (600, False), (None, True)])
def test_a_network_is_fit_for_its_own_step(tmp_path: Path, feed: int | None, fits: bool) -> None:
    card = checkpoint.read_card(synthetic.tiny(tmp_path / "a.safetensors", "convgru:debug"))
    finding = doctor._fitting("x", card.model_copy(update={"cadence_seconds": 300}), feed)
    assert finding.ok is fits
    assert ("a frame comes every" in finding.found) is not fits


def test_a_network_that_may_be_resampled_is_fit_for_any_step(tmp_path: Path) -> None:
    card = checkpoint.read_card(synthetic.tiny(tmp_path / "a.safetensors", "lagrangian:debug"))
    finding = doctor._fitting("x", card.model_copy(update={"cadence_seconds": 300}), 600)
    assert finding.ok
    assert "a frame comes every 600 s" in finding.found


def test_a_feed_that_only_refuses_and_a_step_that_contradicts_are_found(operations: Path, tmp_path: Path) -> None:
    feed = tmp_path / "landing"
    feed.mkdir()
    (feed / "a.h5").write_bytes(b"no frame")
    changes = [f"feed.source={feed}", f"store={tmp_path}/frames", "feed.reader=knmi", "replay=false"]
    settings = cycle.load(operations, changes)
    cycle.cycle(settings)
    refused = findings(operations, *changes)["refused"]
    assert not refused.ok
    assert "1 file of the feed" in refused.found
    assert "a.h5" in refused.found
    synthetic.make_store(tmp_path / "others", range(8))
    assert findings(operations, f"store={tmp_path}/others")["step"].ok
    FrameStore(tmp_path / "others").state_cadence(900)
    step = findings(operations, f"store={tmp_path}/others", "feed.cadence_seconds=900")["step"]
    assert not step.ok
    assert "frames come every 300 s" in step.found


def test_a_page_that_nobody_publishes_is_old(operations: Path, tmp_path: Path) -> None:
    settings = cycle.load(operations, [f"site={tmp_path}"])
    assert "does not exist yet" in next(doctor._page(settings)).found
    (tmp_path / "latest.json").write_text("{}")
    assert next(doctor._page(settings)).ok
    os.utime(tmp_path / "latest.json", (0, 0))
    assert not next(doctor._page(settings)).ok


def test_without_a_chain_or_a_server_it_says_what_it_did_not_look_at(
    operations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.examine()[-1].found.startswith("not looked at")
    monkeypatch.setattr(health, "DEFAULT_API", f"http://127.0.0.1:{free_port()}/api")
    (found,) = health.examine(cycle.load(operations), "x")
    assert found.found.startswith("not looked at: no Prefect server")


def test_what_a_killed_up_left_is_named(operations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = cycle.load(operations)
    mark = Mark("http://box/api", "x", str(settings.site.resolve()), up=2**22 + 1)
    other = Mark("http://box/api", "y", "/elsewhere", up=2**22 + 1)
    alive = [(SimpleNamespace(pid=71), mark), (SimpleNamespace(pid=72), other)]
    monkeypatch.setattr(health.processes, "marked", lambda: iter(alive))
    (found,) = health._left_behind(settings)
    assert not found.ok
    assert found.found.endswith(": 71")


class Server:
    """Answers with runs of the cycle: one late, one running for too long, one to come."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.runs = [
            run("late", "SCHEDULED", now - timedelta(minutes=9)),
            run("stuck", "RUNNING", now - timedelta(minutes=9)),
            run("new", "RUNNING", now),
            run("next", "SCHEDULED", now + timedelta(minutes=1)),
        ]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_deployment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(id="01a22f89-a61c-747c-8ed4-a68f387c753c")

    def read_flow_runs(self, flow_run_filter: object) -> list[SimpleNamespace]:
        return self.runs


def run(name: str, state: str, time: datetime) -> SimpleNamespace:
    start = time if state == "RUNNING" else None
    return SimpleNamespace(name=name, state_type=state, expected_start_time=time, start_time=start)


def test_late_and_stuck_cycles_are_named(operations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **_: Server())
    late, stuck = health._runs(cycle.load(operations, ["every_minutes=2"]), "x")
    assert (late.what, late.found, late.ok) == ("late cycles", "late", False)
    assert (stuck.what, stuck.found, stuck.ok) == ("stuck cycles", "stuck", False)
