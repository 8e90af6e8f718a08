"""The flows: what Prefect is told, that science is only called, and that the short name works."""

from __future__ import annotations

import ast
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect import Flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from nowcast import config, flows
from nowcast.core.errors import ConfigError, NowcastError
from nowcast.flows import (
    backfill,
    benchmark,
    cycle,
    deployments,
    finetune,
    ingest,
    models,
    plugin,
    report,
    train,
    verify,
)
from nowcast.operations import cycle as chain
from nowcast.operations import promotion
from nowcast.operations.cycle import Report
from nowcast.registry import checkpoint
from tests import checkpoints, fixtures, synthetic
from tests.operations import test_promotion

RECIPE = """\
name: tiny
model: convlstm
train: [{store: a}]
valid: [{store: b}]
windows: {quantity: reflectivity, in_steps: 2, out_steps: 2}
"""
BUSY = Report(
    taken=2,
    newest=datetime(2010, 8, 26, 3, tzinfo=UTC),
    issued=["convlstm 2010-08-26T03:00Z ok"],
    scored=4,
    refused=["a.h5: not HDF5"],
    published=Path("site/latest.json"),
    seconds=1.25,
)


# --- the short name -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prefect deployment run train-convlstm", "prefect deployment run train-convlstm/default"),
        ("prefect deployments run cycle --watch", "prefect deployments run cycle/default --watch"),
        ("prefect --no-prompt deployment inspect cycle", "prefect --no-prompt deployment inspect cycle/default"),
        ("prefect deployment run cycle/other", "prefect deployment run cycle/other"),
        ("prefect deployment run --id 1234", "prefect deployment run --id 1234"),
        ("prefect deployment run", "prefect deployment run"),
        ("prefect deployment ls", "prefect deployment ls"),
        ("prefect flow-run inspect x", "prefect flow-run inspect x"),
        ("prefect", "prefect"),
    ],
)
def test_plugin_completes_bare_names_only(typed: str, meant: str) -> None:
    assert plugin.rewrite(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("program", "started", "name"),
    [
        ("/usr/bin/prefect", ["python", "/usr/bin/prefect"], "cycle/default"),
        ("-m", ["python", "-m", "prefect"], "cycle/default"),
        ("/usr/bin/other", ["python", "/usr/bin/other"], "cycle"),
    ],
)
def test_plugin_touches_no_other_program(
    monkeypatch: pytest.MonkeyPatch, program: str, started: list[str], name: str
) -> None:
    monkeypatch.setattr("sys.argv", [program, "deployment", "run", "cycle"])
    monkeypatch.setattr("sys.orig_argv", started)
    assert plugin.setup_environment(ctx=None) is None
    assert plugin.sys.argv == [program, "deployment", "run", name]


def test_importing_the_package_imports_nothing() -> None:
    tree = ast.parse(Path(flows.__file__).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


# --- what Prefect shows ---------------------------------------------------------------------------


def test_idle_report_is_skipped_and_leaves_no_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **_: pytest.fail("an artifact for nothing"))
    state = report.outcome(Report(refused=["a.h5: not HDF5"]), key="cycle")
    assert (state.type, state.name) == ("COMPLETED", "Skipped")
    assert state.message == "No new frame; newest none, 1 refused."


def test_a_chain_that_takes_nothing_of_what_landed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **_: None)
    state = report.outcome(Report(refused=["a"], failures=["feed: One item landed and none was taken: a"]), key="cycle")
    assert state.type == "FAILED"
    assert state.message.startswith("feed: One item landed and none was taken: a. The rest was done: ")


def test_busy_report_is_completed_with_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts: list[dict] = []
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **artifact: artifacts.append(artifact))
    state = report.outcome(BUSY, key="cycle")
    assert (state.name, state.message) == ("Completed", "frames taken: 2, forecasts: 1, scored: 4")
    assert artifacts == [{"key": "cycle", "markdown": report.markdown(BUSY)}]


def test_report_with_a_failure_fails_and_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **_: None)
    state = report.outcome(replace(BUSY, failures=["NetCDF: the disk is full"]), key="cycle")
    assert (state.type, state.name) == ("FAILED", "Incomplete")
    assert state.message == "NetCDF: the disk is full. The rest was done: frames taken: 2, forecasts: 1, scored: 4"
    assert "**Failed**" in report.markdown(replace(BUSY, failures=["x"]))


def test_markdown_names_forecasts_and_refused_files() -> None:
    text = report.markdown(BUSY)
    assert "| Newest frame | 2010-08-26 03:00 UTC |" in text
    assert text.endswith("**Forecasts**\n\n- convlstm 2010-08-26T03:00Z ok\n\n**Refused**\n\n- a.h5: not HDF5")
    assert "Refused" not in report.markdown(Report())


def test_progress_bar_counts_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[dict] = []
    monkeypatch.setattr(report, "create_progress_artifact", lambda progress, key: f"{key} at {progress:g}")
    monkeypatch.setattr(report, "update_progress_artifact", lambda artifact, **move: moves.append({artifact: move}))
    report.progress_bar("backfill-progress")(1, 4, "03:00")
    assert moves == [{"backfill-progress at 0": {"progress": 25.0, "description": "03:00"}}]


# --- what the flows call --------------------------------------------------------------------------


def _due(monkeypatch: pytest.MonkeyPatch, ago: timedelta) -> None:
    run = SimpleNamespace(scheduled_start_time=datetime.now(UTC) - ago)
    monkeypatch.setattr(cycle, "runtime", SimpleNamespace(flow_run=run))


def test_cycle_hands_its_settings_on(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    seen: list[config.Operations] = []
    monkeypatch.setattr(chain, "cycle", lambda settings: seen.append(settings) or Report())
    _due(monkeypatch, timedelta(seconds=20))
    assert cycle.cycle.fn(str(operations), ("leads=3", "every_minutes=100000")).name == "Skipped"
    assert [settings.leads for settings in seen] == [3]


def test_a_late_cycle_works_on_the_newest_frame(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    monkeypatch.setattr(chain, "cycle", lambda settings: BUSY)
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **_: None)
    _due(monkeypatch, timedelta(minutes=12))
    assert cycle.cycle.fn(str(operations)).name == "Completed"


@pytest.mark.parametrize(("seconds", "times"), [(20, 1), (275, 1), (291, 2), (301, 2), (900, 2)])
def test_a_cycle_looks_again_if_another_was_due_and_cancelled_meanwhile(
    monkeypatch: pytest.MonkeyPatch, operations: Path, seconds: int, times: int
) -> None:
    """Its schedule is every five minutes; it started eight seconds early, as Prefect does."""
    clock = [cycle.ANCHOR - timedelta(seconds=8)]
    monkeypatch.setattr(cycle, "datetime", SimpleNamespace(now=lambda zone: clock[0]))
    run = SimpleNamespace(scheduled_start_time=cycle.ANCHOR)
    monkeypatch.setattr(cycle, "runtime", SimpleNamespace(flow_run=run))
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **_: None)
    made: list[Report] = []

    def work(settings: config.Operations) -> Report:
        clock[0] += timedelta(seconds=1 if made else seconds + 8)
        made.append(Report() if made else BUSY)
        return made[-1]

    monkeypatch.setattr(chain, "cycle", work)
    assert cycle.cycle.fn(str(operations), ("every_minutes=5",)).name == "Completed"
    assert len(made) == times


@pytest.mark.parametrize(("scored", "name"), [(0, "Skipped"), (7, "Completed")])
def test_verify_scores_the_stores_of_the_chain(
    monkeypatch: pytest.MonkeyPatch, operations: Path, scored: int, name: str
) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(
        "nowcast.verification.run.verify", lambda *stores, thresholds: seen.append((stores, thresholds)) or scored
    )
    state = verify.verify.fn(str(operations), ("thresholds=[1, 5]",))
    folder = operations.parent
    assert state.name == name
    assert seen == [((f"{folder}/frames", f"{folder}/forecasts", f"{folder}/scores"), (1.0, 5.0))]


def test_ingest_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ingest, "progress_bar", lambda key: None)
    monkeypatch.setattr(ingest, "create_markdown_artifact", lambda key, markdown: shown.append(markdown))
    source = fixtures.knmi(tmp_path / "feed" / "RAD_NL25_RAP_5min_201008260105.h5", end="2010-08-26T01:05").parent
    done = ingest.ingest.fn("auto", [str(source)], str(tmp_path / "frames"), workers=0)
    assert done.message == "1 frames taken, 0 items refused."
    assert "| Frames taken | 1 |" in shown[0]
    assert ingest.ingest.fn("knmi", [str(source)], str(tmp_path / "frames"), workers=0).name == "Skipped"
    with pytest.raises(NowcastError, match="does not exist"):
        ingest.ingest.fn("knmi", [str(tmp_path / "nowhere")], str(tmp_path / "other"), workers=0)


def test_backfill_hands_its_span_on(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    seen: list[dict] = []
    monkeypatch.setattr(backfill, "progress_bar", lambda key: key)
    monkeypatch.setattr(chain, "backfill", lambda settings, **span: seen.append(span) or Report())
    start, end = datetime(2010, 8, 26, tzinfo=UTC), datetime(2010, 8, 27, tzinfo=UTC)
    assert backfill.backfill.fn(str(operations), start, end, dry_run=True).name == "Skipped"
    assert seen == [{"start": start, "end": end, "dry_run": True, "progress": "backfill-progress"}]


def test_training_refuses_the_recipe_of_another_network(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    with pytest.raises(ConfigError, match="train-convgru does not train convlstm"):
        train.convgru.fn(str(recipe))


def test_training_flow_of_an_unknown_network_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"no network 'nix' to train; known: .*convlstm"):
        train.nix  # noqa: B018
    with pytest.raises(AttributeError, match=r"no network 'convlstm' with several tunings; known: gs2pm"):
        finetune.convlstm  # noqa: B018


@pytest.mark.parametrize("flow", [train.convlstm, finetune.gs2pm], ids=["train", "finetune"])
def test_the_form_of_a_training_says_what_every_field_is(flow: Flow) -> None:
    fields = flow.parameters.properties
    for name, field in fields.items():
        assert len(field["description"]) > 10, name
    bounds = {
        name: next(kind for kind in fields[name]["anyOf"] if "type" in kind) for name in ("minutes", "batch_size")
    }
    assert bounds["minutes"]["exclusiveMinimum"] == 0
    assert bounds["batch_size"]["minimum"] == 1
    assert fields["accelerator"]["anyOf"][0]["enum"] == ["auto", "cpu", "gpu"]


def test_the_form_of_a_tuning_offers_its_methods() -> None:
    assert finetune.gs2pm.parameters.properties["method"]["enum"] == ["vp", "fp"]
    assert finetune.gs2pm.parameters.required == ["base"]


def test_what_a_form_was_filled_in_with_changes_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(train, "fit", lambda settings, **how: seen.append((settings, how)) or "best")
    monkeypatch.setattr("nowcast.data.archive.check_there", lambda *_: None)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    train.convlstm.fn(
        str(tmp_path / "recipe.yaml"),
        name="mine",
        minutes=2.5,
        batch_size=3,
        overrides=("trainer.wet_weight=8",),
        score_windows=0,
    )
    ((settings, how),) = seen
    trainer = settings.trainer
    assert (settings.name, trainer.minutes, trainer.batch_size, trainer.wet_weight) == ("mine", 2.5, 3, 8)
    assert how == {"key": "train-convlstm", "resume": True, "score_windows": 0, "register_in": None}


def test_a_training_without_a_store_takes_the_archive_only_in_place_of_what_only_we_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = synthetic.make_store(tmp_path / "frames", range(60))
    seen: list[config.Recipe] = []
    monkeypatch.setattr(train, "fit", lambda settings, **how: seen.append(settings) or "best")
    train.gs2pm.fn("training/gs2pm-debug.yaml", archive=archive)
    assert {span.store for span in (*seen[0].train, *seen[0].valid)} == {archive}
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"a, b: not found"):
        train.convlstm.fn(str(tmp_path / "recipe.yaml"), archive=archive)
    train.convlstm.fn(str(tmp_path / "recipe.yaml"), store=archive)
    assert {span.store for span in seen[1].train} == {archive}
    with pytest.raises(ConfigError, match="no store to tune on"):
        finetune.gs2pm.fn("a.safetensors")


def test_a_tuning_refuses_the_checkpoint_of_another_network(tmp_path: Path) -> None:
    store = synthetic.make_store(tmp_path / "frames", range(10))
    other = synthetic.tiny(tmp_path / "other.safetensors", "convgru:debug")
    with pytest.raises(ConfigError, match="finetune-gs2pm does not tune convgru:debug"):
        finetune.gs2pm.fn(str(other), store, method="fp")


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    (tmp_path / "skill.png").write_bytes(b"png")
    (tmp_path / "card.md").write_text("![a](skill.png) ![b](missing.png) [c](https://x.org/y.png)")
    text = report.page(tmp_path / "card.md")
    assert text == "![a](data:image/png;base64,cG5n) ![b](missing.png) [c](https://x.org/y.png)"


# --- with a server --------------------------------------------------------------------------------


@pytest.fixture(scope="class")  # what it leaves behind is collected before any other test
def server() -> Iterator[None]:
    # A flow run waits for its heartbeat thread to tick: a second each.
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # Prefect's clients close their sockets when they are collected


@pytest.mark.prefect
@pytest.mark.xdist_group("runs")
@pytest.mark.usefixtures("server")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestRuns:
    def test_cycle_on_an_empty_feed_is_skipped(self, operations: Path) -> None:
        state = cycle.cycle(str(operations), return_state=True)
        assert (state.type, state.name) == ("COMPLETED", "Skipped")

    def test_cycle_leaves_an_artifact(self, monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
        from prefect.artifacts import Artifact

        monkeypatch.setattr(chain, "cycle", lambda settings: BUSY)
        assert cycle.cycle(str(operations), return_state=True).name == "Completed"
        assert Artifact.get("cycle").data == report.markdown(BUSY)

    def test_backfill_refuses_a_time_without_zone(self, operations: Path) -> None:
        from prefect.exceptions import ParameterTypeError

        with pytest.raises(ParameterTypeError, match="timezone"):
            backfill.backfill(str(operations), "2010-08-26T03:00", "2010-08-27T03:00Z")

    def test_training_takes_the_gpu_slot_and_returns_the_checkpoint(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from prefect.client.orchestration import get_client

        deployments.limit_gpu()
        (tmp_path / "recipe.yaml").write_text(RECIPE)

        def fit(recipe: config.Recipe, *, resume: bool, progress: Callable[[int, int, str], None]) -> Path:
            progress(1, 2, "validation loss 0.1")
            with get_client(sync_client=True) as client:
                assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 1
            return Path("runs/tiny/best.safetensors")

        monkeypatch.setattr("nowcast.data.archive.check_there", lambda *_: None)
        monkeypatch.setitem(sys.modules, "nowcast.training.run", SimpleNamespace(train=fit))
        made = train.convlstm(str(tmp_path / "recipe.yaml"), score_windows=0)
        assert made == "runs/tiny/best.safetensors"

    @pytest.mark.parametrize(
        ("parameters", "fault"),
        [
            ({"recipe": "recipe"}, "pattern"),
            ({"recipe": "a.yaml", "epochs": 0}, "greater than or equal to 1"),
            ({"recipe": "a.yaml", "accelerator": "tpu"}, "'auto', 'cpu' or 'gpu'"),
        ],
    )
    def test_a_bad_parameter_is_refused_before_anything_starts(self, parameters: dict, fault: str) -> None:
        from prefect.exceptions import ParameterTypeError

        with pytest.raises(ParameterTypeError, match=fault):
            train.gs2pm(**parameters)

    def test_a_domain_is_tuned_from_end_to_end(self, tmp_path: Path) -> None:
        """Base and store in; prompt file, progress, and a page with scores and pictures out."""
        from prefect.artifacts import Artifact

        deployments.limit_gpu()
        store = str(tmp_path / "domain" / "frames")
        synthetic.make_store(store, range(30))
        base = synthetic.tiny(tmp_path / "base.safetensors")
        options = ("trainer.workers=0", "trainer.valid_batches=1", f"runs={tmp_path}", "windows.crop=32")
        path = Path(finetune.gs2pm(str(base), store, steps=2, accelerator="cpu", overrides=options, score_windows=2))
        assert path == tmp_path / "gs2pm-domain-vp" / "best.safetensors"
        assert checkpoint.read_card(path).base["path"] == str(base)
        assert Artifact.get("finetune-gs2pm-progress").data == 100
        page = Artifact.get("finetune-gs2pm").data
        assert "| before tuning |" in page
        assert page.count("](data:image/png;base64,") == 2

    def test_benchmark_takes_the_gpu_slot_and_shows_its_table(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from prefect.client.orchestration import get_client

        deployments.limit_gpu()

        def compare(settings: config.Benchmark, *, progress: Callable[[int, int, str], None]) -> Path:
            progress(0, 2, settings.name)
            with get_client(sync_client=True) as client:
                assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 1
            (tmp_path / "leaderboard.md").write_text("| model |")
            return tmp_path / "leaderboard.md"

        monkeypatch.setitem(sys.modules, "nowcast.benchmark.run", SimpleNamespace(benchmark=compare))
        monkeypatch.setattr("nowcast.data.archive.check_there", lambda *_: None)
        assert benchmark.benchmark(deployments.BENCHMARK) == str(tmp_path / "leaderboard.md")


def test_the_life_of_a_model_by_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(models, "create_markdown_artifact", lambda *, key, markdown: shown.append(markdown))
    file = tmp_path / "operations.yaml"
    file.write_text(yaml.safe_dump(test_promotion.begin(tmp_path).model_dump(mode="json")))
    third = checkpoints.save(tmp_path / "third.safetensors", seed=3)
    assert models.register.fn(str(file), str(third), name="third") == "third"
    assert [line.split(";")[0] for line in models.compare.fn(str(file))] == [
        "new against old: cannot tell yet, needs about 4 more runs",
        "third against old: cannot tell yet, needs about 4 more runs",
    ]
    assert shown[0].startswith("**new against old")
    assert models.promote.fn(str(file), "third", force=True, reason="a leak") == "a leak"
    assert models.rollback.fn(str(file)) == "old"
    assert models._markdown([{"lead min": "5", "MSE": "-0.1"}]) == ["| lead min | MSE |", "|---|---|", "| 5 | -0.1 |"]


def test_a_training_registers_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, made = tmp_path / "operations.yaml", checkpoints.save(tmp_path / "best.safetensors")
    settings = test_promotion.chain(tmp_path)
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(train, "concurrency", lambda *_, **__: nullcontext())
    for name in ("create_markdown_artifact", "progress_bar"):
        monkeypatch.setattr(train, name, lambda *_, **__: None)
    monkeypatch.setattr("nowcast.data.archive.check_there", lambda *_: None)
    monkeypatch.setitem(sys.modules, "nowcast.training.run", SimpleNamespace(train=lambda *_, **__: made))
    train.convlstm.fn(str(tmp_path / "recipe.yaml"), score_windows=0, register_in=str(file))
    (event,) = promotion.open_registry(settings).events
    assert (event.what, event.why) == ("registered", "trained by train-convlstm")
