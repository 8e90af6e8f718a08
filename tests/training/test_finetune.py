"""From a checkpoint and a store to the recipe that fits the one to the other, and to the page about the result."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from nowcast.benchmark.evaluate import _spread
from nowcast.benchmark.report import scorecard
from nowcast.core.errors import ConfigError
from nowcast.data.sources import check_apart, source
from nowcast.training import run as training
from nowcast.training.finetune import budget, domain_name, domain_recipe
from tests import synthetic

FAST = ("trainer.workers=0", "trainer.accelerator=cpu", "trainer.valid_batches=2")


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 frames, five minutes apart from 2010-08-26T00:00Z."""
    folder = tmp_path_factory.mktemp("domain")
    synthetic.make_store(folder / "frames", range(30))
    return str(folder / "frames")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return synthetic.tiny(tmp_path / "base.safetensors")


@pytest.mark.parametrize(("method", "tuning"), [("vp", "prompt"), ("fp", "full")])
def test_what_is_not_said_is_as_the_base_was_trained(domain: str, base: Path, method: str, tuning: str) -> None:
    recipe = domain_recipe(base, domain, method=method)
    assert (recipe.tuning, recipe.model, recipe.start_from) == (tuning, "gs2pm:debug", base)
    windows = recipe.windows
    assert (windows.in_steps, windows.crop, windows.crops_per_window, windows.rain_weight) == (2, 32, 2, 3)
    assert windows.scaling == synthetic.TINY.scaling
    assert recipe.train[0].end == recipe.valid[0].start == datetime(2010, 8, 26, 2, tzinfo=UTC)  # of frame 24 of 30


def test_what_is_said_wins(domain: str, base: Path) -> None:
    split = datetime(2010, 8, 26, 1, tzinfo=UTC)
    recipe = domain_recipe(
        base, domain, valid_from=split, steps=250, changes={"name": "mine"}, overrides=("windows.crop=24",)
    )
    assert (recipe.name, recipe.train[0].end, recipe.windows.crop) == ("mine", split, 24)
    assert (recipe.trainer.epochs, recipe.trainer.batches_per_epoch) == (3, 100)


@pytest.mark.parametrize(
    ("minutes", "steps", "settings"),
    [
        (None, None, {}),
        (5, None, {"minutes": 5, "epochs": 10**6}),
        (None, 30, {"epochs": 1, "batches_per_epoch": 30, "minutes": None}),
    ],
)
def test_budgets(minutes: float | None, steps: int | None, settings: dict) -> None:
    assert budget(minutes, steps) == settings


@pytest.mark.parametrize(
    ("splits", "train", "valid"),
    [
        ({"train": 3, "valid": 2, "test": 2}, {"split": "train"}, {"split": "valid"}),
        ({"train": 5, "test": 2}, {"split": "train", "share": (0, 0.8)}, {"split": "train", "share": (0.8, 1)}),
        ({"train": 2, "test": 1}, {"split": "train", "share": (0, 0.5)}, {"split": "train", "share": (0.5, 1)}),
        ({"": 5}, {"share": (0, 0.8)}, {"share": (0.8, 1)}),
    ],
    ids=str,
)
def test_clips_are_divided_by_their_splits_or_whole(
    base: Path, tmp_path: Path, splits: dict[str, int], train: dict, valid: dict
) -> None:
    store = synthetic.make_clips(tmp_path / "moving", splits)
    recipe = domain_recipe(base, store)
    assert recipe.train[0].model_dump(exclude_unset=True) == {"store": store} | train
    assert recipe.valid[0].model_dump(exclude_unset=True) == {"store": store} | valid
    parts = [[source(span, recipe.windows) for span in spans] for spans in (recipe.train, recipe.valid)]
    check_apart(*parts)
    sequences = [set(part[0].beginnings()[0]) for part in parts]
    known = {name: {f"{name}/{number}" for number in range(count)} for name, count in splits.items()}
    assert sequences[0] | sequences[1] == set.union(*(known[name] for name in known if name != "test"))
    assert not sequences[0] & sequences[1]


def test_clips_that_cannot_be_divided_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 sequences cannot be divided into train, valid; add clips"):
        domain_recipe(base, synthetic.make_clips(tmp_path / "one", {"train": 1, "test": 3}))
    with pytest.raises(ConfigError, match="there is no split 'train' to train on; its splits: test"):
        domain_recipe(base, synthetic.make_clips(tmp_path / "none", {"test": 3}))


@pytest.mark.parametrize(
    ("store", "name"),
    [
        ("var/fmi/frames", "fmi"),
        ("var/gs2pm/bair", "bair"),
        ("var/gs2pm/kth/", "kth"),
        ("s3://bucket/knmi/frames", "knmi"),
        ("frames", "frames"),
        ("./my archive", "my-archive"),
    ],
)
def test_a_domain_is_named_after_its_store(store: str, name: str) -> None:
    assert domain_name(store) == name


def test_wrong_methods_are_refused(domain: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gs2pm cannot be tuned by 'lora'; known: vp, fp"):
        domain_recipe(base, domain, method="lora")
    other = synthetic.tiny(tmp_path / "other.safetensors", "convgru:debug")
    with pytest.raises(ConfigError, match="convgru cannot be tuned by 'vp'; known: fp"):
        domain_recipe(other, domain)
    assert domain_recipe(other, domain, method="fp").model == "convgru:debug"


@pytest.mark.parametrize(
    ("most", "taken"), [(None, [[0, 1, 2], [0, 1, 2, 3, 4]]), (9, [[0, 1, 2], [0, 1, 2, 3, 4]]), (4, [[0, 2], [1, 3]])]
)
def test_windows_are_spread_evenly(most: int | None, taken: list) -> None:
    assert [part.tolist() for part in _spread([3, 5], most)] == taken


def test_the_page_compares_with_the_base_and_with_references(domain: str, base: Path, tmp_path: Path) -> None:
    recipe = domain_recipe(base, domain, steps=2, changes={"runs": str(tmp_path)}, overrides=FAST)
    path = training.train(recipe)
    page = scorecard(recipe, path, windows=3)
    assert page == path.with_name("scorecard.md")
    text = page.read_text()
    for name in (recipe.name, "before tuning", "*persistence*", "*extrapolation*"):
        assert f"| {name} |" in text
    assert "| lead | MSE persistence | MSE extrapolation |" in text
    assert "\n| 10 min | " in text
    assert "3 of the validation" in text
    for picture in ("skill.png", "sample.png"):
        assert f"]({picture})" in text
        assert (tmp_path / recipe.name / picture).read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(float(text.split("\n| 10 min | ")[1].split(" |")[0]))
