"""What was refused is not opened again, and what did not change is not listed again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nowcast.config import QualitySettings
from nowcast.ingestion import memory as memories
from nowcast.ingestion import run as ingestion
from nowcast.readers import knmi
from nowcast.store import FrameStore
from tests.paths import SAMPLE

FRAMES = sorted(SAMPLE.glob("*.h5"))
OLD = 86_400


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    (tmp_path / "feed").mkdir()
    return tmp_path / "feed"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were opened, in order."""
    names: list[str] = []
    read = knmi.read
    monkeypatch.setattr(knmi, "read", lambda item: (names.append(item.path.name), read(item))[1])
    return names


def age(path: Path, seconds: int = OLD) -> Path:
    """Make a file or folder older."""
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns - seconds * 10**9))
    return path


def take(feed: Path, **options: object) -> ingestion.Summary:
    return ingestion.ingest("knmi", [feed], feed.parent / "frames", **options)  # type: ignore[arg-type]


def foreign(feed: Path, name: str = "bad.h5") -> Path:
    path = feed / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("not a radar file")
    return path


def test_a_refused_file_is_named_once(feed: Path, opened: list[str]) -> None:
    shutil.copy(FRAMES[0], feed)
    foreign(feed)
    assert len(take(feed).refused) == 1
    again = take(feed)
    assert (again.refused, again.remembered, again.known, again.failure) == ([], 1, 1, "")
    assert opened == [FRAMES[0].name, "bad.h5"] or opened == ["bad.h5", FRAMES[0].name]
    assert "bad.h5" in again.last_refusal
    assert len(memories.refusals(FrameStore(feed.parent / "frames"))) == 1


def test_also_where_nothing_was_ever_taken(feed: Path, opened: list[str]) -> None:
    foreign(feed)
    assert take(feed).failure.startswith("One item landed and none was taken: ")
    again = take(feed)
    assert (again.refused, again.remembered, again.failure) == ([], 1, "")
    assert opened == ["bad.h5"]


def test_also_in_another_process(feed: Path, opened: list[str]) -> None:
    foreign(feed)
    code = "import sys, nowcast; print(len(nowcast.ingest('knmi', [sys.argv[1]], sys.argv[2]).refused))"
    run = subprocess.run(
        [sys.executable, "-c", code, feed, feed.parent / "frames"], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["1"]
    assert take(feed).remembered == 1
    assert not opened


@pytest.mark.parametrize("how", ["rewritten in place", "replaced", "other settings", "other code", "memory gone"])
def test_it_is_forgotten_when_something_changes(
    feed: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = foreign(feed)
    age(feed)
    take(feed)
    options: dict[str, object] = {}
    if how == "rewritten in place":
        path.write_bytes(FRAMES[0].read_bytes())
        age(feed)
    elif how == "replaced":
        shutil.copy(FRAMES[0], feed / ".part")
        (feed / ".part").rename(path)
    elif how == "other settings":
        options["settings"] = QualitySettings(most_missing=0.5)
    elif how == "other code":
        monkeypatch.setattr(memories, "_code", lambda: "other")
    else:
        (feed.parent / "frames.seen.json").unlink()
    summary = take(feed, **options)
    assert opened == ["bad.h5"] * 2
    assert summary.taken == (how in ("rewritten in place", "replaced"))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"x": 1}'])
def test_a_damaged_memory_is_made_anew(feed: Path, damage: bytes) -> None:
    shutil.copy(FRAMES[0], feed)
    (feed.parent / "frames.seen.json").write_bytes(damage)
    assert take(feed).taken == 1
    assert take(feed).known == 1


def test_a_frame_from_the_future_comes_back_in_its_time(feed: Path, opened: list[str]) -> None:
    shutil.copy(FRAMES[0], feed)
    assert len(take(feed, now=datetime(2010, 8, 26, 3, tzinfo=UTC)).refused) == 1
    assert take(feed).taken == 1


def test_what_may_be_mended_outside_is_tried_again(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(FRAMES[0], feed)
    with monkeypatch.context() as patch:
        patch.setattr(knmi, "read", lambda item: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert len(take(feed).refused) == 1
    assert take(feed).taken == 1


def test_the_same_frame_under_another_name_is_opened_once(feed: Path, opened: list[str]) -> None:
    shutil.copy(FRAMES[0], feed)
    take(feed)
    shutil.copy(FRAMES[0], feed / "copy.h5")
    assert take(feed).known == 2
    assert take(feed).known == 2
    assert opened == [FRAMES[0].name, "copy.h5"]


def test_unchanged_folders_are_not_listed(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, frame in enumerate(FRAMES[:4]):
        (feed / f"day{number}").mkdir()
        age(Path(shutil.copy(frame, feed / f"day{number}")))
        age(feed / f"day{number}")
    age(feed)
    assert take(feed).taken == 4
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path).name), scan(path))[1])
    assert take(feed).known == 4
    assert not listed
    shutil.copy(FRAMES[4], feed / "day3")
    assert take(feed).taken == 1
    assert listed == ["day3"]


def test_a_correction_in_an_unchanged_folder_is_seen_while_young(feed: Path) -> None:
    path = Path(shutil.copy(FRAMES[0], feed))
    path.touch()
    age(feed)
    assert take(feed).taken == 1
    path.write_bytes(FRAMES[1].read_bytes())  # in place: the folder does not change
    age(feed)
    assert take(feed).taken == 1


def test_a_pattern_is_remembered_too(feed: Path, opened: list[str]) -> None:
    foreign(feed)
    for _ in range(2):
        summary = ingestion.ingest("knmi", [str(feed / "*.h5")], feed.parent / "frames")
    assert (opened, summary.remembered) == (["bad.h5"], 1)


def test_the_memory_is_bounded(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MOST_FILES", 3)
    for number in range(5):
        foreign(feed, f"bad{number}.h5")
    take(feed)
    assert len(memories.refusals(FrameStore(feed.parent / "frames"))) == 3
    for path in feed.glob("*.h5"):
        path.unlink()
    take(feed)
    assert not memories.refusals(FrameStore(feed.parent / "frames"))


# --- nothing done, nothing to do, nothing possible -------------------------------------------------


@pytest.mark.parametrize(
    ("what", "fails"),
    [
        ("empty", ""),
        ("missing", "does not exist"),
        ("a file", ""),
        ("good", ""),
        ("good and bad", ""),
        ("bad", "landed and none was taken"),
        ("of other names", "holds no file named"),
        ("unreadable", "Permission denied"),
    ],
)
def test_outcomes(feed: Path, monkeypatch: pytest.MonkeyPatch, what: str, fails: str) -> None:
    if what == "missing":
        feed.rmdir()
    if "good" in what:
        shutil.copy(FRAMES[0], feed)
    if "bad" in what:
        foreign(feed)
    if what == "of other names":
        foreign(feed, "bad.tif")
    source = Path(shutil.copy(FRAMES[0], feed.parent / "a.h5")) if what == "a file" else feed
    if what == "unreadable":

        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
    summary = ingestion.ingest("knmi", [source], feed.parent / "frames")
    assert fails in summary.failure if fails else not summary.failure
