"""Error messages: an expected error is shown as one sentence, a programming error with its traceback."""

from __future__ import annotations

import errno
import logging
import re
import traceback

import typer
from typer.core import TyperGroup

from nowcast.core.errors import NowcastError
from nowcast.core.log import LogFormat

DISTRIBUTION = "nowcast-radar"
BUNDLES = ("all", "test")
"""Extras that include others."""
NAMED_OTHERWISE = {"skimage": "scikit-image"}
"""Import name -> distribution name, where they differ."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
WRONG = 2
"""Exit code of errors that the user can correct; that of a programming error is 1."""
log = logging.getLogger(__name__)


class Commands(TyperGroup):
    """The commands; an error that is raised on purpose is shown as one sentence."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run a command, and show an expected error as one sentence."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            sentence = explained(error)
            if sentence is None:
                raise
            _show(error, sentence, debug=ctx.params["debug"], form=ctx.params["log_format"])
            raise typer.Exit(WRONG) from None


def explained(error: Exception) -> str | None:
    """Return the sentence of an error that the user can correct; None for a programming error."""
    if isinstance(error, NowcastError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return f"MissingExtra: {error.name} is not installed: pip install '{DISTRIBUTION}[{extra}]'"
    if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_FULL):
        return f"{type(error).__name__}: {_place(error)}{error.strerror}."
    return None


def extra_of(module: str) -> str | None:
    """Find the extra that installs a library."""
    from importlib.metadata import PackageNotFoundError, requires  # not for every command

    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    top = module.partition(".")[0]
    name = NAMED_OTHERWISE.get(top, top).lower().replace("_", "-")
    found = (re.match(r"([\w.-]+).*;\s*extra == ['\"]([\w-]+)['\"]", line) for line in needed)
    extras = [match[2] for match in found if match and match[1].lower().replace("_", "-") == name]
    return next((extra for extra in extras if extra not in BUNDLES), None)


def _place(error: OSError) -> str:
    return "" if error.filename is None else f"{error.filename}: "


def _show(error: Exception, sentence: str, *, debug: bool, form: LogFormat) -> None:
    if form is LogFormat.JSON:
        log.error(sentence, exc_info=error if debug else None)
        return
    if debug:
        traceback.print_exception(error)
    typer.secho(sentence, fg="red", err=True)
