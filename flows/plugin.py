"""Prefect plug-in that lets ``prefect deployment run train-convlstm`` mean ``train-convlstm/default``.

Prefect splits the name at the slash before it asks the server, so no server setting can add the default.
The hook runs while ``prefect`` is imported, before its command line is read, and changes only that.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect.plugins import HookContext, register_hook

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"


def rewrite(argv: list[str]) -> list[str]:
    """Append ``/default`` to a bare deployment name in a command line."""
    for place, words in enumerate(zip(argv[1:], argv[2:], argv[3:], strict=False), start=1):
        group, command, name = words
        if group in {"deployment", "deployments"} and command in {"run", "inspect"}:
            bare = "/" not in name and not name.startswith("-")
            return [*argv[: place + 2], f"{name}/default", *argv[place + 3 :]] if bare else argv
    return argv


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Rewrite the command line of the ``prefect`` program, and of no other that imports Prefect."""
    if Path(sys.argv[0]).stem == "prefect" or sys.orig_argv[1:3] == ["-m", "prefect"]:
        sys.argv[:] = rewrite(sys.argv)
