"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nowcast.core import files


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest.json"
    with files.atomic_file(path) as aside:
        aside.write_text("{}")
        assert listed(path.parent) == [aside.name]
    assert path.read_text() == "{}"
    assert listed(path.parent) == ["latest.json"]


@pytest.mark.parametrize("kind", [files.atomic_file, files.atomic_folder])
def test_what_fails_leaves_what_was_there(tmp_path: Path, kind) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    with pytest.raises(RuntimeError), kind(path) as aside:
        (aside if kind is files.atomic_file else aside / "part").write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert listed(tmp_path) == ["old"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_leaves_the_old_or_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    path, calls = tmp_path / "file", iter(range(1, 3))
    path.write_bytes(b"old")

    def sync(_: Path) -> None:
        if next(calls) == step:
            raise OSError("the disk is full")

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(OSError, match="full"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == (b"old" if step == 1 else b"new")
    assert listed(tmp_path) == ["file"]


def test_a_folder_takes_its_place_whole_and_over_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with files.atomic_folder(path) as aside:
        left = aside
    path.rmdir()
    left.mkdir()
    (left / "half").write_text("")
    with files.atomic_folder(path) as aside:
        (aside / "whole").write_text("")
        assert not path.exists()
    assert listed(path) == ["whole"]
    assert listed(tmp_path) == ["run"]
