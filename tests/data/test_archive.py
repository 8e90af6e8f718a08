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
