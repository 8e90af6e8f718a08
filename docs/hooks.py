"""Pages of the reference that are made from the code when the site is built, so that they cannot go stale.

Tables of sources, networks, losses, scores, settings, commands and quantities come from the registries; the Python
pages list every module of every room for mkdocstrings; the picture of the rooms comes from the import graph.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rooms import floors, svg

import nowcast
from nowcast.benchmark.catalogue import networks, sources
from nowcast.cli import app
from nowcast.config import Benchmark, Operations, Recipe
from nowcast.config.base import FIELDS
from nowcast.core.units import QUANTITIES, UNIT_SIGNS
from nowcast.ingestion.quality import FLAGS
from nowcast.models import LOSSES, loss_options
from nowcast.verification.scores import SCORES, score

WORDS = {
    NoneType: "null",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "any",
}
"""Types as YAML calls them."""
UNDOCUMENTED_ROOMS = ("cli",)
"""Rooms without a page of modules: the command line has its own."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of the rooms to the menu."""
    pages = [{room: f"reference/rooms/{room}.md"} for room in _rooms()]
    menu = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    if not any("Modules by room" in entry for entry in menu):
        menu.append({"Modules by room": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    pages: dict[str, Callable[[], str]] = {
        "reference/python.md": python_page,
        "reference/commands.md": commands_page,
        "reference/settings.md": settings_page,
        "reference/readers.md": readers_page,
        "reference/networks.md": networks_page,
        "reference/losses.md": losses_page,
        "reference/scores.md": scores_page,
        "reference/quantities.md": quantities_page,
        "pictures/rooms.svg": svg,
    }
    for place, make in pages.items():
        files.append(File.generated(config, place, content=make()))
    for room in _rooms():
        files.append(File.generated(config, f"reference/rooms/{room}.md", content=room_page(room)))
    return files


# --- Python ---------------------------------------------------------------------------------------


def python_page() -> str:
    """What ``import nowcast`` offers, each name with the docstring of what it stands for."""
    lines = ["# Python", "", (inspect.getdoc(nowcast) or "").replace("::\n", ":\n"), ""]
    for name in getattr(nowcast, "__all__", ()):
        thing = getattr(nowcast, name)
        if callable(thing):
            lines += [
                f"::: {thing.__module__}.{thing.__qualname__}",
                "    options:",
                f"      heading: nowcast.{name}",
                f"      toc_label: {name}",
                "",
            ]
    return "\n".join(lines)


def room_page(room: str) -> str:
    """All modules of a room."""
    package = import_module(f"nowcast.{room}")
    lines = [f"# nowcast.{room}", "", _first_paragraph(package), ""]
    for name in _modules(package):
        lines += [f"::: {name}", ""]
    return "\n".join(lines)


def _rooms() -> list[str]:
    return [room for floor in floors() for room in floor if room not in UNDOCUMENTED_ROOMS]


def _modules(package: Any) -> Iterator[str]:
    """The package itself where it defines something, and the modules below it."""
    if _defines(package):
        yield package.__name__
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.name.rpartition(".")[2].startswith("_"):
            yield found.name


def _defines(module: Any) -> bool:
    """Whether a module has functions or classes of its own."""
    return any(getattr(thing, "__module__", "") == module.__name__ for thing in vars(module).values())


# --- registries -----------------------------------------------------------------------------------


def readers_page() -> str:
    """The table of sources."""
    rows = [(f"`{row['reader']}`", row["what"], row["step"], row["licence"]) for row in sources()]
    return _page(
        "Sources",
        "The names that `nowcast ingest NAME ...` takes; `auto` finds the reader. To add one, see "
        "[Add a reader](../how-to/add-reader.md).",
        _table(("name", "what", "step", "licence"), rows),
    )


def networks_page() -> str:
    """The table of networks and published sizes, and that of their papers and options."""
    rows = networks()
    costs = [
        (
            f"`{row['model']}`",
            _count(row["parameters"]),
            _count(row["published"]),
            row["GMACs"],
            row["lengths"],
            row["grid"],
        )
        for row in rows
    ]
    of_model = {str(row["model"]).partition(":")[0]: row for row in rows}
    papers = [
        (f"`{name}`", row["what"], row["paper"], row["licence"], _codes(str(row["options"]).split(", ")))
        for name, row in of_model.items()
    ]
    return _page(
        "Networks",
        "Names for `model` in a recipe, `--model` on the command line and `nowcast.build`. GMACs are billions of "
        "multiplications for one forecast of 64 x 64 pixels, or of the network's own grid, at the lengths of the "
        "paper. *Published* is the number of parameters that the paper's own code has.",
        _table(("name", "parameters", "published", "GMACs", "frames", "grid"), costs),
        "## Papers and options",
        "Options are the keywords of `nowcast.build(name, ...)` and the keys of `options` in a recipe.",
        _table(("name", "what", "paper", "official weights", "options"), papers),
    )


def losses_page() -> str:
    """The table of losses."""
    rows = []
    for name, place in LOSSES.items():
        module, _, function = place.partition(":")
        thing = getattr(import_module(f"nowcast.models.{module}"), function)
        options = [f"`{key}`{' (needed)' if needed else ''}" for key, needed in loss_options(name).items()]
        rows.append((f"`{name}`", _first_paragraph(thing), ", ".join(options)))
    return _page(
        "Losses",
        "Values of `loss` in a recipe: one name, or a list of parts such as `[own, {name: spectral, weight: 0.1}]`. "
        "`own` is the loss of the network's paper. Limits are in physical units. To add one, see "
        "[Add a loss](../how-to/add-loss.md).",
        _table(("name", "what", "options"), rows),
    )


def scores_page() -> str:
    """The table of scores."""
    rows = [(f"`{name}`", _first_paragraph(score(name))) for name in SCORES]
    return _page(
        "Scores",
        "Counts and sums are stored; these ratios are made when they are read, after adding up. To add one, see "
        "[Add a score](../how-to/add-score.md).",
        _table(("name", "what"), rows),
    )


def quantities_page() -> str:
    """The tables of quantities and of quality flags."""
    rows = []
    for name, known in QUANTITIES.items():
        scaling, unit = known.scaling, UNIT_SIGNS.get(known.unit, known.unit)
        limits = ", ".join(f"{limit:g}" for limit in known.thresholds)
        span = f"{scaling.kind}, {scaling.low:g} to {scaling.high:g}"
        rows.append((f"`{name}`", known.long_name, unit, limits, span))
    return _page(
        "Quantities and flags",
        "What a variable of a cube measures. Thresholds are the event limits scored where the settings name none; a "
        "network sees values on [0, 1] by the scaling, unless its recipe says otherwise.",
        _table(("name", "what", "unit", "thresholds", "scaling"), rows),
        "## Flags of a frame",
        "Kept as CF flags in the variable `status` of a store. Limits are under `quality` of a feed.",
        _table(("flag", "bit"), [(f"`{name}`", bit) for name, bit in FLAGS.items()]),
    )


# --- settings -------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every field of every settings class, with its documentation."""
    roots: Mapping[str, type[BaseModel]] = {
        "Operations: `nowcast cycle`, `nowcast up`": Operations,
        "Recipes: `nowcast train`": Recipe,
        "Benchmarks: `nowcast benchmark`": Benchmark,
    }
    parts = [
        "Settings are YAML files, checked when they are read: an unknown key or value is refused in one sentence. Any "
        "key can be set on the command line as `key=value`, with dots between levels: `trainer.epochs=10`. Shipped "
        "files are named by their path under `configs/`: `operations/knmi.yaml`."
    ]
    seen: set[type[BaseModel]] = set()
    for title, root in roots.items():
        parts.append(f"## {title}")
        for kind in _reached(root):
            if kind not in seen:
                seen.add(kind)
                words = (inspect.getdoc(kind) or "").partition(FIELDS)[0]
                parts += [f"### {kind.__name__}", words, _fields(kind)]
    return _page("Settings", *parts)


def _reached(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A settings class, then those of its fields, in their order."""
    found: dict[type[BaseModel], None] = {}
    waiting = [kind]
    while waiting:
        here = waiting.pop(0)
        if here not in found:
            found[here] = None
            waiting += [inner for field in here.model_fields.values() for inner in _classes(field.annotation)]
    yield from found


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _classes(part)


def _fields(kind: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", _type(field.annotation), _default(field), (field.description or "").replace("``", "`"))
        for name, field in kind.model_fields.items()
    ]
    return _table(("key", "type", "default", "what"), rows)


def _type(annotation: Any) -> str:
    """A type in the words of somebody who writes YAML."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _type(parts[0])
    if kind in (Union, UnionType):
        return " or ".join(_type(part) for part in parts)
    if kind is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if kind is tuple:
        return f"list of {_type(parts[0])}" if parts[1:] == (...,) else f"[{', '.join(map(_type, parts))}]"
    if kind is dict:
        return f"{_type(parts[0])} -> {_type(parts[1])}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, BaseModel) else f"`{json.dumps(value, default=str)}`"


# --- command line ---------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        "`nowcast --help` and `nowcast COMMAND --help` print the same. Wrong input ends in one sentence and exit "
        "code 2."
    ]
    root = typer.main.get_command(app)
    if shared := [_parameter(one) for one in root.params if "completion" not in str(one.name)]:
        parts += ["These stand before the command, as in `nowcast --verbose cycle ...`:", _parameters(shared)]
    for path, command in _commands(root, ("nowcast",)):
        words, _, example = inspect.cleandoc(command.help or "").partition("Example:")
        parts += [f"## {' '.join(path)}", _plain(words)]
        if example:
            parts.append(f"```\n{_plain(example).strip()}\n```")
        if rows := [_parameter(one) for one in command.params if not getattr(one, "hidden", False)]:
            parts.append(_parameters(rows))
    return _page("Command line", *parts)


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    context = group.make_context(path[-1], [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield (*path, name), command
        if hasattr(command, "list_commands"):
            yield from _commands(command, (*path, name))


def _parameters(rows: Sequence[tuple[str, str, str]]) -> str:
    return _table(("argument or option", "default", "what"), rows)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [str(parameter.name).upper()]
    words = _plain(getattr(parameter, "help", None) or "")
    if parameter.envvar:
        words = f"{words} Also `{parameter.envvar}`."
    empty = parameter.default in (None, "", False, ()) or parameter.required
    default = "**needed**" if parameter.required else "" if empty else f"`{parameter.default}`"
    return _codes(names), default, words


def _plain(text: str) -> str:
    """Without the markup of the terminal."""
    for mark in ("[bold]", "[/bold]", "[/]"):
        text = text.replace(mark, "")
    return text


# --- Markdown -------------------------------------------------------------------------------------


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [_row(heads), _row("---" for _ in heads)]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names if name)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _first_paragraph(thing: Any) -> str:
    """Of its docstring, with the code marks of Markdown."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("``", "`")
