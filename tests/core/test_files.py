"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nowcast.cli.failures import explained
from nowcast.core import files
from nowcast.core.errors import DiskError


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


def test_what_a_killed_writer_left_is_removed_by_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    """The killed one wrote a file of another name, which nobody writes again."""
    script = (
        "import sys, os, pathlib; from nowcast.core.files import atomic_file, atomic_folder; "
        "path = pathlib.Path(sys.argv[1]); kind = {'file': atomic_file, 'folder': atomic_folder}[sys.argv[2]]\n"
        "with kind(path) as aside:\n"
        "    (aside if sys.argv[2] == 'file' else aside / 'part').write_text('half')\n"
        "    os.kill(os.getpid(), 9)"
    )
    for kind in ("file", "folder"):
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / f"old-{kind}"), kind])
        assert killed.returncode == -9
    assert len(listed(tmp_path)) == 1  # the second one removed what the first one left
    old = tmp_path / f"{files.UNFINISHED}elsewhere.1-x"
    old.write_text("")
    os.utime(old, (0, 0))
    living = tmp_path / f"{files.UNFINISHED}{socket.gethostname()}.{os.getppid()}-y"
    elsewhere = tmp_path / f"{files.UNFINISHED}elsewhere.1-z"
    living.write_text("")
    elsewhere.write_text("")
    files.write_atomic(tmp_path / "new", b"")
    assert listed(tmp_path) == sorted([living.name, elsewhere.name, "new"])


FAULTS = {
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "read only": OSError(errno.EROFS, "Read-only file system"),
    "not ours": PermissionError(errno.EACCES, "Permission denied"),
}


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", [files.atomic_file, files.atomic_folder])
def test_a_disk_that_takes_nothing_is_named_in_one_sentence(tmp_path: Path, kind, error: OSError) -> None:
    with (
        pytest.raises(
            DiskError, match=rf"run: cannot be written: {os.strerror(error.errno)}; \d+ MiB are free"
        ) as told,
        kind(tmp_path / "run"),
    ):
        try:
            raise error
        except OSError as cause:  # as netCDF4 and HDF5 do
            raise RuntimeError("NetCDF: HDF error") from cause
    assert explained(told.value) == f"DiskError: {told.value}"
    assert not listed(tmp_path)


def test_a_library_that_fails_without_a_reason_on_a_full_disk_fails_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_free", lambda _: 0)
    with pytest.raises(DiskError, match="No space left"), files.atomic_file(tmp_path / "a"):
        raise RuntimeError("NetCDF: HDF error")


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DiskError, match="cannot be written"):
        files.write_atomic(tmp_path / "taken" / "2026" / "a.nc", b"")


def test_a_disk_that_fills_up_while_a_file_grows_leaves_nothing(tmp_path: Path) -> None:
    """The limit on the size of files stops a real write in its midst."""
    script = (
        "import sys, resource, pathlib; from nowcast.core import files; from nowcast.core.errors import DiskError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_atomic(pathlib.Path(sys.argv[1]), bytes(5000))\n"
        "except DiskError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True)
    assert "a: cannot be written: File too large" in told.stdout, told.stderr
    assert not listed(tmp_path)
