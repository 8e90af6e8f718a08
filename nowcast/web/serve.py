"""Serves a published site: a static file server with the cache headers that the page relies on.

Any other web server or object store works too, if it makes browsers revalidate ``*.json``.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from nowcast.core.errors import BadInput

IMMUTABLE = ("observed/", "runs/", "maps/", "base-")
"""Paths whose names contain the digest of their content."""
FOREVER = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"
"""Browsers may keep a copy but ask every time whether it is still the newest."""


def serve(directory: Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a site folder until interrupted.

    Args:
        directory: Folder that ``publish`` writes.
        host: Address to listen on; 0.0.0.0 for all.
        port: TCP port.

    Raises:
        BadInput: If there is no such folder.
    """
    uvicorn.run(application(directory), host=host, port=port, log_level="warning")


def application(directory: Path) -> Starlette:
    """Build the server as an ASGI application, for other servers and for tests.

    Raises:
        BadInput: If there is no such folder.
    """
    if not directory.is_dir():
        raise BadInput(directory, "is not a folder", "publish a site there first")
    return Starlette(routes=[Mount("/", _Site(directory=directory, html=True))])


class _Site(StaticFiles):
    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = FOREVER if _immutable(path) and response.status_code < 400 else REVALIDATE
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Look a path up, but hide unfinished files and locks, which begin with a dot."""
        hidden = any(part.startswith(".") for part in Path(path).parts)
        return ("", None) if hidden else super().lookup_path(path)


def _immutable(path: str) -> bool:
    return path.startswith(IMMUTABLE) and path != "maps/index.json"
