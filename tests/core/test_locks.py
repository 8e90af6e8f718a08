"""Locks of stores, chains and devices: also on file systems without any, and between the users of a machine."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nowcast.config import Operations, load
from nowcast.core import device_lock, locks
from nowcast.core.errors import BusyError
from nowcast.core.locks import Timeout, locked
from nowcast.operations.cycle import _one_at_a_time
from nowcast.registry.registry import Registry
from nowcast.store import FrameStore
from tests.paths import ROOT

HOLD = "import sys; from nowcast.core.locks import locked; from pathlib import Path\n"
HOLD += "with locked(Path(sys.argv[1]), seconds=0): print('held', flush=True); sys.stdin.read()"


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def nfs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on whose files nothing can be locked, as on NFS without a lock daemon."""
    folder = tmp_path / "nfs"
    folder.mkdir()
    flock = fcntl.flock

    def refuse(descriptor: int, kind: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder):
            raise OSError(request.param, os.strerror(request.param))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("NOWCAST_LOCKS", str(tmp_path / "locks"))
    return folder


def test_a_store_a_registry_and_a_chain_work_where_there_are_no_locks(nfs: Path, operations: Path) -> None:
    store = FrameStore(nfs / "frames")
    with store.writing(), store.writing():
        pass
    with Registry(nfs / "models")._locked():
        pass
    settings = load(Operations, operations, [f"site={nfs / 'site'}"])
    with _one_at_a_time(settings), pytest.raises(BusyError), _one_at_a_time(settings):
        pass


def test_without_locks_the_processes_of_a_machine_hold_each_other_off_still(nfs: Path) -> None:
    path = nfs / "a.lock"
    program = [sys.executable, "-c", HOLD, str(locks._substitute(path))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        other.stdout.readline()
        with pytest.raises(Timeout), locked(path, seconds=0):
            pass
        other.kill()
    with locked(path, seconds=5):
        pass


def test_a_training_and_a_cycle_go_on_where_there_are_no_locks(nfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWCAST_LOCKS", str(nfs))
    with device_lock.hold("cpu"):
        training = device_lock.TrainingLock("cpu")
        assert training.wait() == 0
        training.close()


def test_other_faults_of_a_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "a.lock", seconds=0):
        pass


def test_all_users_of_a_machine_share_the_lock_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's file cannot be written, and is locked all the same."""
    monkeypatch.delenv("NOWCAST_LOCKS")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.umask(0o077)
    try:
        os.close(device_lock._open("cpu"))
    finally:
        os.umask(before)
    (file,) = tmp_path.glob("*/cpu.lock")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o1777
    opened = device_lock._open("cpu")
    assert fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    training = device_lock.TrainingLock("cpu")
    assert device_lock._try(opened, fcntl.LOCK_SH)
    assert training.wanted
    os.close(opened)
    assert not training.wanted
    training.close()
