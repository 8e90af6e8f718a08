"""A benchmark: trained alike, scored on the same pixels, resumed; hand-worked scores and intervals."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from nowcast import config
from nowcast.benchmark import run as benchmarking
from nowcast.benchmark.evaluate import BenchmarkEvaluation
from nowcast.benchmark.leaderboard import FIGURE, NUMBERS, Row, markdown, ranked
from nowcast.config import Benchmark, Recipe
from nowcast.core import cube as cubes
from nowcast.core.errors import ConfigError
from nowcast.core.units import COLOURS
from nowcast.readers import pixels
from nowcast.registry import checkpoint
from nowcast.store import FrameStore
from nowcast.training import run as training
from nowcast.verification.bootstrap import estimates
from nowcast.verification.published import score_as
from tests import synthetic
from tests.sources_video import idx

SMALL = {"first_width": 4, "widths": [32, 32, 32], "kernel": 3, "strides": [2, 2, 2]}


def settings(tmp_path: Path, **changes: object) -> Benchmark:
    path = tmp_path / "frames"
    if not path.exists():
        synthetic.make_store(path, range(36))
    return Benchmark.model_validate(
        {
            "name": "small",
            "networks": [{"model": "convgru", "options": SMALL}],
            "runs": tmp_path / "runs",
            "train": [{"store": str(path), "end": "2010-08-26T01:00Z"}],
            "valid": [{"store": str(path), "start": "2010-08-26T01:00Z", "end": "2010-08-26T01:45Z"}],
            "test": [{"store": str(path), "start": "2010-08-26T01:45Z"}],
            "windows": {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "crop": 32},
            "test_stride": 2,
            "block_minutes": 10,
            "thresholds": [0.5, 5],
            "budget": {"steps": 4, "validate_every": 2},
            "trainer": {"batch_size": 2, "valid_batches": 1, "workers": 0, "accelerator": "cpu"},
            **changes,
        }
    )


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trainings, which run in this process."""
    names: list[str] = []

    def here(recipe: Recipe) -> None:
        names.append(recipe.name)
        training.train(recipe)

    monkeypatch.setattr(benchmarking, "_train", here)
    return names


def numbers(table: Path) -> dict[tuple[str, str, str, str], float]:
    rows = csv.DictReader((table.parent / NUMBERS).read_text().splitlines())
    return {
        (row["model"], row["score"], row["threshold"], row["lead_seconds"]): float(row["value"] or "nan")
        for row in rows
    }


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_numbers_and_figure_of_two_seeds_and_nothing_is_done_twice(tmp_path: Path, trainings: list) -> None:
    told: list[tuple] = []
    asked = settings(tmp_path, seeds=[3, 4])
    table = benchmarking.benchmark(asked, progress=lambda *news: told.append(news))
    assert trainings == ["convgru-3", "convgru-4"]
    assert told == [(0, 2, "convgru"), (2, 2, "done")]
    text = table.read_text()
    for words in (
        "| *persistence* |",
        "| convgru |",
        "CSI≥0.5",
        "GMACs",
        "CPU-h",
        "Protocol",
        "4 steps",
        "6 windows",
        "6 blocks, each the windows that begin in the same 10 minutes",
        "±",
    ):
        assert words in text
    found = numbers(table)
    assert found["convgru", "csi", "0.5", "300.0"] >= 0
    assert found["persistence", "mse", "", ""] > 0
    assert (table.parent / FIGURE).read_bytes().startswith(b"\x89PNG")
    benchmarking.benchmark(asked)
    assert trainings == ["convgru-3", "convgru-4"]
    assert numbers(table) == found


@pytest.mark.slow
def test_a_longer_budget_goes_on_and_other_data_need_another_name(tmp_path: Path, trainings: list) -> None:
    benchmarking.benchmark(settings(tmp_path))
    benchmarking.benchmark(settings(tmp_path, budget={"steps": 6, "validate_every": 2}))
    assert trainings == ["convgru-0", "convgru-0"]
    card = checkpoint.read_card(tmp_path / "runs/small/convgru-0/last.safetensors")
    assert card.training["steps"] == 6
    other = settings(tmp_path, windows={"quantity": "rainfall_rate", "in_steps": 3, "out_steps": 2, "crop": 32})
    with pytest.raises(ConfigError, match="windows changed since this benchmark began; use another name"):
        benchmarking.benchmark(other)


def test_who_fails_is_named_and_the_rest_goes_on(tmp_path: Path, trainings: list) -> None:
    bad = {"model": "convgru", "name": "odd", "options": {"wdth": 3}}
    good = {"model": "convgru", "options": SMALL}
    text = benchmarking.benchmark(settings(tmp_path, networks=[bad, good])).read_text()
    assert "| odd | failed, see below | – |" in text
    assert "- odd-0: OptionError: Unknown option wdth of convgru" in text
    assert "| convgru | 0." in text


@pytest.mark.slow
def test_a_network_trained_before_is_scored_as_it_is(tmp_path: Path, trainings: list) -> None:
    benchmarking.benchmark(settings(tmp_path))
    file = tmp_path / "runs/small/convgru-0/best.safetensors"
    asked = settings(tmp_path, name="again", networks=[{"checkpoint": str(file), "name": "before"}])
    table = benchmarking.benchmark(asked)
    assert trainings == ["convgru-0"]
    assert "- **Trained before**: before" in table.read_text()
    old, new = numbers(tmp_path / "runs/small/leaderboard.md"), numbers(table)
    assert new["before", "csi", "0.5", "300.0"] == old["convgru", "csi", "0.5", "300.0"]
    other = settings(
        tmp_path,
        name="other",
        networks=[{"checkpoint": str(file)}],
        windows={"quantity": "rainfall_rate", "in_steps": 1, "out_steps": 2, "crop": 32},
    )
    assert "takes 2 frames of rainfall_rate every 300 s; the test has 1" in benchmarking.benchmark(other).read_text()


def test_forecasts_that_are_not_finite_fail(tmp_path: Path, trainings: list, monkeypatch: pytest.MonkeyPatch) -> None:
    load = checkpoint.load

    def broken(path: Path, **options: str) -> checkpoint.Model:
        model = load(path, **options)
        for weight in model.network.parameters():
            weight.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(checkpoint, "load", broken)
    text = benchmarking.benchmark(settings(tmp_path)).read_text()
    assert "convgru-0: ForecastError: its forecasts are not finite" in text


@pytest.mark.parametrize("parts", [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_no_frame_is_in_two_parts(tmp_path: Path, parts: tuple[str, str]) -> None:
    asked = settings(tmp_path)
    same = asked.model_copy(update={parts[1]: getattr(asked, parts[0])})
    with pytest.raises(ConfigError, match=f"frames are in {parts[0]} and {parts[1]}, 2010-08-26T0"):
        benchmarking.benchmark(same)


def test_networks_are_scored_where_every_reference_has_a_forecast(tmp_path: Path) -> None:
    evaluation = BenchmarkEvaluation(settings(tmp_path))
    kept = [evaluation.sums(model, tmp_path / f"{model.name}.nc") for model in evaluation.references]
    assert (kept[0]["n"] == kept[1]["n"]).all()
    past, seen = next(evaluation.pairs())
    assert 0 < kept[0]["n"].values[0, 0] < np.isfinite(seen[0]).sum(), "some pixels come from outside of the frame"
    still = np.broadcast_to(past[-1], seen.shape)
    n, error = (kept[0][name].values[0] for name in ("n", "squared_error"))
    compared = evaluation._compared(0, past, seen)
    assert (n == compared.sum((1, 2, 3))).all()
    assert error == pytest.approx([((still - seen)[lead][compared[lead]] ** 2).sum() for lead in (0, 1)], rel=1e-2)


def test_frames_are_squeezed_as_networks_see_them(tmp_path: Path) -> None:
    windows = {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "resize": 32}
    evaluation = BenchmarkEvaluation(settings(tmp_path, windows=windows))
    past, seen = next(evaluation.pairs())
    assert past.shape == seen.shape == (2, 1, 32, 32) == (2, 1, *evaluation.frame)
    assert 10 < np.nanmax(seen) < 12, "mm/h"
    assert evaluation.sums(evaluation.references[0], tmp_path / "sums.nc")["n"].values[0, 0] < 32 * 32


def moving(tmp_path: Path) -> dict[str, object]:
    """Settings of a benchmark on clips of moving pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 28, 28)).astype(np.uint8)
    images = idx(tmp_path / "digits-idx3-ubyte.gz", pictures)
    windows = {"quantity": "intensity", "in_steps": 2, "out_steps": 2}
    parts = {
        name: [{"images": images, "clips": 6, "seed": seed, "images_from": 10 * seed, "images_to": 10 * seed + 10}]
        for seed, name in enumerate(("train", "valid", "test"))
    }
    return {"thresholds": None, "test_stride": None, "windows": windows, **parts}


def test_moving_pictures_have_no_thresholds_and_every_clip_is_a_block(tmp_path: Path, trainings: list) -> None:
    asked = settings(tmp_path, **moving(tmp_path))
    table = benchmarking.benchmark(asked)
    assert "CSI" not in table.read_text()
    assert "6 blocks" in table.read_text()
    assert "Scores as published" not in table.read_text()
    assert numbers(table)["persistence", "mse", "", ""] > 0
    with pytest.raises(ConfigError, match="valid and test make the same clips"):
        benchmarking.benchmark(asked.model_copy(update={"test": asked.valid}))


def test_references_do_not_decide_the_pixels_of_pictures(tmp_path: Path) -> None:
    evaluation = BenchmarkEvaluation(settings(tmp_path, **moving(tmp_path)))
    kept = {model.name: evaluation.sums(model, tmp_path / f"{model.name}.nc") for model in evaluation.references}
    assert (kept["persistence"]["n"] == 64 * 64).all()
    squared = [np.square(past[-1] - seen).sum((1, 2, 3)) for past, seen in evaluation.pairs()]
    assert kept["persistence"]["squared_error"].values == pytest.approx(np.asarray(squared), rel=1e-4)
    empty = kept["extrapolation"]["uncovered"].sum().item() / (6 * 2 * 64 * 64)
    assert 0 < empty < 0.5
    words = "0.0% of the pixels are not compared; extrapolation has no forecast for"
    assert evaluation.left_out(kept) == f"{words} {empty:.1%} of them, which count as black"


def test_what_is_left_out_of_radar_is_printed(tmp_path: Path, trainings: list) -> None:
    text = benchmarking.benchmark(settings(tmp_path)).read_text()
    n = sum(int(xr.load_dataset(tmp_path / "runs/small/persistence.nc")["n"].values.flat[i]) for i in range(12))
    absent = 1 - n / (12 * 48 * 64)
    assert "covered by persistence and extrapolation: the same for all models; what a network leaves out" in text
    assert f"{absent:.1%} of the pixels are not compared, 1.2% since they were not observed" in text


def test_scores_of_published_tables_stand_apart_beside_the_published_figures(tmp_path: Path, trainings: list) -> None:
    network = {"model": "convgru", "options": SMALL, "published": {"openstl": {"mse": 29.8, "ssim": 0.9288}}}
    asked = settings(tmp_path, networks=[network], protocol=["openstl", "gs2pm"], seeds=[0, 1], **moving(tmp_path))
    table = benchmarking.benchmark(asked)
    text = table.read_text()
    assert "| model | MSE | published | MAE | RMSE | PSNR | SSIM | published |" in text
    assert "## Scores as published: protocol gs2pm" in text
    rows = list(csv.DictReader((table.parent / "protocols.csv").read_text().splitlines()))
    found = {(row["protocol"], row["model"], row["score"], row["lead_seconds"]): row for row in rows}
    assert found["openstl", "convgru", "ssim", ""]["published"] == "0.9288"
    evaluation = BenchmarkEvaluation(asked)
    past, seen = map(np.stack, zip(*evaluation.pairs(), strict=True))
    still = np.repeat(past[:, -1:], 2, axis=1)
    for name in ("openstl", "gs2pm"):
        for score, value in score_as(still, seen, name).items():
            assert float(found[name, "persistence", score, ""]["value"]) == pytest.approx(value, rel=1e-6)
    assert {lead for *_, lead in found} == {"", "1.0", "2.0"}
    assert not any("." in score for _, score, *_ in numbers(table)), "nothing of it is among the sound scores"


def test_a_forecast_reaches_a_protocol_as_it_leaves_the_network(
    tmp_path: Path, trainings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of squares beyond white count; the sound scores have clipped frames."""
    evaluation = BenchmarkEvaluation(settings(tmp_path, protocol="openstl", **moving(tmp_path)))
    model = evaluation.references[0]

    class Bright(type(model.network)):  # type: ignore[misc]
        trainable = True

        def forward(self, past_BTCHW: torch.Tensor) -> torch.Tensor:
            return torch.full_like(past_BTCHW[:, -1:], 2).repeat(1, 2, 1, 1, 1)

    bright = replace(model, network=Bright(in_steps=1, out_steps=2), digest="bright")
    kept = evaluation.sums(bright, tmp_path / "bright.nc")
    seen = np.stack([seen for _, seen in evaluation.pairs()])
    assert kept["openstl.mse"].sum().item() == pytest.approx(np.square(2 - seen).sum(), rel=1e-5)
    assert kept["squared_error"].sum().item() == pytest.approx(np.square(1 - seen).sum(), rel=1e-5)


@pytest.mark.slow
def test_the_command_trains_in_processes_of_their_own(tmp_path: Path) -> None:
    networks = [{"model": "convgru", "options": SMALL}, {"model": "convgru", "name": "odd", "options": {"wdth": 3}}]
    file = tmp_path / "benchmark.yaml"
    asked = settings(tmp_path, networks=networks).model_dump(mode="json", exclude_unset=True)
    file.write_text(yaml.safe_dump(asked))
    command = [Path(sys.executable).with_name("nowcast"), "benchmark", file, "seeds=[7]"]
    done = subprocess.run(command, check=True, timeout=240, capture_output=True, text=True)
    assert "- odd-7: OptionError: Unknown option wdth of convgru" in done.stdout
    assert (tmp_path / "runs/small/convgru-7/test.nc").exists()
    assert "| convgru |" in (tmp_path / "runs/small/leaderboard.md").read_text()


def coloured(path: Path) -> None:
    """A store of clips of a colour video, four frames each, six to train on and two to test on."""
    grid, rng = pixels.picture((32, 32)), np.random.default_rng(0)
    for number in range(8):
        fields = {name: rng.random((4, 32, 32)).astype(np.float32) for name in COLOURS}
        times, split = np.datetime64(0, "s") + np.arange(4), "train" if number < 6 else "test"
        cube = cubes.make(fields, times, grid, sequence=f"{split}/{number}", split=split)
        FrameStore(path).append(cube, message="clip")


def test_domains_have_a_table_each_and_a_missing_one_is_named(tmp_path: Path, trainings: list) -> None:
    """Colour is scored in all channels; the published figure stands beside ours; a second run trains nothing."""
    coloured(tmp_path / "var/bair")
    store = f"{tmp_path}/var/{{domain}}"
    asked = settings(
        tmp_path,
        networks=[{"model": "convgru", "options": SMALL}, {"checkpoint": "{domain}-vp.safetensors", "name": "vp"}],
        references=["persistence", "extrapolation"],
        train=[{"store": store, "split": "train", "share": [0, 0.5]}],
        valid=[{"store": store, "split": "train", "share": [0.5, 1]}],
        test=[{"store": store, "split": "test"}],
        windows={"quantity": "intensity", "in_steps": 2, "out_steps": 2, "channels": 3},
        thresholds=[],
        protocol="gs2pm",
        domains=[{"name": "bair", "published": {"convgru": {"gs2pm": {"psnr": 20.61}}}}, {"name": "human"}],
    )
    page = benchmarking.benchmark(asked)
    text = page.read_text()
    assert "| model | MSE | PSNR | published | SSIM |" in text
    assert re.search(r"\| convgru \| 0\.\d+ \| \d+\.\d\d \| 20\.61 \|", text)
    assert re.search(r"- human: .*human", text)
    assert (
        "vp-0: BadInput: bair-vp.safetensors: no such checkpoint" in (page.parent / "bair/leaderboard.md").read_text()
    )
    cube = FrameStore(tmp_path / "var/bair").read()
    clips = cube.isel(time=cube["split"].values == "test")
    frames = np.stack([clips[name].values for name in COLOURS], axis=1).reshape(2, 4, 3, 32, 32)
    theirs = score_as(np.repeat(frames[:, 1:2], 2, axis=1), frames[:, 2:], "gs2pm")
    assert f"| persistence | {theirs['mse']:.3f} | {theirs['psnr']:.2f} | – | {theirs['ssim']:.3f} |" in text
    sound = numbers(page.parent / "bair/leaderboard.md")
    assert sound["persistence", "mse", "", ""] == pytest.approx(
        np.square(frames[:, 1:2] - frames[:, 2:]).mean(), rel=1e-3
    )
    done = list(trainings)
    benchmarking.benchmark(asked)
    assert trainings == done == ["convgru-0"]


def test_no_domain_at_all_is_an_error(tmp_path: Path) -> None:
    spans = {name: [{"store": f"{tmp_path}/{{domain}}", "split": name}] for name in ("train", "valid", "test")}
    with pytest.raises(ConfigError, match="no domain has a table"):
        benchmarking.benchmark(settings(tmp_path, domains=[{"name": "bair"}], **spans))


# --- settings -------------------------------------------------------------------------------------

REFUSED = [
    ({"budget": {"steps": 4, "minutes": 1}}, "give steps or minutes"),
    ({"budget": {"steps": 5, "validate_every": 2}}, r"5 steps are not a multiple of validate_every \(2\)"),
    ({"trainer": {"epochs": 3}}, "the budget sets epochs of the trainer"),
    ({"networks": [{"model": "convgru"}, {"model": "convgru"}]}, "two rows share a name"),
    ({"networks": [{"options": {}}]}, "name a model, a recipe or a checkpoint"),
    ({"networks": [{"checkpoint": "a.safetensors", "model": "convgru"}]}, "a checkpoint is scored as it is"),
    ({"networks": [{"model": "nix"}]}, "unknown model 'nix'"),
    (
        {"domains": [{"name": "kth", "published": {"nix": {}}}]},
        "unknown network of kth 'nix'; known: persistence, extrapolation, convgru",
    ),
    ({"protocol": "nix"}, "unknown protocol 'nix'; known: moving-mnist, kth"),
    ({"networks": [{"model": "convgru", "published": {"kth": {"msee": 1}}}]}, "unknown score 'msee'; known: mse, psnr"),
    ({"budget": {"minutes": 1}, "trainer": {"schedule": "one-cycle"}}, "schedule one-cycle is laid out over steps"),
    (
        {
            "windows": {"quantity": "vil", "in_steps": 2, "out_steps": 2},
            "test": [{"store": "a", "quantity": "intensity"}],
        },
        "test is scored in vil",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=lambda part: part if isinstance(part, str) else "")
def test_mistakes_are_refused(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(tmp_path, **changes)


def test_a_recipe_gives_its_way_of_optimising_and_not_its_length(tmp_path: Path) -> None:
    network = {"recipe": "training/convlstm-small.yaml", "name": "own", "trainer": {"learning_rate": 0.5}}
    own = settings(tmp_path, networks=[network]).participants[0]
    shipped = config.load(Recipe, "training/convlstm-small.yaml")
    assert (own.name, own.model, own.options) == ("own", shipped.model, shipped.options)
    assert (own.trainer.schedule, own.trainer.learning_rate) == ("one-cycle", 0.5)
    assert (own.trainer.epochs, own.trainer.batches_per_epoch, own.trainer.batch_size) == (2, 2, 2)


def test_minutes_end_a_training(tmp_path: Path) -> None:
    asked = settings(tmp_path, budget={"minutes": 0.02, "validate_every": 1000})
    card = checkpoint.read_card(training.train(asked.recipe(asked.participants[0], seed=0)))
    assert 1 <= card.training["steps"] < 1000
    assert card.training["seconds"] >= 1.2


# --- hand-worked ----------------------------------------------------------------------------------


def sums(hits: np.ndarray, misses: np.ndarray) -> xr.Dataset:
    """Of (seed, window) counts, one lead time and threshold."""
    dims = ("seed", "window", "lead_time", "threshold")
    shaped = {
        name: (dims, np.asarray(values)[..., None, None])
        for name, values in {
            "hits": hits,
            "misses": misses,
            "false_alarms": misses * 0,
            "correct_negatives": misses * 0,
        }.items()
    }
    return xr.Dataset(shaped | {"n": (dims[:3], np.ones((*hits.shape, 1)))}, {"threshold": [1.0], "lead_time": [0]})


def parts(found: xr.Dataset) -> list[float]:
    return found["csi"].squeeze().values.tolist()


def test_pooled_csi_of_two_seeds() -> None:
    """Sums first: (8 + 2 + 3 + 1) / (10 + 10 + 10 + 10); seeds 10/20 and 4/20 are 0.15 sqrt(2) apart."""
    table = sums(np.array([[8, 2], [3, 1]]), np.array([[2, 8], [7, 9]]))
    value, _, _, spread = parts(estimates(table, ["csi"], blocks=np.arange(2)))
    assert value == pytest.approx(14 / 40)
    assert spread == pytest.approx(0.3 / np.sqrt(2))


def test_equal_blocks_leave_no_doubt() -> None:
    table = sums(np.full((1, 6), 3), np.full((1, 6), 1))
    assert parts(estimates(table, ["csi"], blocks=np.arange(6)))[:3] == [0.75, 0.75, 0.75]


def test_two_blocks_are_drawn_whole() -> None:
    """Both windows of a block come together: none, half or all of the hits."""
    table = sums(np.array([[4, 4, 0, 0]]), np.array([[0, 0, 4, 4]]))
    assert parts(estimates(table, ["csi"], blocks=np.array(["a", "a", "b", "b"])))[:3] == [0.5, 0.0, 1.0]


def test_many_blocks_give_the_interval_of_a_mean() -> None:
    table = sums(np.tile([[4, 0]], 200), np.tile([[0, 4]], 200))
    value, low, high, _ = parts(estimates(table, ["csi"], blocks=np.arange(400)))
    assert (high - value, value - low) == pytest.approx([1.96 * np.sqrt(0.25 / 400)] * 2, rel=0.1)


def test_one_block_or_no_event_has_no_interval() -> None:
    table = sums(np.array([[4, 0]]), np.array([[4, 0]]))
    one = parts(estimates(table, ["csi"], blocks=np.zeros(2)))
    assert one[0] == 0.5 and np.isnan(one[1:]).all()
    assert np.isnan(parts(estimates(table, ["csi"], blocks=np.arange(2)))[1:]).all()


def test_the_best_stands_at_the_top() -> None:
    def row(name: str, hits: int) -> Row:
        found = estimates(sums(np.array([[hits]]), np.array([[4]])), ["csi"], blocks=np.zeros(1), over=("lead_time",))
        return Row(name, True, found.expand_dims(lead_time=[np.timedelta64(5, "m")]), found, costs={"parameters": 1e6})

    rows = ranked([row("poor", 1), Row("broken", True, failures=("broken-0: a | b",)), row("good", 4)])
    assert [row.name for row in rows] == ["good", "poor", "broken"]
    text = markdown(rows, title="Title", protocol={"What": "that."})
    assert "| good | 0.500 | 1 M |" in text
    assert "- broken-0: a / b" in text


def test_a_lead_time_is_bold_where_every_reference_is_surely_beaten() -> None:
    found = estimates(sums(np.array([[2]]), np.array([[2]])), ["csi"], blocks=np.zeros(1), over=("lead_time",))
    leads = found.expand_dims(lead_time=[np.timedelta64(minutes, "m") for minutes in (5, 10)])

    def gain(*lows: float) -> xr.Dataset:
        return xr.zeros_like(leads) + xr.DataArray(np.array(lows), dims="lead_time")

    row = Row("net", True, leads, found, {"persistence": gain(0.1, 0.1), "extrapolation": gain(0.2, -0.1)})
    text = markdown([row], title="Title", protocol={})
    assert "| model | 5 | 10 |" in text
    assert "| net | **0.500** | 0.500 |" in text
