"""The command line: every command explains itself; mistakes are one sentence; JSON is JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nowcast import cli
from nowcast.registry import checkpoint
from tests import parity_pack, paths, sources_video, synthetic

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))
COMMANDS = (
    "demo",
    "ingest",
    "inspect",
    "show",
    "train",
    "tune",
    "test",
    "benchmark",
    "forecast",
    "verify",
    "publish",
    "serve",
    "cycle",
    "up",
    "run",
    "doctor",
    "models",
    "models import",
    "models export",
    "models register",
    "models list",
    "models compare",
    "models promote",
    "models rollback",
    "models retire",
)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    """stderr of the real command, which must end without a traceback."""
    result = subprocess.run(
        [sys.executable, "-c", "from nowcast.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_the_commands_are_these() -> None:
    groups = {"": cli.app} | {f"{group.name} ": group.typer_instance for group in cli.app.registered_groups}
    found = {
        f"{name}{command.name or command.callback.__name__}"
        for name, group in groups.items()
        for command in group.registered_commands
    }
    assert found | {name.strip() for name in groups if name} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"Example: nowcast {command}" in " ".join(run(*command.split(), "--help").split())


def test_a_session_from_files_to_page(tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    for frame in SAMPLE[:6]:
        shutil.copy(frame, tmp_path / "feed")
    store, forecasts, site = tmp_path / "frames", tmp_path / "forecasts", tmp_path / "site"
    assert json.loads(run("ingest", "knmi", tmp_path / "feed", "--store", store, "--json"))["taken"] == 6
    facts = json.loads(run("show", store, "--json"))
    assert (facts["frames"], facts["gaps"]) == (6, [])
    assert "frames" in run("show", store)
    time = ("--time", "2010-08-26T04:20:00", "--leads", "2")
    for model in ("persistence", "extrapolation"):
        run("forecast", "--store", store, "--model", model, "--out", forecasts, *time)
    run("forecast", "--store", store, "--model", "extrapolation", "--out", tmp_path / "now.nc")
    assert (tmp_path / "now.nc").stat().st_size > 10_000
    report = json.loads(run("verify", "--store", store, "--forecasts", forecasts, "--json"))
    assert report["scored"] == 4
    assert {row["model"] for row in report["table"]} == {"persistence", "extrapolation"}
    assert "CSI≥1" in run("verify", "--store", store, "--forecasts", forecasts)
    run("publish", "--store", store, "--forecasts", forecasts, "--site", site)
    assert (site / "latest.json").exists()


def test_a_tuning_ends_with_its_scores(tmp_path: Path) -> None:
    store, base = synthetic.make_store(tmp_path / "d" / "frames", range(30)), synthetic.tiny(tmp_path / "b.safetensors")
    words = run(
        "tune",
        base,
        "--store",
        store,
        "--steps",
        "1",
        f"runs={tmp_path}",
        "trainer.workers=0",
        "trainer.accelerator=cpu",
        "trainer.valid_batches=1",
    )
    assert "| before tuning |" in words
    assert (tmp_path / "gs2pm-d-vp" / "best.safetensors").exists()


def test_a_look_at_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = run("inspect", SAMPLE[0])
    assert "KNMI radar composite of the Netherlands" in words
    assert (tmp_path / "quicklook.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(run("inspect", SAMPLE[0].parent, "--reader", "knmi", "--picture", tmp_path / "x.png", "--json"))
    assert report["reader"] == "knmi"
    assert report["items"].startswith(f"{len(SAMPLE)}: {SAMPLE[0].name}")
    assert Path(report["picture"]).stat().st_size > 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"quicklook.png", "x.png"}, "nothing is stored"


def test_the_source_of_files_is_found(tmp_path: Path) -> None:
    """Of radar, of clips, and of a file that is neither."""
    (tmp_path / "notes.txt").write_text("rain")
    sources, store = [tmp_path / "notes.txt", *SAMPLE[:2]], tmp_path / "frames"
    summary = json.loads(run("ingest", "auto", *sources, "--store", store, "--json"))
    assert (summary["taken"], len(summary["refused"])) == (2, 1)
    assert "notes.txt: is of no known source" in summary["refused"][0]
    fixed = sources_video.fixed_set(tmp_path / "mnist" / "mnist_test_seq.npy")
    assert json.loads(run("ingest", "auto", fixed.parent, "--store", tmp_path / "clips", "--json"))["taken"] == 60


def test_one_cycle(tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    shutil.copy(SAMPLE[0], tmp_path / "feed")
    paths = [f"{name}={tmp_path / name}" for name in ("store", "forecasts", "scores", "site", "netcdf")]
    report = json.loads(run("cycle", "operations/knmi.yaml", f"feed.source={tmp_path / 'feed'}", *paths, "--json"))
    assert (report["taken"], report["idle"]) == (1, False)


def test_the_registries_are_tables() -> None:
    rows = {row["model"]: row for row in json.loads(run("models", "--json"))}
    assert rows["convlstm:published"]["parameters"] == 9_032_225
    assert rows["convgru:published"]["parameters"] == 6_880_289
    assert {row["reader"] for row in json.loads(run("models", "--readers", "--json"))} >= {"knmi", "odim", "hko7"}


def test_official_weights_come_in_and_a_network_goes_out(tmp_path: Path) -> None:
    torch.save(parity_pack.read("sa_convlstm").weights(), tmp_path / "official.pth")
    run(
        "models",
        "import",
        "sa_convlstm",
        tmp_path / "official.pth",
        "input_frames=3",
        "future_frames=2",
        "--quantity",
        "rainfall_rate",
        "--step-seconds",
        "300",
    )
    card = checkpoint.read_card(tmp_path / "official.safetensors")
    assert (card.model, card.in_steps, card.out_steps, card.cadence_seconds) == ("sa-convlstm", 3, 2, 300)
    run("models", "export", tmp_path / "official.safetensors", tmp_path / "network.pt2", "--height", 16, "--width", 20)
    assert (tmp_path / "network.pt2").stat().st_size > 1e6


def test_the_doctor_names_what_to_fix(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "operations/knmi.yaml", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert findings["prefect"]["ok"]
    assert not findings["feed"]["ok"]
    assert "feed.source" in findings["feed"]["remedy"]
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ingest", "foo", "x", "--store", "y"), "Unknown reader 'foo'; known: hko7, sevir"),
        (("show", "nowhere"), "there is no store here; make one with `nowcast ingest`"),
        (("cycle", "operations/knmi.yaml", "leds=3"), "leds: unknown key; known here: title"),
        (("train", "nowhere.yaml"), "no such file; shipped:"),
        (("train", "training/convlstm-debug.yaml", "valid=0.1"), "valid: a share of the windows at random would hold"),
        (("inspect", "nowhere.h5"), "nowhere.h5: does not exist; check the path"),
        (("inspect", "empty.h5"), "empty.h5: is of no known source; name a reader (hko7, sevir"),
        (("inspect", "notes.txt", "--reader", "odim"), "notes.txt: is not an HDF5 file; fetch it again or choose"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.h5").touch()
    Path("notes.txt").write_text("rain")
    assert sentence in refused(*arguments)
    assert not Path("quicklook.png").exists()


def test_a_model_that_cannot_run_says_why(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(3))
    out = tmp_path / "x.nc"
    assert "is a network" in refused("forecast", "--store", path, "--model", "convlstm", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("again", [False, True])
def test_nothing_possible_is_no_success(tmp_path: Path, again: bool) -> None:
    """A cycle fails when files land and none is taken; they are named once. A person who asks again is told again."""
    feed = tmp_path / "feed"
    feed.mkdir()
    (feed / "bad.h5").write_text("not a radar file")
    arguments = ["ingest", "knmi", str(feed), "--store", str(tmp_path / "frames")]
    results = [CliRunner().invoke(cli.app, arguments) for _ in range(1 + again)]
    assert results[-1].exit_code == 1
    assert "bad.h5" in results[-1].output.replace("\n", "")
    assert ("refused before 1" in results[-1].output.replace("\n", " ")) is again


def test_a_cycle_that_takes_nothing_of_what_landed_exits_1(tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    chain = [f"feed.source={tmp_path / 'feed'}", f"site={tmp_path / 'site'}", "registry=null"]
    chain += [f"{name}={tmp_path / name}" for name in ("store", "forecasts", "scores", "netcdf")]
    assert CliRunner().invoke(cli.app, ["cycle", "operations/demo.yaml", *chain]).exit_code == 0
    (tmp_path / "feed" / "bad.h5").write_text("not a radar file")
    result = CliRunner().invoke(cli.app, ["cycle", "operations/demo.yaml", *chain])
    assert result.exit_code == 1
    assert "failed: feed: One item landed and none was taken" in result.output.replace("\n", " ")
    assert CliRunner().invoke(cli.app, ["cycle", "operations/demo.yaml", *chain]).exit_code == 0


def test_a_choice_and_a_step_are_said(tmp_path: Path) -> None:
    store = str(tmp_path / "frames")
    frames = [str(path) for path in SAMPLE[:4]]
    result = CliRunner().invoke(cli.app, ["ingest", "knmi", *frames, "--store", store, "--product", "nothing"])
    assert "of another product 4" in result.output
    result = CliRunner().invoke(cli.app, ["ingest", "knmi", *frames, "--store", store, "--cadence", "600"])
    assert "cadence_seconds is set to 600 s" in " ".join(result.output.split())
    shown = " ".join(CliRunner().invoke(cli.app, ["show", store]).output.split())
    assert "cadence_seconds is set to 600 s" in shown
    assert "rainfall_rate" in shown
