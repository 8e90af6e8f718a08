"""The table of deployments, the file made from it, and the box that serves it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from urllib.request import urlopen

import psutil
import pytest
import yaml
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from nowcast import config
from nowcast.core.errors import ConfigError, DeploymentError
from nowcast.flows import deployments, processes, up
from nowcast.flows.deployments import Deployment
from nowcast.flows.processes import Mark
from nowcast.models import MODELS, model_class
from tests import synthetic
from tests.conftest import OPERATIONS, free_port
from tests.paths import ROOT

TABLE = deployments.deployments(deployments.SHIPPED)


# --- the table ------------------------------------------------------------------------------------


def test_every_network_with_weights_has_a_training() -> None:
    trained = {row.flow.removeprefix("train-") for row in TABLE if row.flow.startswith("train-")}
    assert trained == {name for name in MODELS if model_class(name).trainable}
    tuned = {row.flow.removeprefix("finetune-") for row in TABLE if row.flow.startswith("finetune-")}
    assert tuned == {"gs2pm"} == {name for name in MODELS if len(model_class(name).tunings) > 1}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.flow)
def test_row_points_at_its_flow_and_fits_its_parameters(row: Deployment) -> None:
    flow = load_flow_from_entrypoint(row.entrypoint, use_placeholder_flow=False)
    assert flow.name == row.flow
    assert set(row.parameters) <= set(flow.parameters.properties)
    if recipe := row.parameters.get("recipe"):
        assert f"train-{config.load(config.Recipe, recipe).model.partition(':')[0]}" == row.flow


def test_cycle_runs_at_the_interval_of_its_operations_file(operations: Path) -> None:
    row = deployments.deployments(str(operations), ["every_minutes=10"])[0]
    assert (row.flow, row.every_minutes, row.collision) == ("cycle", 10, "CANCEL_NEW")
    assert row.parameters == {"config": str(operations), "overrides": ["every_minutes=10"]}


def test_served_cycle_has_schedule_and_limit() -> None:
    served = deployments.served(TABLE[0])
    assert (served.full_name, served.parameters) == ("cycle/default", {"config": deployments.SHIPPED})
    assert deployments.served(TABLE[0], "knmi").full_name == "cycle/knmi"
    (schedule,) = served.schedules
    assert (schedule.schedule.interval.total_seconds(), schedule.slug) == (300, "cycle")
    assert served.concurrency_limit == 1
    assert served.concurrency_options.collision_strategy == "CANCEL_NEW"


def test_served_training_is_started_by_hand() -> None:
    served = deployments.served(next(row for row in TABLE if row.flow == "train-convlstm"))
    assert not served.schedules
    assert served.concurrency_limit is None


# --- prefect.yaml ---------------------------------------------------------------------------------


def test_prefect_yaml_is_the_table() -> None:
    assert deployments.PREFECT_YAML.read_text() == deployments.prefect_yaml(), (
        "run: python -m nowcast.flows.deployments"
    )


def test_prefect_yaml_holds_only_keys_that_prefect_reads() -> None:
    """Prefect ignores a misspelt key; schedules alone are strict by themselves."""
    document = yaml.safe_load(deployments.PREFECT_YAML.read_text())
    assert set(document) <= set(PrefectYamlModel.model_fields)
    PrefectYamlModel.model_validate(document)
    for entry in document["deployments"]:
        assert set(entry) <= set(DeploymentConfig.model_fields)
        assert set(entry["work_pool"]) <= set(WorkPoolConfig.model_fields)
        assert set(entry.get("concurrency_limit", {})) <= set(ConcurrencyLimitSpec.model_fields)
        for schedule in entry["schedules"]:
            RawScheduleConfig.model_validate(schedule)


# --- the box, in parts ----------------------------------------------------------------------------


def test_refused_settings_start_nothing(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    monkeypatch.setattr(up, "_start", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match=r"feed\.reader"):
        up.up(operations, overrides=["feed.reader=nix"])


def test_taken_page_port_starts_nothing(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    monkeypatch.setattr(up, "_start", lambda *_, **__: pytest.fail("started"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(DeploymentError, match="choose another port"):
        up.up(operations, page_port=taken.getsockname()[1])


@pytest.mark.parametrize(("body", "healthy"), [(b"true", True), (b"<html>", False)])
def test_only_a_healthy_prefect_server_answers(body: bytes, healthy: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        assert up.answers(f"http://127.0.0.1:{server.server_port}/api") is healthy


def test_nobody_answers_on_a_closed_port() -> None:
    assert not up.answers(f"http://127.0.0.1:{free_port()}/api")


def test_child_knows_the_server_and_the_shell_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
    out = tmp_path / "environment"
    script = f"import os, json; open({str(out)!r}, 'w').write(json.dumps(dict(os.environ)))"
    mark = Mark.mine("http://box/api", "knmi")
    up._start([sys.executable, "-c", script], mark).wait(20)
    environment = yaml.safe_load(out.read_text())
    assert environment["PREFECT_API_URL"] == "http://box/api"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert environment["PREFECT_PLUGINS_ENABLED"] == "false"
    assert processes._read(environment[processes.VARIABLE]) == mark


def test_process_that_ignores_the_signal_is_killed() -> None:
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        processes.end([psutil.Process(child.pid)], seconds=0.2)
        assert not psutil.pid_exists(child.pid)


def test_mark_of_another_up_with_the_same_number_is_an_orphans() -> None:
    mark = Mark.mine("http://box/api", "knmi")
    assert not mark.orphaned
    assert replace(mark, started="17").orphaned
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert replace(mark, up=ended.pid).orphaned


def test_the_cycle_has_a_place_of_its_own_and_trainings_take_turns() -> None:
    assert [row.flow for row in TABLE if row.pool == "cycle"] == ["cycle"]
    assert {row.pool for row in TABLE if row.flow.startswith(("train-", "finetune-", "benchmark"))} == {"gpu"}
    assert deployments.RUNS_AT_ONCE["gpu"] == 1
    assert deployments.RUNS_AT_ONCE["cycle"] is None


def test_part_that_ends_by_itself_is_named() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(DeploymentError, match="The runner ended by itself with code 3"):
        up._watch({"runner": ended}, "http://box/api")


def test_a_server_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "SILENT_SECONDS", -1)
    with pytest.raises(DeploymentError, match="has not answered for"):
        up._watch({}, f"http://127.0.0.1:{free_port()}/api")


# --- domains that share a machine -----------------------------------------------------------------


def test_a_domain_is_named_after_its_file_or_as_it_says(operations: Path) -> None:
    settings = config.load(config.Operations, operations)
    assert settings.domain("/srv/My chain_2.yaml") == "my-chain-2"
    assert config.load(config.Operations, operations, ["name=west"]).domain("a.yaml") == "west"
    with pytest.raises(ConfigError, match="name"):
        config.load(config.Operations, operations, ["name=West Coast"])


def test_the_deployments_of_another_domain_bear_its_name(operations: Path) -> None:
    document = yaml.safe_load(deployments.prefect_yaml(str(operations), "west"))
    assert {entry["name"] for entry in document["deployments"]} == {"west"}
    assert document["deployments"][0]["parameters"] == {"config": str(operations)}


def test_the_page_takes_the_next_free_port_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(up, "PAGE_PORT", port)
        assert up._page_port("127.0.0.1", None) > port
        with pytest.raises(DeploymentError, match="choose another port"):
            up._page_port("127.0.0.1", port)


def test_run_without_a_server_says_how_to_start_one() -> None:
    nowhere = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
    with temporary_settings(nowhere), pytest.raises(DeploymentError, match="start one: nowcast up"):
        up.run_deployment_by_name("cycle")


# --- the box, running -----------------------------------------------------------------------------


@dataclass
class Box:
    """A running ``nowcast up``: its addresses, its process, and what it prints."""

    api: str
    page: str
    operations: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def domain(self) -> str:
        return self.operations.stem

    def start(self) -> Box:
        """Types the command, in a folder with packages that are called as parts of ours are."""
        theirs = self.operations.parent / "project"
        theirs.mkdir(exist_ok=True)
        for name in ("models", "flows", "configs"):
            (theirs / f"{name}.py").write_text("raise ImportError('somebody else took this for his own')")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(theirs), str(ROOT)])}
        ports = [f"--port={port_of(self.api)}", f"--page-port={port_of(self.page)}"]
        command = [sys.executable, "-m", "nowcast.cli", "up", str(self.operations), *ports]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=theirs, stdout=log, stderr=log, env=environment)
        return self

    def ready(self) -> Box:
        """Waits until a cycle of this process has run."""
        wait_for(lambda: up.answers(self.api), what="a Prefect server", log=self.log)
        with temporary_settings({PREFECT_API_URL: self.api}):
            wait_for(lambda: _rows(self.domain) == len(TABLE), what="table of deployments", log=self.log)
            before = _cycles(self.domain)
            wait_for(lambda: _cycles(self.domain) > before, what=f"cycle of {self.domain}", log=self.log)
        return self

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=90)

    def parts(self) -> set[int]:
        """Lists the living processes of this domain, without the server."""
        return {
            process.pid for process, mark in processes.marked() if mark.site == str(self.operations.parent / "site")
        }

    def runner(self) -> set[int]:
        return {number for number in self.parts() if "serve" in psutil.Process(number).cmdline()}


def port_of(address: str) -> str:
    return address.split(":")[2].partition("/")[0]


def domain(folder: Path, api: str) -> Box:
    """A domain whose feed folder is empty."""
    (folder / "feed").mkdir(parents=True)
    file = folder / f"{folder.name}.yaml"
    file.write_text(OPERATIONS.format(folder=folder))
    return Box(api, f"http://127.0.0.1:{free_port()}", file, folder / "up.log")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Server, deployments and page as real processes, ended by the signal that a service manager sends."""
    west = domain(tmp_path_factory.mktemp("box") / "west", f"http://127.0.0.1:{free_port()}/api").start()
    try:
        yield west.ready()
    finally:
        west.stop()
    assert not west.parts()
    assert not up.answers(west.api)


def wait_for(happened: Callable[[], object], *, looks: int = 240, what: str, log: Path) -> None:
    """Polls until something happened; what was printed is the reason if it did not."""
    for _ in range(looks):
        if happened():
            return
        sleep(0.5)
    pytest.fail(f"no {what} after {looks} looks:\n{log.read_text()}")


def _prefect(box: Box, command: str) -> str:
    """Types a command into a shell in the repository, where its pyproject.toml turns the plug-in on."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_PLUGINS_ENABLED"}
    program = [str(Path(sys.executable).with_name("prefect")), *command.split()]
    return subprocess.run(
        program, env=environment | {"PREFECT_API_URL": box.api}, cwd=ROOT, check=True, text=True, capture_output=True
    ).stdout


@pytest.mark.prefect
@pytest.mark.slow
@pytest.mark.xdist_group("box")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestBox:
    @pytest.fixture(autouse=True)
    def _api(self, box: Box) -> Iterator[None]:
        with temporary_settings({PREFECT_API_URL: box.api}):
            yield

    @pytest.mark.parametrize("name", ["train-gs2pm", "train-gs2pm/default"])
    def test_short_and_full_name_start_a_run(self, box: Box, name: str) -> None:
        assert "Created flow run" in _prefect(box, f"deployment run {name} --start-in 2h")

    @pytest.mark.parametrize(
        ("parameters", "fault"),
        [
            ("train-gs2pm -p minutes=0", "Validation failed for field 'minutes'"),
            ("finetune-gs2pm -p base=a.safetensors -p store=b -p method=lora", "Validation failed for field 'method'"),
            ("train-gs2pm -p epoch=3", "not found on the deployment: 'epoch'"),
        ],
    )
    def test_a_bad_parameter_is_refused_at_once(self, box: Box, parameters: str, fault: str) -> None:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            _prefect(box, f"deployment run {parameters}")
        assert fault in refused.value.stdout + refused.value.stderr

    def test_run_by_name(self) -> None:
        known = ", ".join(sorted(row.flow for row in TABLE))
        with pytest.raises(DeploymentError, match=rf"No deployment 'train-nix'; known: {known}\.$"):
            up.run_deployment_by_name("train-nix")
        with pytest.raises(DeploymentError, match="cycle is not deployed for 'east'; known: default, west"):
            up.run_deployment_by_name("cycle/east")
        assert up.run_deployment_by_name("cycle").deployment_id

    def test_trainings_take_turns_and_a_cycle_does_not_wait_for_them(self, box: Box) -> None:
        """Those that wait have no process; beside one that hangs, scheduled cycles complete."""
        store = synthetic.make_store(box.operations.parent / "archive", range(60))
        with concurrency("gpu", strict=True):  # the first training waits for it with its process
            runs = [up.run_deployment_by_name("train-gs2pm", {"store": store}) for _ in range(6)]
            _beside_trainings(box, runs)
        with get_client(sync_client=True) as client:
            for run in reversed(runs):
                client.set_flow_run_state(run.id, Cancelling(), force=True)

    def test_page_is_served(self, box: Box) -> None:
        (box.operations.parent / "site" / "latest.json").write_text("{}")
        with urlopen(f"{box.page}/latest.json", timeout=10) as response:
            assert response.read() == b"{}"

    def test_a_domain_that_is_up_is_not_started_again(self, box: Box) -> None:
        command = [sys.executable, "-m", "nowcast.cli", "up", str(box.operations)]
        again = subprocess.run(command, text=True, capture_output=True, timeout=120)
        assert again.returncode == 2
        assert "domain 'west' publishes there" in again.stderr

    def test_a_second_domain_leaves_the_first_alone_and_replaces_its_own_orphans(self, box: Box) -> None:
        """Both run their cycles; one is killed, which leaves its runner: the next one ends it, and nothing else."""
        east = domain(box.operations.parents[1] / "east", box.api).start()
        try:
            east.ready()
            before, west = _cycles("west"), box.runner()
            wait_for(lambda: _cycles("west") > before, what="cycle of the first domain", log=box.log)
            assert _parameters("cycle/west") == {"config": str(box.operations)}
            assert _parameters("cycle/east") == {"config": str(east.operations)}
            assert _parameters("cycle/default") == {"config": str(box.operations)}
            east.process.kill()
            east.process.wait()
            left = east.parts()
            assert left
            east.start().ready()
            assert not left & {process.pid for process, _ in processes.marked()}
            assert west == box.runner()
        finally:
            east.stop()
        assert "The Prefect server goes on for west." in east.log.read_text()
        assert up.answers(box.api)
        assert not east.parts()


def _beside_trainings(box: Box, runs: list[FlowRun]) -> None:
    wait_for(lambda: _states(runs).count("RUNNING") == 1, what="training", log=box.log)
    before = _cycles("west")
    wait_for(lambda: _cycles("west") >= before + 2, what="cycle beside a training", log=box.log)
    assert sorted(_states(runs)) == ["RUNNING"] + ["SCHEDULED"] * 5


def _states(runs: list[FlowRun]) -> list[str]:
    with get_client(sync_client=True) as client:
        return [client.read_flow_run(run.id).state_type.value for run in runs]


def _rows(name: str) -> int:
    return sum(name in names for names in up.deployed().values())


def _parameters(name: str) -> dict[str, object]:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name).parameters


def _cycles(name: str) -> int:
    """Counts the completed cycles of a domain that its schedule started, not a hand."""
    completed = FlowRunFilterState(type=FlowRunFilterStateType(any_=["COMPLETED"]))
    with get_client(sync_client=True) as client:
        mine = FlowRunFilterDeploymentId(any_=[client.read_deployment_by_name(f"cycle/{name}").id])
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=completed, deployment_id=mine))
    return sum(run.auto_scheduled for run in runs)
