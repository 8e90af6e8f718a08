"""The server: cache headers, types, and what it does not hand out."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from nowcast.core.errors import BadInput
from nowcast.web.serve import application

RUN = "runs/20240501T1000Z/net-12345678/+005.png"
FILES = ("index.html", "latest.json", "scores.json", "app.js", "base-1234.json", RUN, "maps/index.json", ".cycle.lock")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    folder = tmp_path_factory.mktemp("site")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(folder), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    listener.close()


def get(address: tuple[str, int], path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize("path", ["/", "/latest.json", "/scores.json?123", "/app.js", "/maps/index.json"])
def test_what_changes_is_asked_for_again(address: tuple[str, int], path: str) -> None:
    response = get(address, path)
    assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")


@pytest.mark.parametrize("path", [f"/{RUN}", "/runs/20240501T1000Z/net-12345678/%2B005.png", "/base-1234.json"])
def test_what_never_changes_is_kept(address: tuple[str, int], path: str) -> None:
    response = get(address, path)
    assert response.status == 200 and "immutable" in response.headers["Cache-Control"]


def test_an_unchanged_manifest_costs_no_body(address: tuple[str, int]) -> None:
    tag = get(address, "/latest.json").headers["ETag"]
    again = get(address, "/latest.json", **{"If-None-Match": tag})
    assert (again.status, again.headers["Cache-Control"]) == (304, "no-cache")


def test_scripts_have_a_type_that_browsers_run(address: tuple[str, int]) -> None:
    assert "javascript" in get(address, "/app.js").headers["Content-Type"]


@pytest.mark.parametrize("path", ["/runs/none.png", "/.cycle.lock", "/../pyproject.toml"])
def test_missing_and_hidden_files_are_not_found(address: tuple[str, int], path: str) -> None:
    assert get(address, path).status == 404


def test_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="publish a site there first"):
        application(tmp_path / "none")
