"""One command for one machine: Prefect server, all deployments, the page.

nowcast up operations/knmi.yaml
nowcast run train-convlstm          # from another shell

Each domain has its own process of this kind. Those of one machine share the server; deployments bear the domain's
name, and those of the first domain also the name ``default``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from rich.panel import Panel

from nowcast.core.errors import DeploymentError
from nowcast.flows import processes
from nowcast.flows.processes import STOP_SECONDS, Mark

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

DEFAULT_API = "http://127.0.0.1:4200/api"
START_SECONDS = 120
"""Time in which the server must answer; creating its database takes a dozen seconds on a laptop."""
SILENT_SECONDS = 60
"""Time without an answer after which a server that another domain started counts as lost."""
DEFAULT = "default"
"""Second name of the deployments of a server's first domain, which the plug-in appends to the name of a flow."""
PAGE_PORT = 8000
WATCH_SECONDS = 2.0
"""Between two looks at the processes."""
PAGE = 200
"""Most rows that the server lists at once."""
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",  # no run imports from the folder it starts in
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # with SQLite a busy machine else loses states: "database is locked"
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "nowcast",
}
"""Variables of the server and every run; those set in the shell take precedence."""


def up(
    config: str | Path,
    *,
    overrides: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 4200,
    page_port: int | None = None,
    open_page: bool = False,
) -> None:
    """Run an operational chain until Ctrl-C or SIGTERM.

    Args:
        config: Operations file, or the name of a shipped one.
        overrides: Changes to it, as ``key=value``.
        host: Address that the server and the page listen on; 0.0.0.0 for all.
        port: Port of the Prefect server, which the domains of a machine share: one that answers there is used.
        page_port: Port of the page; None: that of the settings.
        open_page: Show the page in a browser.

    Raises:
        ConfigError: If the operations file is refused; nothing is started then.
        DeploymentError: If the domain is up already, or another has its name or page; if the page's port is taken, the
            server does not start, or one of the processes ends by itself.
    """
    from nowcast import config as files
    from nowcast.operations import cycle, issuing
    from nowcast.web import serve

    settings, operations = cycle.load(config, overrides), str(files.find(config).resolve())
    near = "127.0.0.1" if host == "0.0.0.0" else host
    api = f"http://{near}:{port}/api"
    mark = Mark.mine(api, settings.domain(operations), str(settings.site.resolve()))
    _refuse_same(mark)
    page_port = _page_port(host, page_port or settings.page_port)
    console = Console(stderr=True)
    with _stopped_by_signals(console), ExitStack() as stack:
        _end_orphans(mark, console)
        parts = {}
        if child := stack.enter_context(_server(host, port, api, console)):
            parts["Prefect server"] = child
        mark = replace(mark, short=not any(other.short for other in _others(api)))
        names = [mark.domain, DEFAULT] if mark.short else [mark.domain]
        parts["runner"] = stack.enter_context(_runner(mark, names, operations, overrides))
        stack.callback(issuing.worker(settings).retire)
        settings.site.mkdir(parents=True, exist_ok=True)
        address = {"host": host, "port": page_port}
        Thread(target=serve.serve, args=(settings.site,), kwargs=address, daemon=True).start()
        page = f"http://{near}:{page_port}"
        console.print(_welcome(settings.title, page, api, names))
        if open_page:
            webbrowser.open(page)
        _watch(parts, api)


def run_deployment_by_name(name: str, parameters: Mapping[str, Any] | None = None, *, watch: bool = False) -> FlowRun:
    """Start a run of a deployment.

    Args:
        name: Name of the flow, ``train-convlstm``, with that of the domain where a server has several: ``cycle/knmi``.
        parameters: Override those of the deployment.
        watch: Wait until the run has ended.

    Raises:
        DeploymentError: If no server answers, if there is no such deployment (the message lists the known
            ones), or if the watched run did not complete.
    """
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    api = PREFECT_API_URL.value() or DEFAULT_API
    if not answers(api):
        raise DeploymentError(f"No Prefect server answers at {api}; start one: nowcast up.")
    with temporary_settings({PREFECT_API_URL: api}):
        seconds = None if watch else 0
        called = run_deployment(_full(name), parameters=dict(parameters or {}), timeout=seconds)
    run = cast("FlowRun", called)  # a coroutine only inside an event loop
    if watch and run.state and not run.state.is_completed():
        raise DeploymentError(f"{name}: run {run.name} ended as {run.state.name}: {run.state.message}")
    return run


def _full(name: str) -> str:
    """Find the deployment that a name means: that of the first domain where none is named."""
    known = deployed()
    flow, _, domain = name.partition("/")
    domains = known.get(flow, [])
    if not domains:
        raise DeploymentError(f"No deployment {name!r}; known: {', '.join(sorted(known))}.")
    if not domain:
        domain = DEFAULT if DEFAULT in domains else domains[0]
    if domain not in domains:
        raise DeploymentError(f"{flow} is not deployed for {domain!r}; known: {', '.join(domains)}.")
    return f"{flow}/{domain}"


def deployed() -> dict[str, list[str]]:
    """Map each flow of the server to the names of its deployments."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in _all(client.read_flows)}
        names: dict[str, list[str]] = {}
        for found in _all(client.read_deployments):
            names.setdefault(flows[found.flow_id], []).append(found.name)
    return names


def _all(read: Callable[..., Sequence[Any]]) -> list[Any]:
    """Read page after page of what the server lists."""
    found: list[Any] = []
    while page := read(limit=PAGE, offset=len(found)):
        found += page
        if len(page) < PAGE:
            break
    return found


def answers(api: str) -> bool:
    """Whether a healthy Prefect server answers at ``api``; proxies are bypassed."""
    try:
        with build_opener(ProxyHandler({})).open(f"{api}/health", timeout=5) as response:
            return bool(response.read() == b"true")
    except OSError:
        return False


# --- domains that share a machine -----------------------------------------------------------------


def _refuse_same(mine: Mark) -> None:
    """Refuse a domain that is up, and one with the name or the page of another that is."""
    for _, other in processes.marked():
        if other.site == mine.site and not other.orphaned:
            raise DeploymentError(
                f"{mine.site}: domain {other.domain!r} publishes there, by process {other.up}; end it."
            )
        if (other.api, other.domain) == (mine.api, mine.domain) and other.site != mine.site:
            raise DeploymentError(
                f"A domain {mine.domain!r} runs already, with its page in {other.site}; "
                "give this one another name: set name in its operations file, or name=... behind it."
            )


def _end_orphans(mine: Mark, console: Console) -> None:
    """End what a killed ``up`` of this domain left behind."""
    left = [process for process, mark in processes.marked() if mark.site == mine.site and mark.orphaned]
    if left:
        console.print(f"Ending {len(left)} processes of domain {mine.domain!r} whose `nowcast up` was killed ...")
        processes.end(left)


def _others(api: str) -> list[Mark]:
    """List the marks of the other domains that use a server."""
    me = os.getpid()
    return [mark for _, mark in processes.marked() if mark.api == api and mark.domain and mark.up != me]


def _page_port(host: str, wanted: int | None) -> int:
    if wanted:
        _refuse_taken(host, wanted)
        return wanted
    return next((port for port in range(PAGE_PORT, PAGE_PORT + 100) if not _taken(host, port)), PAGE_PORT)


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def _server(host: str, port: int, api: str, console: Console) -> Iterator[subprocess.Popen[bytes] | None]:
    """Use the server that answers, or start one; the last domain that uses it ends it."""
    ours = [process for process, mark in processes.marked() if mark.api == api and not mark.domain and mark.orphaned]
    if ours and not _others(api):
        console.print("Ending the Prefect server that a killed `nowcast up` left behind ...")
        processes.end(ours)
    child = None
    try:
        if not answers(api):
            console.print(f"Starting a Prefect server on port {port} ...")
            child = _start(_server_command(host, port), Mark.mine(api), stdout=subprocess.DEVNULL)
            _wait(api, child)
        yield child
    finally:
        if others := sorted({mark.domain for mark in _others(api) if not mark.orphaned}):
            console.print(f"The Prefect server goes on for {', '.join(others)}.")
        else:
            processes.end([process for process, mark in processes.marked() if mark.api == api and not mark.domain])


def _server_command(host: str, port: int) -> list[str]:
    prefect = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "server", "start"]
    return [*prefect, "--host", host, "--port", str(port)]


@contextmanager
def _runner(
    mark: Mark, names: Sequence[str], operations: str, overrides: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Execute the runs of a domain until the end of the block, then end them with it."""
    serve = [sys.executable, "-P", "-m", "nowcast.flows.deployments", "serve", ",".join(names)]
    child = _start([*serve, operations, *overrides], mark)
    try:
        yield child
    finally:
        for seconds in (STOP_SECONDS, 0.0):  # a run may have started while the first were ended
            processes.end([process for process, found in processes.marked() if found == mark], seconds=seconds)


def _start(command: Sequence[str], mark: Mark, *, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start a process that bears a mark.

    It gets a session of its own: Ctrl-C must reach only this process, so that the runner ends before the server it
    reports to. The plug-in, meant for interactive shells, is off.
    """
    environment = ENVIRONMENT | os.environ | {"PREFECT_API_URL": mark.api, "PREFECT_PLUGINS_ENABLED": "false"}
    environment |= mark.variables
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True)


def _wait(api: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = monotonic() + START_SECONDS
    while not answers(api):
        _refuse_ended({"Prefect server": server})
        if monotonic() > deadline:
            raise DeploymentError(f"The Prefect server does not answer at {api} after {START_SECONDS} s.")
        sleep(0.5)


def _watch(parts: Mapping[str, subprocess.Popen[bytes]], api: str) -> NoReturn:
    """Wait until a process ends, and raise: a failure must be noticed, and a service manager can restart everything."""
    answered = monotonic()
    while True:
        _refuse_ended(parts)
        if answers(api):
            answered = monotonic()
        elif monotonic() - answered > SILENT_SECONDS:
            raise DeploymentError(f"The Prefect server at {api} has not answered for {SILENT_SECONDS} s; start again.")
        sleep(WATCH_SECONDS)


def _refuse_ended(parts: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for name, child in parts.items():
        if child.poll() is not None:
            raise DeploymentError(
                f"The {name} ended by itself with code {child.returncode}; its last lines stand above."
            )


def _refuse_taken(host: str, port: int) -> None:
    if reason := _taken(host, port):
        raise DeploymentError(f"The page cannot listen on {host}:{port}: {reason}; choose another port.")


def _taken(host: str, port: int) -> str | None:
    """Say why one cannot listen on a port; None: one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return str(error.strerror)
    return None


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


def _welcome(title: str, page: str, api: str, names: Sequence[str]) -> Panel:
    short = "train-convlstm" if DEFAULT in names else f"train-convlstm/{names[0]}"
    lines = [
        f"Domain    {names[0]}",
        f"Page      {page}",
        f"Prefect   {api.removesuffix('/api')}",
        f"Train     prefect deployment run {short}   (or: nowcast run {short})",
        f"Shell     export PREFECT_API_URL={api} PREFECT_PLUGINS_ENABLED=1   (outside the repository)",
        "Stop      Ctrl-C",
    ]
    return Panel("\n".join(lines), title=title, expand=False)
