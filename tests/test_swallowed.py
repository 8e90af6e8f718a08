"""A failure that is survived leaves its traceback in the log: everywhere by the look of the code, and tried out."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nowcast import readers, store
from nowcast.benchmark import run as benchmarking
from nowcast.config import Participant, Product, QualitySettings
from nowcast.core.errors import BadInput, MissingExtra
from nowcast.forecasting import fallback as fallbacks
from nowcast.forecasting import run as forecasting
from nowcast.ingestion import decode
from nowcast.ingestion import run as ingestion
from nowcast.ingestion.append import Appender
from nowcast.operations import doctor, promotion, shadow
from nowcast.readers import Item
from nowcast.training.logging import TolerantMLFlowLogger
from tests import checkpoints, synthetic
from tests.operations.test_promotion import chain
from tests.paths import ROOT, SAMPLE

NO_FAILURE = {
    "nowcast/cli/failures.py": {"PackageNotFoundError": "run from a checkout: no extras are known"},
    "nowcast/core/code_digest.py": {"PackageNotFoundError": "what is not there has no version"},
    "nowcast/core/device_lock.py": {
        "BlockingIOError": "the lock is taken: what is asked",
        "FileNotFoundError": "the lock file is made",
    },
    "nowcast/core/files.py": {
        "OSError": "another process removes the same leftovers",
        "ProcessLookupError": "whether a process lives: what is asked",
        "PermissionError": "whether a process lives: what is asked",
    },
    "nowcast/core/log.py": {"Exception": "the log itself failed: logging says so on standard error"},
    "nowcast/core/version.py": {
        "PackageNotFoundError": "run from a folder that is not installed",
        "OSError": "there is no git",
    },
    "nowcast/forecasting/worker.py": {
        "FileNotFoundError": "no process was started here: what is asked",
        "BlockingIOError": "the process lives and holds its lock: what is asked",
        "Exception": "sent to the cycle with its traceback, which logs it",
    },
    "nowcast/ingestion/memory.py": {
        "OSError": "the file is gone, or is left to its reader, which says what is wrong",
        "FileNotFoundError": "nothing was remembered yet",
    },
    "nowcast/operations/doctor.py": {"PackageNotFoundError": "a finding without a cause"},
    "nowcast/operations/shadow.py": {"subprocess.TimeoutExpired": "its time is over, which the report says"},
    "flows/cycle.py": {"BusyError": "the state of the run says so"},
    "flows/health.py": {"ObjectNotFound": "a finding says so"},
    "flows/processes.py": {
        "(psutil.Error, OSError)": "the process has ended, or is another user's",
        "(OSError, psutil.Error)": "the process has ended",
        "(ValueError, TypeError)": "the mark of another version",
        "psutil.NoSuchProcess": "it has ended, which is asked",
        "KeyboardInterrupt": "somebody cannot wait",
    },
    "flows/up.py": {"OSError": "no server answers, or the port is taken: what is asked", "KeyboardInterrupt": "Ctrl-C"},
}
"""What is caught and is none, or is told in full elsewhere: file -> exception -> why."""
FILES = [path for folder in ("nowcast", "models", "flows") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES = [path for path in FILES if "readers" not in path.parts]
"""Readers look for what is theirs among files of others."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_told(handler: ast.ExceptHandler) -> bool:
    """Whether an error goes on, or is logged with its traceback."""
    inside = [node for line in handler.body for node in ast.walk(line)]
    logged = [
        node for node in inside if isinstance(node, ast.Call) and "exc_info" in [key.arg for key in node.keywords]
    ]
    return bool(logged) or any(isinstance(node, ast.Raise) for node in inside)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_caught_is_raised_or_logged(path: Path) -> None:
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    silent = {ast.unparse(handler.type) for handler in handlers if handler.type and not is_told(handler)}
    assert not [handler.lineno for handler in handlers if handler.type is None]
    assert silent == set(NO_FAILURE.get(name_of(path), {}))


# --- tried out ------------------------------------------------------------------------------------


def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a bug")


def of_a_forecast(folder: Path, patch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_store(folder / "frames", range(3))
    patch.setattr(forecasting, "predict", fail)
    lines = fallbacks.issue(path, str(folder / "f"), [Product(name="p", model="persistence")], fallback=(), leads=1)
    assert lines == ["p 2010-08-26T00:10Z withheld persistence: a bug"]


def of_a_benchmark(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(benchmarking, "_scored", fail)
    participant = Participant(name="net", checkpoint=str(folder / "net.safetensors"))
    row = benchmarking._network(participant, object(), {})  # type: ignore[arg-type]
    assert row.failures == ("net-0: ZeroDivisionError: a bug",)


def of_the_shadow(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shadow, "candidates", fail)
    assert shadow.run(chain(folder), datetime(2010, 8, 26, tzinfo=UTC), seconds=9) == ["shadow: a bug"]


def of_mlflow(folder: Path, patch: pytest.MonkeyPatch) -> None:
    TolerantMLFlowLogger.attempt(object.__new__(TolerantMLFlowLogger), fail)


@pytest.mark.parametrize("swallows", [of_a_forecast, of_a_benchmark, of_the_shadow, of_mlflow])
def test_a_bug_that_is_survived_is_a_warning_with_its_traceback(
    swallows: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    swallows(tmp_path, monkeypatch)
    (record,) = caplog.records
    assert (record.levelname, record.name.partition(".")[0]) == ("WARNING", "nowcast")
    assert record.exc_info
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def of_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "torn.h5").write_bytes(b"torn")
    assert ingestion.ingest("knmi", [folder / "torn.h5"], folder / "frames").refused


def of_a_place(folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert ingestion.ingest("knmi", [folder / "nowhere"], folder / "frames").refused


def never(*_: object) -> decode.DecodedItem:
    raise AssertionError("nothing was read")


def of_a_library(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def read(_: Item) -> None:
        raise MissingExtra("rasterio is not installed: pip install 'nowcast-radar[geotiff]'")

    patch.setattr(readers.get("knmi"), "read", read)
    made = decode.prepare(("knmi", Item(next(SAMPLE.glob("*.h5")))), never)
    assert "geotiff" in made.refused


def of_quality(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def measure(*_: object, **__: object) -> None:
        raise BadInput("a.h5", "has no rain")

    patch.setattr(decode.quality, "measure", measure)
    cube = synthetic.cube(range(1))
    made = decode.inspect(Item(folder / "a.h5"), "a.h5|1|1", cube, now=None, settings=QualitySettings())
    assert made.refused == "a.h5: has no rain."


def of_another_grid(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def extend(*_: object, **__: object) -> None:
        raise BadInput("frames", "is on another projection")

    patch.setattr(store.FrameStore, "extend", extend)
    assert ingestion.ingest("knmi", [next(SAMPLE.glob("*.h5"))], folder / "frames").refused


def of_a_vanished_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert Appender(store.FrameStore(folder / "frames"), QualitySettings()).is_new(Item(folder / "gone.h5"))


def of_a_registered_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    settings = chain(folder)
    promotion.register(settings, checkpoints.save(folder / "net.safetensors"), name="net")
    registry = promotion.open_registry(settings)
    registry.file(registry.find("net")).write_bytes(b"torn")
    assert "is no checkpoint" in str(registry.lineage()[0]["fault"])


def of_settings(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "x.yaml").write_text("titel: x")
    assert "unknown key" in next(doctor._chain(str(folder / "x.yaml"), ())).found


def of_a_model(folder: Path, patch: pytest.MonkeyPatch) -> None:
    settings = chain(folder, products=[{"name": "p", "model": str(folder / "gone.safetensors")}])
    assert "no such checkpoint" in next(doctor._models(settings)).found


def of_a_journal(folder: Path, patch: pytest.MonkeyPatch) -> None:
    settings = chain(folder)
    (folder / "models").mkdir()
    (folder / "models" / "journal.jsonl").write_text("{}\n")
    assert "is no event" in next(doctor._registry(settings)).found


@pytest.mark.parametrize(
    "swallows",
    [
        of_a_file,
        of_a_place,
        of_a_library,
        of_quality,
        of_another_grid,
        of_a_vanished_file,
        of_a_registered_file,
        of_settings,
        of_a_model,
        of_a_journal,
    ],
)
def test_what_a_report_says_in_a_sentence_has_its_traceback_under_debug(
    swallows: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "nowcast")
    swallows(tmp_path, monkeypatch)
    traced = [record for record in caplog.records if record.exc_info and record.exc_info[0]]
    assert {record.levelname for record in traced} == {"DEBUG"}


def test_a_file_that_cannot_be_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = decode.prepare(("knmi", Item(tmp_path / "gone.h5")), never)
    assert made.like is None
    assert "No such file" in made.refused
    (record,) = caplog.records
    assert (record.levelname, record.exc_info is not None) == ("WARNING", True)


def test_a_store_that_the_doctor_cannot_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(_: store.Store) -> None:
        raise PermissionError(13, "Permission denied")

    path = synthetic.make_store(tmp_path / "frames", range(1))
    monkeypatch.setattr(store.Store, "read", read)
    assert "Permission denied" in doctor._store("frames", store.FrameStore(path)).found
    (record,) = caplog.records
    assert (record.levelname, record.exc_info is not None) == ("WARNING", True)


@pytest.mark.parametrize(
    ("deed", "last"),
    [
        ("try: 1 / 0\nexcept ZeroDivisionError: logging.warning('one is left out', exc_info=True)", "new ok"),
        ("raise MemoryError('no more')", "shadow: ended with code 1: MemoryError: no more"),
        (
            "try: 1 / 0\nexcept ZeroDivisionError: logging.warning('x', exc_info=True)\nos.kill(os.getpid(), 9)",
            "shadow: ended with code -9: no reason given",
        ),
        (
            "try: 1 / 0\nexcept ZeroDivisionError: logging.warning('x', exc_info=True)\ntime.sleep(600)",
            "shadow: stopped after 5 s, the rest is left out",
        ),
    ],
    ids=["survived", "raised", "killed", "hangs"],
)
def test_tracebacks_of_the_shadow_process_are_in_the_log_and_not_in_the_report(
    deed: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = chain(tmp_path)
    promotion.register(settings, checkpoints.save(tmp_path / "net.safetensors"), name="net")
    code = f"import logging, os, sys, time\nsys.stdin.read()\nprint('new ok', flush=True)\n{deed}"
    monkeypatch.setattr(shadow, "COMMAND", (sys.executable, "-c", code))
    lines = shadow.run(settings, datetime(2010, 8, 26, tzinfo=UTC), seconds=5)
    assert (lines[0], lines[-1]) == ("new ok", last)
    (record,) = caplog.records
    assert record.name == "nowcast.operations.shadow"
    assert "Traceback (most recent call last)" in record.getMessage()
