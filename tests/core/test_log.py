"""The log: lines for people, or JSON that programs can read, on what is standard error at the time."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from nowcast.core.log import LogFormat, Stderr, configure

log = logging.getLogger("nowcast.tests")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The set-up of the process as it was."""
    yield
    logging.captureWarnings(False)
    logging.getLogger("nowcast").setLevel(logging.NOTSET)
    for handler in [each for each in logging.getLogger().handlers if isinstance(each, Stderr)]:
        logging.getLogger().removeHandler(handler)


def fail() -> None:
    try:
        raise KeyError("rain")
    except KeyError:
        log.warning("the frame of %s is left out", "04:05", exc_info=True)


def test_lines_for_programs_are_json_with_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure(form=LogFormat.JSON)
    fail()
    log.error("two\nlines")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert set(first) == {"time", "level", "logger", "message", "traceback"}
    assert (first["level"], first["logger"]) == ("WARNING", "nowcast.tests")
    assert first["message"] == "the frame of 04:05 is left out"
    assert first["traceback"].splitlines()[-1] == "KeyError: 'rain'"
    assert 'raise KeyError("rain")' in first["traceback"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first["time"])) < timedelta(minutes=1)
    assert (second["message"], "traceback" in second) == ("two\nlines", False)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    fail()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "WARNING nowcast.tests: the frame of 04:05 is left out"
    assert lines[-1] == "KeyError: 'rain'"


@pytest.mark.parametrize(
    ("level", "shown"),
    [(logging.WARNING, ["w"]), (logging.INFO, ["i", "w"]), (logging.DEBUG, ["d", "i", "w"])],
)
def test_the_level_is_of_our_lines_alone(level: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure(level)
    for logger in (log, logging.getLogger("somebody.else")):
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
    lines = [line.split(": ") for line in capsys.readouterr().err.splitlines()]
    assert [message for who, message in lines if who.endswith("nowcast.tests")] == shown
    assert [message for who, message in lines if who.endswith("somebody.else")] == ["w"]


def test_set_up_again_a_line_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    configure(form=LogFormat.JSON)
    log.warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_warnings_of_libraries_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(form=LogFormat.JSON)
        warnings.warn("old keyword", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    line = json.loads(capsys.readouterr().err)
    assert line["logger"] == "py.warnings"
    assert "old keyword" in line["message"]
