"""Registered checkpoints on the live feed of a small chain: who fits, who is compared with whom, who is promoted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from nowcast import cli
from nowcast.config import Operations, Product
from nowcast.core.errors import BadInput, ConfigError, ForecastError, RegistryError
from nowcast.forecasting import fallback as fallbacks
from nowcast.forecasting import run as forecasting
from nowcast.operations import promotion
from nowcast.operations.doctor import examine
from nowcast.operations.stores import Stores
from nowcast.registry import checkpoint
from nowcast.store import ScoreStore, open_store
from nowcast.verification.run import verify
from tests import checkpoints, synthetic
from tests.cli.test_cli import run

FRAMES = 7
LEADS = 2


def chain(tmp_path: Path, **more: object) -> Operations:
    """A chain whose page is made by the champion."""
    return Operations.model_validate(
        {
            "title": "Test",
            "feed": {"reader": "knmi", "source": tmp_path / "feed"},
            "store": str(tmp_path / "frames"),
            "forecasts": str(tmp_path / "forecasts"),
            "scores": str(tmp_path / "scores"),
            "site": tmp_path / "site",
            "products": [{"name": "best", "model": "champion"}],
            "leads": LEADS,
            "map_leads": (),
            "replay": True,
            "registry": tmp_path / "models",
            "promotion": {"least_runs": 4, "least_blocks": 2, "block_minutes": 10},
            **more,
        }
    )


def begin(folder: Path) -> Operations:
    settings = chain(folder)
    synthetic.make_store(folder / "frames", range(FRAMES))
    for seed, name in enumerate(("old", "new")):
        promotion.register(settings, checkpoints.save(folder / f"{name}.safetensors", seed=seed), name=name)
    promotion.promote(settings, "old")
    return settings


@pytest.fixture
def live(tmp_path: Path) -> Operations:
    """Two registered networks, ``old`` the champion, and some frames."""
    return begin(tmp_path)


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same once both have forecast from all frames."""
    folder = tmp_path_factory.mktemp("hour")
    settings = begin(folder)
    registry = promotion.open_registry(settings)
    make(settings, settings.makers, Stores.of(settings))
    make(
        settings,
        [Product(name="new", model=str(registry.file(registry.find("new"))))],
        promotion.shadow_stores(settings),
    )
    return folder


@pytest.fixture
def scored(hour: Path, tmp_path: Path) -> Operations:
    """A copy of that hour."""
    shutil.copytree(hour, tmp_path, dirs_exist_ok=True)
    return chain(tmp_path)


def make(
    settings: Operations,
    products: list[Product] | tuple[Product, ...],
    stores: Stores,
    indices: range = range(1, FRAMES - 1),
    fallback: tuple[str, ...] = (),
) -> None:
    """Forecasts from every frame, and their scores."""
    for index in indices:
        fallbacks.issue(
            stores.frames,
            stores.forecasts,
            products,
            fallback=fallback,
            leads=LEADS,
            time=synthetic.START + index * synthetic.STEP,
        )
    verify(*stores)


def handicap(scores: ScoreStore, *, hits: int) -> None:
    """Moves pixels from hits to misses in the scores of a store: a known difference."""
    sums = scores.read().load()
    sums["hits"].values += hits
    sums["misses"].values -= hits
    scores.replace(sums, at=slice(0, sums.sizes["run"]), message="handicap")


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({"cadence_seconds": 600}, "was trained on a step of 600 s, the feed has 300 s"),
        ({"quantity": "intensity"}, "was trained on intensity, the feed has rainfall_rate"),
    ],
)
def test_a_network_made_for_other_frames_is_refused_in_one_sentence(tmp_path: Path, card: dict, reason: str) -> None:
    settings = chain(tmp_path)
    path = synthetic.make_store(tmp_path / "frames", range(4))
    network = checkpoints.save(tmp_path / "net.safetensors", **card)
    with pytest.raises(RegistryError, match=rf"net\.safetensors: {reason}"):
        promotion.register(settings, network)
    with pytest.raises(ForecastError, match=f"^{reason}$"):
        forecasting.forecast(open_store(path), network, leads=2)


def test_a_chain_without_a_registry_says_what_to_set(tmp_path: Path) -> None:
    settings = chain(tmp_path, registry=None, products=[{"name": "p", "model": "persistence"}])
    with pytest.raises(ConfigError, match="names no registry; set registry"):
        promotion.compare(settings, "new")
    with pytest.raises(ValueError, match="a product is made by the champion, and registry names no folder"):
        chain(tmp_path, registry=None)


def test_the_first_champion_needs_no_scores_and_the_second_does(live: Operations) -> None:
    assert promotion.open_registry(live).events[-1].why == "the first champion"
    with pytest.raises(
        RegistryError, match=r"new against old: cannot tell yet, needs about 4 more runs; .*--force --reason"
    ):
        promotion.promote(live, "new")
    with pytest.raises(RegistryError, match="needs a reason"):
        promotion.promote(live, "new", force=True)
    assert promotion.promote(live, "new", force=True, why="old has a leak") == "old has a leak"
    event = promotion.open_registry(live).events[-1]
    assert (event.name, event.why, event.evidence["says"]) == ("new", "old has a leak", "cannot tell yet")
    with pytest.raises(RegistryError, match="new is champion; only challengers"):
        promotion.promote(live, "new")


def test_a_promotion_takes_effect_at_the_next_forecast_and_a_rollback_too(live: Operations) -> None:
    registry, made = promotion.open_registry(live), []
    for index, command in enumerate((None, "promote", "rollback"), 3):
        if command == "promote":
            promotion.promote(live, "new", force=True, why="test")
        elif command == "rollback":
            registry.rollback()
        make(live, live.makers, Stores.of(live), range(index, index + 1))
        made.append(open_store(live.forecasts)["checkpoint"].values[-1])
    assert made == [registry.find("old"), registry.find("new"), registry.find("old")]


def test_any_run_is_made_again_bit_for_bit_from_the_registry(live: Operations) -> None:
    cube, time = open_store(live.store), synthetic.START + 5 * synthetic.STEP
    first = forecasting.forecast(cube, f"registry:{live.registry}", time=time, leads=LEADS)
    promotion.promote(live, "new", force=True, why="test")
    again = forecasting.forecast(
        cube, promotion.open_registry(live).file(first.attrs["checkpoint"]), time=time, leads=LEADS
    )
    assert again["rainfall_rate"].identical(first["rainfall_rate"])


def test_without_a_champion_the_fallback_says_so(tmp_path: Path) -> None:
    settings = chain(tmp_path)
    synthetic.make_store(tmp_path / "frames", range(4))
    make(settings, settings.makers, Stores.of(settings), range(3, 4), fallback=("persistence",))
    run = open_store(settings.forecasts).isel(run=0)
    assert (run["state"], run["producer"]) == ("fallback", "persistence")
    assert str(run["reason"].values) == f"champion: no checkpoint is promoted in {settings.registry}"


def test_challenger_and_champion_meet_on_the_same_runs_and_pixels(scored: Operations) -> None:
    old, new = (stores.scores.read().load() for stores in (Stores.of(scored), promotion.shadow_stores(scored)))
    found = promotion.compare(scored, "new")
    assert (found.challenger, found.against) == ("new", "old")
    assert (found.runs, found.left_out) == (FRAMES - 2, 0)
    assert found.pixels == int(old["n"].sum()) == int(new["n"].sum())

    def csi(sums: object) -> float:
        hits, misses, alarms = (int(sums[name][..., 0].sum()) for name in ("hits", "misses", "false_alarms"))  # type: ignore[index]
        return hits / (hits + misses + alarms)

    assert found.value == pytest.approx(csi(new) - csi(old))
    other = promotion.compare(scored, "old", "new")
    assert other.value == pytest.approx(-found.value)


def test_a_better_challenger_is_promoted_and_its_evidence_is_kept(scored: Operations) -> None:
    handicap(promotion.shadow_stores(scored).scores, hits=300)
    assert promotion.compare(scored, "new").outcome == "better"
    assert promotion.promote(scored, "new").startswith("new against old: better; CSI≥0.1 mm/h of 5 to 10 min")
    event = promotion.open_registry(scored).events[-1]
    assert event.evidence["runs"] == FRAMES - 2
    assert 0 < event.evidence["low"] <= event.evidence["value"] <= event.evidence["high"]  # type: ignore[operator]


def test_a_worse_challenger_is_not(scored: Operations) -> None:
    handicap(ScoreStore(scored.scores), hits=300)
    with pytest.raises(RegistryError, match="new against old: worse"):
        promotion.promote(scored, "new")


def test_frames_that_were_not_scored_alike_are_left_out(scored: Operations) -> None:
    scores = promotion.shadow_stores(scored).scores
    sums = scores.read().load()
    sums["n"].values[0, 0] -= 1
    sums["observed_digest"].values[1, 1] = "before it was corrected"
    scores.replace(sums, at=slice(0, sums.sizes["run"]), message="other pixels")
    found = promotion.compare(scored, "new")
    assert found.left_out == 2
    assert found.pixels == int(sums["n"].sum()) - sums["n"].values[0, 0] - sums["n"].values[1, 1]


def test_runs_of_a_fallback_count_for_nobody(live: Operations, tmp_path: Path) -> None:
    registry = promotion.open_registry(live)
    registry.file(registry.champion).rename(tmp_path / "away")
    make(live, live.makers, Stores.of(live), range(3, 5), fallback=("persistence",))
    make(
        live,
        [Product(name="new", model=str(registry.file(registry.find("new"))))],
        promotion.shadow_stores(live),
        range(3, 5),
    )
    assert promotion.compare(live, "new").runs == 0


def test_a_file_that_is_nowhere_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such checkpoint"):
        promotion.register(chain(tmp_path), tmp_path / "gone.safetensors")


def test_digests_name_files(live: Operations) -> None:
    registry = promotion.open_registry(live)
    for digest in registry.standing.names:
        assert checkpoint.file_digest(registry.file(digest)) == digest
    assert np.unique(list(registry.standing.names)).size == 2


def test_a_session_at_the_command_line(scored: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "operations.yaml"
    file.write_text(yaml.safe_dump(scored.model_dump(mode="json")))
    monkeypatch.setenv("NOWCAST_DOMAIN", str(file))
    third = checkpoints.save(tmp_path / "third.safetensors", seed=3)
    assert "registered third" in run("models", "register", third, "--name", "third", "--reason", "on trial")
    rows = json.loads(run("models", "list", "--json"))
    assert [(row["name"], row["state"]) for row in rows] == [
        ("third", "challenger"),
        ("new", "challenger"),
        ("old", "champion"),
    ]
    assert "convgru:debug" in run("models", "list")
    (found,) = json.loads(run("models", "compare", "new", "--json"))
    assert (found["challenger"], found["against"], len(found["by_lead"])) == ("new", "old", LEADS)
    words = run("models", "compare")
    assert "third against old: cannot tell yet" in words
    assert "CSI≥0.1" in words
    refusal = CliRunner().invoke(cli.app, ["models", "promote", "third"])
    assert "needs about 4 more runs" in refusal.stderr
    assert "champion: third (a leak)" in run("models", "promote", "third", "--force", "--reason", "a leak")
    assert "champion: old" in run("models", "rollback", "--reason", "the leak is mended")
    run("models", "retire", "third")
    history = json.loads(run("models", "list", "--history", "--json"))
    assert [event["what"] for event in history[-4:]] == ["registered", "promoted", "rolled back", "retired"]
    assert "the leak is mended" in run("models", "list", "--history")
    states = {finding.what: finding for finding in examine(str(file))}
    assert states["champion"].ok
    assert states["champion"].found.startswith("old, ")
    assert "2010-08-26T00:25Z ok; " in states["challenger"].found
    promotion.open_registry(scored).file(promotion.open_registry(scored).champion).unlink()
    assert not {finding.what: finding for finding in examine(str(file))}["champion"].ok
