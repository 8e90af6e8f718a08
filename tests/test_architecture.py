"""What import-linter (see pyproject.toml) cannot hold: one import name, and who starts a Python process how."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDERS = ("nowcast", "models", "flows", "tests")
OURS_ALONE = {"models", "flows", "configs"}
"""Names that anybody's project may have: here they are parts of ``nowcast``."""


def sources() -> list[Path]:
    """Every Python file of the repository once: links are left out."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> set[str]:
    """First parts of the names of all that is imported."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_we_are_imported_by_one_name(path: Path) -> None:
    assert not imports(ast.parse(path.read_text())) & OURS_ALONE


@pytest.mark.parametrize("folder", sorted(OURS_ALONE))
def test_folders_of_the_top_level_are_parts_of_the_package(folder: str) -> None:
    link = ROOT / "nowcast" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


def started(tree: ast.AST) -> list[list[ast.expr]]:
    """Lists and tuples that begin with ``sys.executable``: commands of Python processes."""
    rows = [node.elts for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)]
    return [row for row in rows if row and ast.unparse(row[0]) == "sys.executable"]


@pytest.mark.parametrize("path", [path for path in sources() if "tests" not in path.parts], ids=name_of)
def test_children_do_not_import_from_the_folder_they_start_in(path: Path) -> None:
    for command in started(ast.parse(path.read_text())):
        assert ast.unparse(command[1]) == "'-P'", ast.unparse(command[0])
