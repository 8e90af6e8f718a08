"""Plants small bugs one by one and counts those that the tests of their room notice, by cosmic-ray.

    python -m tests.mutate                      40 of every room, drawn by seed 0
    python -m tests.mutate --count 10 store     10 of the store
    python -m tests.mutate --count 0            all: a night

Works on copies: the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome

from tests.paths import ROOT

ROOMS = {
    "forecasting": (["nowcast/forecasting"], ["tests/forecasting"]),
    "verification": (["nowcast/verification"], ["tests/verification"]),
    "store": (["nowcast/store"], ["tests/store"]),
    "promotion": (
        ["nowcast/operations/promotion.py", "nowcast/operations/comparison.py"],
        ["tests/operations/test_promotion.py", "tests/operations/test_comparison.py"],
    ),
}
"""Room -> what is mutated, and the tests that should notice."""
SETTINGS = """\
[cosmic-ray]
module-path = {modules}
timeout = 600.0
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
"""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "var", "runs", "demo", "parity")


def main() -> None:
    """Prints a table and the survivors as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; all by default")
    parser.add_argument("--count", type=int, default=40, help="mutants per room; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="draws them")
    chosen = parser.parse_args()
    rooms = chosen.rooms or list(ROOMS)
    if unknown := set(rooms) - ROOMS.keys():
        parser.error(f"no room {', '.join(unknown)}; rooms: {', '.join(ROOMS)}")
    with tempfile.TemporaryDirectory(prefix="nowcast-mutants-") as folder, ThreadPoolExecutor(2) as two:
        jobs = [two.submit(mutate, room, Path(folder) / room, count=chosen.count, seed=chosen.seed) for room in rooms]
        found = dict(zip(rooms, (job.result() for job in jobs), strict=True))
    print("| room | mutants | tried | killed | score |\n|---|--:|--:|--:|--:|")
    for room, (total, killed, survivors) in found.items():
        tried = killed + len(survivors)
        print(f"| {room} | {total} | {tried} | {killed} | {100 * killed / max(tried, 1):.0f} % |")
    for room, (_, _, survivors) in found.items():
        print(f"\n{room}:\n", *survivors, sep="\n")


def mutate(room: str, copy: Path, *, count: int, seed: int) -> tuple[int, int, list[str]]:
    """Mutants of a room in all, those killed of a sample, and the others in words."""
    modules, tests = ROOMS[room]
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    settings = SETTINGS.format(modules=modules, python=sys.executable, tests=" ".join(tests))
    (copy / "mutate.toml").write_text(settings)
    program = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*program, "init", "mutate.toml", "mutants.sqlite"], cwd=copy, check=True)
    with use_db(copy / "mutants.sqlite", WorkDB.Mode.open) as session:
        total = _draw(session, copy, count=count, seed=seed)
    here = os.environ | {"PYTHONPATH": str(copy)}  # for processes that tests start
    subprocess.run([*program, "exec", "mutate.toml", "mutants.sqlite"], cwd=copy, env=here, check=True)
    with use_db(copy / "mutants.sqlite", WorkDB.Mode.open) as session:
        ended = [(job, result) for job, result in session.results if result.worker_outcome == WorkerOutcome.NORMAL]
        places = {item.job_id: item.mutations[0] for item in session.work_items}
    alive = [places[job] for job, result in ended if result.test_outcome == TestOutcome.SURVIVED]
    return total, len(ended) - len(alive), sorted(_words(copy, place) for place in alive)


def _draw(session: WorkDB, copy: Path, *, count: int, seed: int) -> int:
    """Leaves a sample to be tried, and returns how many there are.

    Left out is what changes annotations alone, and what is no Python: a star of ``*arguments`` taken for a product.
    """
    items = sorted(session.work_items, key=lambda item: _key(item.mutations[0]))
    texts = {path: (copy / path).read_text() for path in {item.mutations[0].module_path for item in items}}
    hints = {path: _annotations(text) for path, text in texts.items()}

    def counts(place: MutationSpec) -> bool:
        hinted = any(start <= place.start_pos < end for start, end in hints[place.module_path])
        return not hinted and not _is_star(texts[place.module_path].splitlines(), place.start_pos)

    items = [item for item in items if counts(item.mutations[0])]
    session.clear()
    session.add_work_items(random.Random(seed).sample(items, min(count or len(items), len(items))))
    return len(items)


def _key(place: MutationSpec) -> tuple[str, tuple[int, int], str, int]:
    return str(place.module_path), place.start_pos, place.operator_name, place.occurrence


def _is_star(lines: list[str], place: tuple[int, int]) -> bool:
    """Whether a star is that of arguments: behind a bracket or comma, or first in a line and glued to a name."""
    row, column = place
    before, behind = lines[row - 1][:column].rstrip(), lines[row - 1][column:]
    if not behind.startswith("*"):
        return False
    return before[-1:] in tuple("(,[{") if before else not behind.lstrip("*").startswith(" ")


def _annotations(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(line, column) of the beginning and the end of every annotation."""
    nodes = ast.walk(ast.parse(text))
    hints = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    return [((hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)) for hint in hints if hint]


def _words(copy: Path, place: MutationSpec) -> str:
    line = (copy / place.module_path).read_text().splitlines()[place.start_pos[0] - 1].strip()
    return f"- `{place.module_path}:{place.start_pos[0]}` {place.operator_name.removeprefix('core/')}: `{line}`"


if __name__ == "__main__":
    main()
