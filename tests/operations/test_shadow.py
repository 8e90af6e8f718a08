"""Challengers forecast after the page is out, and whatever they do the cycle ends well and in time."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nowcast.config import Operations
from nowcast.operations import cycle, promotion, shadow
from nowcast.registry.registry import JOURNAL
from nowcast.store import Store, open_store
from tests import checkpoints, synthetic
from tests.operations.test_cycle import land
from tests.operations.test_promotion import chain

TIME = datetime(2010, 8, 26, 0, 15, tzinfo=UTC)
NEVER = ("false",)
"""In place of the shadow process, where there must be none."""


def outcome(*lines: str) -> tuple[str, ...]:
    """A shadow process that does this in place of forecasting."""
    return (sys.executable, "-c", "\n".join(("import os, sys, time, json", "order = json.load(sys.stdin)", *lines)))


@pytest.fixture
def settings(tmp_path: Path) -> Operations:
    """A chain with frames, a champion and two challengers."""
    settings = chain(tmp_path)
    synthetic.make_store(tmp_path / "frames", range(4))
    for seed, name in enumerate(("old", "new", "newer")):
        promotion.register(settings, checkpoints.save(tmp_path / f"{name}.safetensors", seed=seed), name=name)
    promotion.promote(settings, "old")
    return settings


def test_challengers_forecast_and_are_scored_apart_from_products(settings: Operations, tmp_path: Path) -> None:
    assert sorted(shadow.work(settings, TIME)) == ["new 2010-08-26T00:15Z ok", "newer 2010-08-26T00:15Z ok"]
    assert list(shadow.work(settings, TIME)) == []
    assert not Store(settings.forecasts).exists()
    synthetic.make_store(tmp_path / "frames", [4])
    list(shadow.work(settings, TIME))
    _, forecasts, scores = (store.read() for store in promotion.shadow_stores(settings))
    assert set(forecasts["checkpoint"].values) == set(promotion.open_registry(settings).standing.challengers)
    assert (scores["n"].isel(lead_time=0) > 0).all()


def test_one_that_cannot_forecast_is_noted_and_the_others_go_on(settings: Operations) -> None:
    registry = promotion.open_registry(settings)
    registry.file(registry.find("new")).write_bytes(b"torn")
    lines = sorted(shadow.work(settings, TIME))
    assert lines[0].startswith(f"new 2010-08-26T00:15Z withheld {registry.find('new')}.safetensors: is no checkpoint")
    assert lines[1] == "newer 2010-08-26T00:15Z ok"


def test_who_forecasts_in_the_shadow(settings: Operations) -> None:
    def names(settings: Operations) -> list[str]:
        return [product.name for product in shadow.candidates(settings)]

    assert names(settings) == ["new", "newer"]
    promotion.open_registry(settings).retire(promotion.open_registry(settings).find("new"))
    assert names(settings) == ["newer"]
    plain = {"products": ({"name": "p", "model": "persistence"},)}
    assert names(Operations.model_validate(settings.model_dump() | plain)) == ["old", "newer"]
    assert names(Operations.model_validate(settings.model_dump() | plain | {"registry": None})) == []


def test_each_comes_first_at_times(settings: Operations) -> None:
    products = shadow.candidates(settings)
    first = {shadow._in_turn(products, TIME.replace(minute=minute))[0].name for minute in range(0, 60, 5)}
    assert first == {"new", "newer"}


def test_one_that_hangs_is_stopped_and_what_was_made_before_counts(
    settings: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "COMMAND", outcome("print('new ok', flush=True)", "time.sleep(60)", "print('late')"))
    lines = shadow.run(settings, TIME, seconds=3)
    assert lines == ["new ok", "shadow: stopped after 3 s, the rest is left out"]


@pytest.mark.parametrize(
    ("deed", "line"),
    [
        ("raise MemoryError('no more')", "shadow: ended with code 1: MemoryError: no more"),
        ("os.kill(os.getpid(), 11)", "shadow: ended with code -11: no reason given"),
    ],
)
def test_one_that_takes_its_process_down_is_noted(
    settings: Operations, monkeypatch: pytest.MonkeyPatch, deed: str, line: str
) -> None:
    monkeypatch.setattr(shadow, "COMMAND", outcome("print('new ok', flush=True)", deed))
    assert shadow.run(settings, TIME, seconds=60) == ["new ok", line]


def test_trouble_with_the_registry_is_noted(settings: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "COMMAND", NEVER)
    (promotion.open_registry(settings).folder / JOURNAL).write_text("{}\n")
    (line,) = shadow.run(settings, TIME, seconds=60)
    assert "holds a line that is no event" in line


def test_no_time_left_means_no_shadow(settings: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "COMMAND", NEVER)
    assert shadow.run(settings, TIME, seconds=-1) == ["shadow: left out, the cycle took all the time there was"]


def test_the_page_is_out_before_the_shadow_begins_and_does_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = chain(tmp_path, shadow={"every_minutes": 10})
    settings.feed.source.mkdir()
    look = "json.load(open(order['settings']['site'] + '/latest.json'))['runs'][0]"
    monkeypatch.setattr(shadow, "COMMAND", outcome(f"print({look}['reference_time'], order['time'], order['seconds'])"))
    land(settings, 0)
    assert cycle.cycle(settings).shadowed == []  # nobody is registered
    promotion.register(settings, checkpoints.save(tmp_path / "new.safetensors"))
    land(settings, 1)
    assert cycle.cycle(settings).shadowed == ["2010-08-26T04:10:00Z 2010-08-26T04:10:00+00:00 60"]
    land(settings, 2)
    assert cycle.cycle(settings).shadowed == []  # 04:15 is no multiple of ten minutes
    assert cycle.cycle(settings).shadowed == []  # nothing new


def test_automatic_promotion_looks_once_a_day(settings: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = settings.model_copy(update={"promotion": settings.promotion.model_copy(update={"automatic": True})})
    looks: list[str] = []

    class Better:
        outcome = "better"

    monkeypatch.setattr(promotion, "compare", lambda _, digest: looks.append(digest) or Better())
    monkeypatch.setattr(promotion, "promote", lambda _, digest: "its scores")
    assert list(shadow.work(automatic, TIME))[-1] == "promoted: its scores"
    list(shadow.work(automatic, TIME))
    assert len(looks) == 1
    list(shadow.work(settings, TIME))
    assert len(looks) == 1


@pytest.mark.slow
def test_the_whole_life_of_a_model_on_real_radar(tmp_path: Path) -> None:
    """Registered, shadowed by the real process, compared, promoted, in use at the next cycle, rolled back."""
    settings = chain(
        tmp_path,
        products=[{"name": "page", "model": "champion"}, {"name": "p", "model": "persistence"}],
        promotion={"least_runs": 3, "least_blocks": 2, "block_minutes": 5},
        shadow={"budget_seconds": 600},
        every_minutes=60,
    )
    settings.feed.source.mkdir()
    registry = promotion.open_registry(settings)
    promotion.register(settings, checkpoints.save(tmp_path / "old.safetensors"), name="old")
    promotion.promote(settings, "old")
    promotion.register(settings, "convlstm-small.safetensors", name="small")
    land(settings, 0, 1, 2)
    for index in range(3, 7):
        land(settings, index)
        report = cycle.cycle(settings)
        time = f"2010-08-26T04:{5 * index + 5:02d}Z"
        assert sorted(report.issued) == [f"p {time} ok", f"page {time} ok"]
        assert report.shadowed == [f"small {time} ok"]
    comparison = promotion.compare(settings, "small")
    assert (comparison.runs, comparison.left_out) == (3, 0)
    assert comparison.outcome == "better"
    promotion.promote(settings, "small")
    for index, makes in ((7, "small"), (8, "old")):
        land(settings, index)
        cycle.cycle(settings)
        runs = open_store(settings.forecasts)
        own = runs["model"].values == "page"
        assert runs["checkpoint"].values[own][-1] == registry.find(makes)
        if makes == "small":
            registry.rollback()
    page = json.loads((settings.site / "latest.json").read_text())
    assert page["products"] == ["page", "p"]
