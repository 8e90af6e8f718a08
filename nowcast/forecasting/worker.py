"""Networks run in a process that can be killed: one per chain, kept warm from cycle to cycle.

A network that hangs, needs more memory than there is or crashes the interpreter costs its forecast and nothing else.
The process keeps the networks in memory, so that no cycle waits for their imports and weights. It listens on a socket
in the user's own folder of locks, and ends when nobody has asked for long or the socket was removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from math import ceil
from multiprocessing.connection import Client, Connection
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from nowcast.core import machine
from nowcast.core.errors import BadInput, ForecastError, StoppedError
from nowcast.core.log import configure
from nowcast.forecasting.past import past
from nowcast.forecasting.run import Made, run_model
from nowcast.store import FrameStore

PACKAGE = Path(__file__).parents[1]
COMMAND = (sys.executable, "-P", "-m", "nowcast.forecasting.worker")
HELLO_SECONDS = 5.0
"""A process that does not greet within this time is busy with what another cycle left behind."""
LOOK_SECONDS = 0.02
"""Between two looks at the memory of the process."""
ACCEPT_SECONDS = 2.0
LINGER_SECONDS = 5
"""A process whose cycle was killed ends by itself this long after the time limit."""
Json = dict[str, Any]
_children: list[subprocess.Popen[bytes]] = []
"""Processes that this one started: they may outlive the object that did."""


class Worker:
    """The process of one chain, as its cycle sees it; started when it is needed, and again after it died."""

    def __init__(self, chain: str, *, idle_seconds: float = 900, memory_gigabytes: float | None = None) -> None:
        """Name a process; nothing is started.

        Args:
            chain: What tells this chain from others on the machine, such as its forecast store.
            idle_seconds: The process ends when nobody asked for so long.
            memory_gigabytes: Memory that it may use; None: most of what is free on the machine.
        """
        self.address = _folder() / f"worker-{blake2b(chain.encode(), digest_size=8).hexdigest()}"
        self.idle_seconds, self.memory_gigabytes = idle_seconds, memory_gigabytes
        self._connection: Connection | None = None
        self._pid = 0
        self._child: subprocess.Popen[bytes] | None = None

    def run(
        self, store: FrameStore, model: str, leads: Sequence[int], *, time: np.datetime64, channel: str, seconds: float
    ) -> Made:
        """Run a model on the frames that end at ``time``.

        Args:
            store: Cube store.
            model: As for ``run_model``.
            leads: Lead times in seconds.
            time: Reference time.
            channel: Channel to forecast.
            seconds: Time limit; the process is killed at its end.

        Raises:
            StoppedError: If it took too long, needed too much memory, or died.
            ForecastError: What the model said.
        """
        until = monotonic() + seconds
        limit = self._memory_limit()
        order: Json = {"store": store.path, "version": store.snapshot(), "time": str(time), "channel": channel}
        order |= {"model": model, "leads": list(leads), "seconds": seconds}
        try:
            connection = self._connected(until, seconds)
            connection.send_bytes(json.dumps(order).encode())
            self._await(connection, until, seconds, limit)
            return _received(connection)
        except (EOFError, OSError) as error:
            raise StoppedError(self._cause_of_death()) from error
        except ForecastError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        if self._child is not None:  # which may be another one, that is still starting
            self._child.kill()
            self._child.wait()
        self._connection, self._pid, self._child = None, 0, None

    def release(self) -> None:
        """Leave the process to the next cycle."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def retire(self) -> None:
        """Let the process end when it has answered: nobody will ask again."""
        self.release()
        self.address.unlink(missing_ok=True)

    def warm(self) -> None:
        """Start the process if there is none, without waiting for it."""
        if self._child is None and not _is_alive(self.address):
            self._start()

    # --- how it is reached

    def _connected(self, until: float, seconds: float) -> Connection:
        """Return the connection to a process with the present code, started where there is none."""
        while self._connection is None:
            if monotonic() > until:
                self.close()
                raise StoppedError(_too_long(seconds))
            if not _is_alive(self.address):
                if self._child is None or self._child.poll() is not None:
                    self._start()
                sleep(LOOK_SECONDS)
                continue
            with suppress(OSError, EOFError):  # it is starting, or just ending
                self._greet(Client(str(self.address), family="AF_UNIX"))
            sleep(0 if self._connection else LOOK_SECONDS)
        return self._connection

    def _greet(self, connection: Connection) -> None:
        """Take a process that is free and runs the present code; end another one."""
        pid = _pid(self.address)
        if connection.poll(HELLO_SECONDS) and json.loads(connection.recv_bytes())["code"] == code():
            self._connection, self._pid = connection, pid
            return
        connection.close()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        self.address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self.address.with_suffix(".log").open("wb")
        with log:
            self._child = subprocess.Popen(
                (*COMMAND, str(self.address), str(self.idle_seconds)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        _children[:] = [child for child in _children if child.poll() is None] + [self._child]

    # --- while it works

    def _memory_limit(self) -> int:
        if self.memory_gigabytes is not None:
            return int(self.memory_gigabytes * 1e9)
        return int(machine.MEMORY_SHARE * machine.free_memory()) + machine.resident_memory(self._pid)

    def _await(self, connection: Connection, until: float, seconds: float, limit: int) -> None:
        """Wait for the answer; kill a process that takes too long or too much."""
        while not connection.poll(LOOK_SECONDS):
            if monotonic() > until:
                self.close()
                raise StoppedError(_too_long(seconds))
            if (used := machine.resident_memory(self._pid)) > limit:
                self.close()
                raise StoppedError(f"needed more than {limit / 1e9:.1f} GB of memory ({used / 1e9:.1f} GB)")

    def _cause_of_death(self) -> str:
        """Say why the process is gone, as far as that is known, and forget it."""
        code = None
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._child.wait(LINGER_SECONDS)
        said = _last_line(self.address.with_suffix(".log"))
        self.close()
        if code is not None and code < 0:
            killed = " as when memory runs out" if -code == signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-code).name}{killed}"
        return f"its process died{f': {said}' if said else ''}"


def code() -> str:
    """Tell the code that runs from another: a process of an older one is not asked."""
    state = blake2b(f"{sys.executable} {os.environ.get('CUDA_VISIBLE_DEVICES')}".encode(), digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        facts = path.stat()
        state.update(f"{path} {facts.st_size} {facts.st_mtime_ns}".encode())
    return state.hexdigest()


def _too_long(seconds: float) -> str:
    return f"took longer than {seconds:.0f} s"


def _received(connection: Connection) -> Made:
    head: Json = json.loads(connection.recv_bytes())
    if "fault" in head:
        error = ForecastError(head["fault"])
        error.add_note(head["traceback"])
        raise error
    values = np.empty(head["shape"], np.float32)
    connection.recv_bytes_into(values.data.cast("B"))
    return Made(values, head["model"], head["digest"], head["inputs"])


def _folder() -> Path:
    """Find the folder of sockets: that of the locks, whose path is short, as sockets need it."""
    return Path(os.environ.get("NOWCAST_LOCKS") or Path(tempfile.gettempdir()) / f"nowcast-{os.getuid()}")


def _pid(address: Path) -> int:
    with suppress(OSError, ValueError):
        return int(address.with_suffix(".pid").read_text())
    return 0


def _is_alive(address: Path) -> bool:
    """Tell whether a process serves here: it holds the lock of its file as long as it lives."""
    try:
        with address.with_suffix(".pid").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""
    return ""


# --- in the process of its own --------------------------------------------------------------------


def main() -> None:
    """Serve one cycle after the other at a socket; arguments are its path and the seconds to wait for the next."""
    address, idle = Path(sys.argv[1]), float(sys.argv[2])
    configure()
    with suppress(OSError):  # where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    with address.with_suffix(".pid").open("a+") as file, socket.socket(socket.AF_UNIX) as server:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        address.unlink(missing_ok=True)
        server.bind(str(address))
        server.listen()
        server.settimeout(ACCEPT_SECONDS)
        asked = monotonic()
        while monotonic() - asked < idle and _is_ours(address):
            with suppress(TimeoutError):
                peer, _ = server.accept()
                with Connection(peer.detach()) as connection:
                    _serve(connection)
                asked = monotonic()


def _is_ours(address: Path) -> bool:
    """Tell whether nobody removed or replaced the socket."""
    return address.exists() and _pid(address) == os.getpid()


def _serve(connection: Connection) -> None:
    """Answer one cycle until it goes."""
    with suppress(EOFError, OSError):
        connection.send_bytes(json.dumps({"code": code()}).encode())
        while True:
            order = json.loads(connection.recv_bytes())
            signal.alarm(ceil(order["seconds"]) + LINGER_SECONDS)  # should the cycle be killed meanwhile
            _answer(connection, order)
            signal.alarm(0)


def _answer(connection: Connection, order: Json) -> None:
    try:
        cube = FrameStore.of(order["store"]).read(order["version"])
        frames = past(cube, time=np.datetime64(order["time"]), channel=order["channel"])
        made = run_model(order["model"], frames, order["leads"])
    except Exception as error:
        text = error.fault if isinstance(error, BadInput) else str(error)
        fault = {"fault": text.strip() or type(error).__name__, "traceback": traceback.format_exc()}
        connection.send_bytes(json.dumps(fault).encode())
        return
    head = {"shape": made.values.shape, "model": made.model, "digest": made.digest, "inputs": made.inputs}
    connection.send_bytes(json.dumps(head).encode())
    connection.send_bytes(np.ascontiguousarray(made.values).data.cast("B"))


if __name__ == "__main__":
    main()
