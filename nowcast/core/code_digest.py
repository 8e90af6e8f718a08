"""A fingerprint of the code that makes something: what is computed by other code has another one.

A version that somebody must remember to raise names several algorithms sooner or later.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = "nowcast"
PACKAGE = Path(__file__).parents[1]
TABLES = {"nowcast", "nowcast.models"}
"""Tables of names that compute nothing: one more network changes no other."""
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "pysteps": "pysteps", "numpy": "numpy", "torch": "torch"}
"""Libraries whose version counts: those that compute."""


@lru_cache(maxsize=64)
def code_digest(module: str) -> str:
    """Compute the fingerprint of a module, of our modules that it imports, and of the libraries that compute for them.

    Comments, docstrings and the layout of the code do not count.

    Args:
        module: Full name, such as ``nowcast.models.extrapolation``.

    Returns:
        16 hexadecimal digits.
    """
    state = blake2b(digest_size=8)
    trees, libraries = _reached(module)
    for name in sorted(trees):
        state.update(f"{name}\n{_code(trees[name])}\n".encode())
    for name in sorted(libraries):
        state.update(f"{name} {_version(DISTRIBUTIONS[name])}\n".encode())
    return state.hexdigest()


def _reached(module: str) -> tuple[dict[str, ast.Module], set[str]]:
    """Parse our modules that ``module`` imports, directly or not; also name which of the libraries."""
    trees: dict[str, ast.Module] = {}
    libraries: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in trees or name in TABLES or (path := _file(name)) is None:
            continue
        trees[name] = ast.parse(path.read_text())
        for other in _imports(trees[name]):
            top = other.partition(".")[0]
            if top == ROOT:
                waiting.append(other)
            elif top in DISTRIBUTIONS:
                libraries.add(top)
    return trees, libraries


def _file(name: str) -> Path | None:
    """Find the file of a module; None where the last part of a name is something inside of one."""
    place = PACKAGE.joinpath(*name.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _code(tree: ast.Module) -> str:
    """Give the code without its docstrings; comments and layout are not in a tree anyway."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
