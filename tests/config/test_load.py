"""Settings are valid, or refused in one sentence that names file, key and choices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nowcast import config
from nowcast.core.errors import ConfigError
from nowcast.models import build
from nowcast.operations import cycle
from nowcast.readers.weather import Simulator

SHIPPED = sorted(config.shipped_folder().rglob("*.yaml"))


def kind_of(path: Path) -> type[config.Frozen]:
    kinds = {
        "operations": config.Operations,
        "training": config.Recipe,
        "benchmarks": config.Benchmark,
        "datasets": Simulator,
    }
    return kinds[path.parent.name]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path: Path) -> None:
    settings = config.load(kind_of(path), path)
    with pytest.raises(Exception, match="frozen"):
        settings.title = "other"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("leds=3", "leds: unknown key; known here: title, name, page_port, feed"),
        ("leads=0", "leads: Input should be greater than or equal to 1"),
        ("age.amber=40", "age: red (25) must come after amber (40)"),
        ("products=[{name: a, mdel: b}]", "products.0.mdel: unknown key; known here: name, model"),
        ("products=[{name: a, model: x}, {name: a, model: y}]", "two products share a name: a, a"),
        ("fallback=[foo]", "unknown fallback model 'foo'; known: persistence, extrapolation"),
        ("quantity=snow", "unknown quantity 'snow'; known: rainfall_rate, reflectivity"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(config.Operations, "operations/knmi.yaml", [override])
    assert sentence in str(caught.value)
    assert "knmi.yaml" in str(caught.value)


def test_an_unknown_reader_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"feed\.reader: Unknown reader 'foo'; known: hko7, sevir"):
        cycle.load("operations/knmi.yaml", ["feed.reader=foo"])


def test_overrides_reach_nested_keys_with_yaml_values() -> None:
    settings = config.load(config.Operations, "operations/knmi.yaml", ["age.red=50", "map_leads=[1, 2]"])
    assert (settings.age.red, settings.map_leads) == (50, (1, 2))


@pytest.mark.parametrize("override", ["leads", "title.sub=1"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        config.load(config.Operations, "operations/knmi.yaml", [override])


def test_a_missing_file_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file; shipped: .*operations/knmi\.yaml"):
        config.load(config.Operations, "nowhere.yaml")


@given(st.text(max_size=60))
def test_any_text_is_settings_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("yaml") / "any.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        config.load(config.Operations, path)


@pytest.mark.parametrize("name", ["convlstm", "convgru"])
def test_the_first_encoder_forecasters_are_trained_as_published(name: str) -> None:
    """github.com/jhhuang96/ConvLSTM-PyTorch, ``main.py``."""
    recipe = config.load(config.Recipe, f"training/{name}-moving-mnist.yaml")
    trainer = recipe.trainer
    assert recipe.model == f"{name}:published"
    assert [span.objects for span in (*recipe.train, *recipe.valid)] == [(3,), (3,)]  # type: ignore[union-attr]
    assert (trainer.batch_size, trainer.learning_rate, trainer.optimiser, trainer.clip_value) == (4, 1e-4, "adam", 10)
    assert (trainer.schedule, trainer.plateau_factor, trainer.plateau_patience) == ("plateau", 0.5, 4)
    assert (trainer.epochs, trainer.patience) == (501, 20)


def test_the_flags_of_predrnn_v2_on_kth_reach_the_network() -> None:
    """github.com/thuml/predrnn-pytorch, ``kth_script/predrnn_v2_kth_train.sh``: iterations 4,999, 5,000 and 50,000."""
    recipe = config.load(config.Recipe, "training/predrnn-v2-kth.yaml")
    trainer = recipe.trainer
    assert trainer.epochs * (trainer.batches_per_epoch or 0) == 2 * 80_000
    with torch.device("meta"):
        network = build(recipe.model, in_steps=10, out_steps=10, **recipe.options)
    shares = [network.sampling.shares(step / 80_000) for step in (4_999, 5_000, 50_000)]  # type: ignore[operator]
    assert shares == [(0.5, 0.5), (0.5, 0.5), (1, 0)]
