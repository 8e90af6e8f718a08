"""The table of deployments, the file made from it, and the box that serves it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from urllib.request import urlopen

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
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings

from nowcast import config
from nowcast.core.errors import ConfigError, DeploymentError
from nowcast.flows import deployments, up
from nowcast.flows.deployments import Deployment
from nowcast.models import MODELS, model_class
from tests.conftest import free_port
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
    monkeypatch.setattr(up, "_child", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match=r"feed\.reader"):
        up.up(operations, overrides=["feed.reader=nix"])


def test_taken_page_port_starts_nothing(monkeypatch: pytest.MonkeyPatch, operations: Path) -> None:
    monkeypatch.setattr(up, "_child", lambda *_, **__: pytest.fail("started"))
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
    with up._child([sys.executable, "-c", script], "http://box/api") as child:
        child.wait(20)
    environment = yaml.safe_load(out.read_text())
    assert environment["PREFECT_API_URL"] == "http://box/api"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert environment["PREFECT_PLUGINS_ENABLED"] == "false"


def test_child_that_ignores_the_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "STOP_SECONDS", 0.2)
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    with up._child([sys.executable, "-c", script], "http://box/api", stdout=subprocess.PIPE) as child:
        child.stdout.readline()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL


def test_part_that_ends_by_itself_is_named() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(DeploymentError, match="The runner ended by itself with code 3"):
        up._watch({"runner": ended})


def test_run_without_a_server_says_how_to_start_one() -> None:
    nowhere = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
    with temporary_settings(nowhere), pytest.raises(DeploymentError, match="start one: nowcast up"):
        up.run_deployment_by_name("cycle")


# --- the box, running -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """Addresses of a running ``nowcast up``, and what it prints."""

    api: str
    page: str
    log: Path


@pytest.fixture(scope="module")
def box(operations: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Server, deployments and page as real processes, ended by the signal that a service manager sends.

    They start in a folder with packages that are called as parts of ours are, and must not take them for those.
    """
    theirs = tmp_path_factory.mktemp("project")
    for name in ("models", "flows", "configs"):
        (theirs / f"{name}.py").write_text("raise ImportError('somebody else took this for his own')")
    port, page_port = free_port(), free_port()
    started = Box(f"http://127.0.0.1:{port}/api", f"http://127.0.0.1:{page_port}", operations.parent / "up.log")
    command = "import sys; from nowcast.flows.up import up; "
    command += "up(sys.argv[1], port=int(sys.argv[2]), page_port=int(sys.argv[3]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(theirs), str(ROOT)])}
    with started.log.open("wb") as log:
        arguments = [sys.executable, "-c", command, str(operations), str(port), str(page_port)]
        process = subprocess.Popen(arguments, cwd=theirs, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: up.answers(started.api), what="a Prefect server", log=started.log)
        with temporary_settings({PREFECT_API_URL: started.api}):
            wait_for(lambda: len(up._known()) >= len(TABLE), what="table of deployments", log=started.log)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)


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

    def test_scheduled_cycle_completes(self, box: Box) -> None:
        """A broken scheduler leaves everything else working: only a run that it made shows that it runs."""
        completed = FlowRunFilterState(type=FlowRunFilterStateType(any_=["COMPLETED"]))

        def scheduled() -> bool:
            with get_client(sync_client=True) as client:
                runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=completed))
            return any(run.auto_scheduled and run.state_name == "Skipped" for run in runs)

        wait_for(scheduled, what="scheduled cycle", log=box.log)

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
        assert up.run_deployment_by_name("cycle").deployment_id

    def test_page_is_served(self, box: Box, operations: Path) -> None:
        (operations.parent / "site" / "latest.json").write_text("{}")
        with urlopen(f"{box.page}/latest.json", timeout=10) as response:
            assert response.read() == b"{}"
