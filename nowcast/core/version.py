"""Which version of this code runs."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "nowcast-radar"
CHECKOUT = Path(__file__).parents[2]
"""The repository, where the package was not installed from a wheel."""


@cache
def code_version() -> str:
    """Find the installed version; in a checkout with its present commit, and ``.dirty`` where files differ from it.

    Installing a checkout notes the version once, and it goes on changing: forecasts and checkpoints made in it say
    what made them all the same.
    """
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        installed = "0"
    if not (CHECKOUT / ".git").exists() or not (commit := _git("rev-parse", "--short", "HEAD")):
        return installed
    changed = ".dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{installed.partition('+')[0]}+g{commit}{changed}"


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", "-C", CHECKOUT, *arguments], capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
