"""Every shipped recipe and benchmark on somebody's own archive; what is missing, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nowcast import config
from nowcast.config import Benchmark, Recipe, Span
from nowcast.core.errors import ConfigError
from nowcast.data.archive import check_there, on_archive, shipped
from nowcast.data.sources import Stored
from tests import synthetic
from tests.flows.test_flows import RECIPE

FOLDER = config.shipped_folder()
RECIPES = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.glob("training/*.yaml"))
BENCHMARKS = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.glob("benchmarks/*.yaml"))
KINDS = [(Recipe, file) for file in RECIPES] + [(Benchmark, file) for file in BENCHMARKS]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(synthetic.make_store(tmp_path_factory.mktemp("domain") / "frames", range(260)))


@pytest.mark.parametrize(("kind", "file"), KINDS, ids=[file for _, file in KINDS])
def test_shipped_file_has_windows_in_every_part_of_an_archive(
    archive: str, kind: type[Recipe] | type[Benchmark], file: str
) -> None:
    settings = on_archive(config.load(kind, file), archive)
    kind.model_validate(settings.model_dump(exclude_unset=True))
    parts = [settings.train, settings.valid, *([settings.test] if isinstance(settings, Benchmark) else [])]
    assert all(span.store == archive for part in parts for span in part)
    for (span,) in parts:
        assert Stored(span, settings.windows).starts.size
    assert settings.train[0].end == settings.valid[0].start
    crop = settings.windows.crop
    assert crop is None or crop <= min(Stored(settings.train[0], settings.windows).size)


@pytest.mark.parametrize(("kind", "file"), KINDS, ids=[file for _, file in KINDS])
def test_shipped_file_without_its_data_names_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Recipe] | type[Benchmark], file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"not found from .*(nowcast ingest|nowcast demo|nowcast train|curl)"):
        check_there(config.load(kind, file), file)


def test_archive_that_is_not_there_or_too_short_is_refused(tmp_path: Path) -> None:
    recipe = config.load(Recipe, "training/gs2pm-debug.yaml")
    with pytest.raises(ConfigError, match="there are no frames yet; nowcast ingest READER FOLDER"):
        on_archive(recipe, str(tmp_path / "frames"))
    short = str(synthetic.make_store(tmp_path / "short", range(30)))
    with pytest.raises(ConfigError, match="30 frames, of which the newest fifth does not hold one window of 10"):
        on_archive(recipe, short)


@pytest.mark.parametrize(
    ("splits", "sequences"),
    [
        ({"train": 5, "valid": 2, "test": 1}, {"train": 5, "valid": 2, "test": 1}),
        ({"train": 5, "test": 2}, {"train": 4, "valid": 1, "test": 2}),
        ({"": 5}, {"train": 3, "valid": 1, "test": 1}),
    ],
    ids=str,
)
def test_clips_are_divided_by_their_splits_or_whole(tmp_path: Path, splits: dict, sequences: dict) -> None:
    store = synthetic.make_clips(tmp_path / "clips", splits)
    small = {"quantity": "intensity", "in_steps": 2, "out_steps": 2}
    asked = config.load(Benchmark, "benchmarks/moving-mnist.yaml", [f"windows={small}"])
    settings = on_archive(asked, store)
    found = {}
    for name in sequences:
        (span,) = getattr(settings, name)
        found[name] = set(Stored(span, settings.windows).beginnings()[0].tolist())
    assert {name: len(labels) for name, labels in found.items()} == sequences
    assert len(set.union(*found.values())) == sum(sequences.values()), "no clip is in two parts"


def test_one_domain_of_a_benchmark_is_enough(tmp_path: Path) -> None:
    synthetic.make_clips(tmp_path / "kth", {"train": 2, "test": 1})
    spans = [
        f"{name}=[{{store: '{tmp_path}/{{domain}}', split: {split}}}]"
        for name, split in (("train", "train"), ("valid", "train"), ("test", "test"))
    ]
    file = "benchmarks/gs2pm-tables.yaml"
    check_there(config.load(Benchmark, file, spans), file)
    with pytest.raises(ConfigError, match=f"{tmp_path}/bair: not found"):
        check_there(config.load(Benchmark, file, [*spans, "domains=[{name: bair}]"]), file)


def test_checkpoint_to_start_from_is_named(archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = on_archive(config.load(Recipe, "training/gs2pm-vp-debug.yaml"), archive)
    with pytest.raises(ConfigError, match=r"not found .*; nowcast train training/gs2pm-debug\.yaml\.$"):
        check_there(recipe, "training/gs2pm-vp-debug.yaml")


def test_what_is_there_is_not_refused(archive: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    assert not shipped(file)
    assert shipped("training/gs2pm-debug.yaml")
    span = Span(store=archive)
    check_there(config.load(Recipe, file).model_copy(update={"train": (span,), "valid": (span,)}), file)
