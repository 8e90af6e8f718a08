"""One command for one machine: Prefect server, all deployments, the page.

nowcast up operations/knmi.yaml
nowcast run train-convlstm          # from another shell
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from rich.panel import Panel

from nowcast.core.errors import DeploymentError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

DEFAULT_API = "http://127.0.0.1:4200/api"
START_SECONDS = 120
"""Time in which the server must answer; creating its database takes a dozen seconds on a laptop."""
STOP_SECONDS = 30
"""Time in which a process must end its runs before it is killed."""
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",  # no run imports from the folder it starts in
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "nowcast",
}
"""Variables of the server and every run; those set in the shell take precedence."""
log = logging.getLogger(__name__)


def up(
    config: str | Path,
    *,
    overrides: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 4200,
    page_port: int = 8000,
    open_page: bool = False,
) -> None:
    """Run an operational chain until Ctrl-C or SIGTERM.

    Args:
        config: Operations file, or the name of a shipped one.
        overrides: Changes to it, as ``key=value``.
        host: Address that the server and the page listen on; 0.0.0.0 for all.
        port: Port of the Prefect server; one that answers there already is used, and left running.
        page_port: Port of the page.
        open_page: Show the page in a browser.

    Raises:
        ConfigError: If the operations file is refused; nothing is started then.
        DeploymentError: If the page's port is taken, the server does not start, or one of the processes ends by itself.
    """
    from nowcast import config as files
    from nowcast.operations import cycle
    from nowcast.web import serve

    settings, operations = cycle.load(config, overrides), str(files.find(config).resolve())
    near = "127.0.0.1" if host == "0.0.0.0" else host
    api, page = f"http://{near}:{port}/api", f"http://{near}:{page_port}"
    _refuse_taken(host, page_port)
    console = Console(stderr=True)
    with _stopped_by_signals(console), ExitStack() as stack:
        parts = {}
        if not answers(api):
            console.print(f"Starting a Prefect server on port {port} ...")
            parts["Prefect server"] = stack.enter_context(_server(host, port, api))
            _wait(api, parts["Prefect server"])
        parts["runner"] = stack.enter_context(_runner(api, operations, overrides))
        settings.site.mkdir(parents=True, exist_ok=True)
        address = {"host": host, "port": page_port}
        Thread(target=serve.serve, args=(settings.site,), kwargs=address, daemon=True).start()
        console.print(_welcome(settings.title, page, api))
        if open_page:
            webbrowser.open(page)
        _watch(parts)


def run_deployment_by_name(name: str, parameters: Mapping[str, Any] | None = None, *, watch: bool = False) -> FlowRun:
    """Start a run of the deployment called ``name/default``.

    Args:
        name: Name of the flow: train-convlstm.
        parameters: Override those of the deployment.
        watch: Wait until the run has ended.

    Raises:
        DeploymentError: If no server answers, if there is no such deployment (the message lists the known
            ones), or if the watched run did not complete.
    """
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    api = PREFECT_API_URL.value() or DEFAULT_API
    if not answers(api):
        raise DeploymentError(f"No Prefect server answers at {api}; start one: nowcast up.")
    with temporary_settings({PREFECT_API_URL: api}):
        try:
            seconds = None if watch else 0
            called = run_deployment(f"{name}/default", parameters=dict(parameters or {}), timeout=seconds)
        except ObjectNotFound:
            raise DeploymentError(f"No deployment {name!r}; known: {', '.join(_known())}.") from None
    run = cast("FlowRun", called)  # a coroutine only inside an event loop
    if watch and run.state and not run.state.is_completed():
        raise DeploymentError(f"{name}: run {run.name} ended as {run.state.name}: {run.state.message}")
    return run


def _known() -> list[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return sorted(flow.name for flow in client.read_flows())


def answers(api: str) -> bool:
    """Whether a healthy Prefect server answers at ``api``; proxies are bypassed."""
    try:
        with build_opener(ProxyHandler({})).open(f"{api}/health", timeout=5) as response:
            return bool(response.read() == b"true")
    except OSError:
        return False


# --- processes ------------------------------------------------------------------------------------


def _server(host: str, port: int, api: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    prefect = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "server", "start"]
    return _child([*prefect, "--host", host, "--port", str(port)], api, stdout=subprocess.DEVNULL)


def _runner(api: str, operations: str, overrides: Sequence[str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return _child([sys.executable, "-P", "-m", "nowcast.flows.deployments", "serve", operations, *overrides], api)


@contextmanager
def _child(command: Sequence[str], api: str, *, stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block.

    It gets a session of its own: Ctrl-C must reach only this process, so that the runner ends before the server it
    reports to. The plug-in, meant for interactive shells, is off.
    """
    environment = ENVIRONMENT | os.environ | {"PREFECT_API_URL": api, "PREFECT_PLUGINS_ENABLED": "false"}
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            log.warning("%s does not end and is killed", " ".join(command), exc_info=True)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _wait(api: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = monotonic() + START_SECONDS
    while not answers(api):
        _refuse_ended({"Prefect server": server})
        if monotonic() > deadline:
            raise DeploymentError(f"The Prefect server does not answer at {api} after {START_SECONDS} s.")
        sleep(0.5)


def _watch(parts: Mapping[str, subprocess.Popen[bytes]]) -> NoReturn:
    """Wait until a process ends, and raise: a failure must be noticed, and a service manager can restart everything."""
    while True:
        _refuse_ended(parts)
        sleep(1)


def _refuse_ended(parts: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for name, child in parts.items():
        if child.poll() is not None:
            raise DeploymentError(
                f"The {name} ended by itself with code {child.returncode}; its last lines stand above."
            )


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeploymentError(
                f"The page cannot listen on {host}:{port}: {error.strerror}; choose another port."
            ) from None


@contextmanager
def _stopped_by_signals(console: Console) -> Iterator[None]:
    """End the block without a traceback at SIGTERM, which a service manager sends, as at Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopped.")
    finally:
        signal.signal(signal.SIGTERM, before)


def _welcome(title: str, page: str, api: str) -> Panel:
    lines = [
        f"Page      {page}",
        f"Prefect   {api.removesuffix('/api')}",
        "Train     prefect deployment run train-convlstm   (or: nowcast run train-convlstm)",
        f"Shell     export PREFECT_API_URL={api} PREFECT_PLUGINS_ENABLED=1   (outside the repository)",
        "Stop      Ctrl-C",
    ]
    return Panel("\n".join(lines), title=title, expand=False)
