"""The registry: whatever happens to a writer, champion and challengers are what the journal says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nowcast.core.errors import BadInput, RegistryError
from nowcast.registry import checkpoint
from nowcast.registry import registry as lifecycle
from nowcast.registry.registry import Registry
from tests import checkpoints

COUNT = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("trained")
    return [checkpoints.save(folder / f"net-{seed}.safetensors", seed=seed) for seed in range(COUNT)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def test_a_registered_file_is_a_challenger_under_its_digest(registry: Registry, files: list[Path]) -> None:
    digest = registry.register(files[0], why="trained on August")
    assert digest == checkpoint.file_digest(files[0])
    assert registry.file(digest).read_bytes() == files[0].read_bytes()
    assert registry.standing.challengers == [digest]
    assert registry.standing.champion is None
    (event,) = registry.events
    assert (event.what, event.name, event.why) == ("registered", f"net-0-{digest[:6]}", "trained on August")
    assert "@" in event.who
    assert registry.register(files[0]) == digest
    assert len(registry.events) == 1


def test_names(registry: Registry, files: list[Path]) -> None:
    first, second = registry.register(files[0], name="august"), registry.register(files[1])
    assert registry.find("august") == registry.find(first[:5]) == first
    with pytest.raises(RegistryError, match=f"'may' names 0 registered checkpoints; known: august, net-1-{second[:6]}"):
        registry.find("may")
    with pytest.raises(RegistryError, match="another checkpoint is called august"):
        registry.register(files[2], name="august")
    with pytest.raises(RegistryError, match="this checkpoint is registered as august"):
        registry.register(files[0], name="may")
    with pytest.raises(RegistryError, match="'champion' cannot be a name"):
        registry.register(files[2], name="champion")
    with pytest.raises(BadInput, match="no checkpoint is promoted"):
        registry.find("champion")


def test_promotion_rollback_and_retirement(registry: Registry, files: list[Path]) -> None:
    a, b, c, _ = (registry.register(path) for path in files)
    for digest, over in ((a, None), (b, a), (c, b)):
        registry.promote(digest, over=over, why="better")
    assert lifecycle.champion_file(f"registry:{registry.folder}") == registry.file(c)
    assert registry.rollback(why="too wet") == b
    registry.retire(c)
    assert registry.standing.state(c) == "retired"
    assert registry.rollback() == a
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback()
    assert [event.what for event in registry.events[-4:]] == ["promoted", "rolled back", "retired", "rolled back"]
    with pytest.raises(RegistryError, match="is retired; only challengers can be promoted"):
        registry.promote(c, over=a, why="")
    with pytest.raises(RegistryError, match="is champion; only challengers retire"):
        registry.retire(a)
    with pytest.raises(RegistryError, match="has changed in the meantime"):
        registry.promote(b, over=c, why="")
    registry.register(files[2])
    assert registry.standing.state(c) == "challenger"


def test_a_retired_champion_is_passed_over_by_a_rollback(registry: Registry, files: list[Path]) -> None:
    a, b, c, _ = (registry.register(path) for path in files)
    for digest, over in ((a, None), (b, a), (c, b)):
        registry.promote(digest, over=over, why="")
    registry.retire(b)
    assert registry.rollback() == a


def test_a_damaged_file_never_becomes_champion(registry: Registry, files: list[Path]) -> None:
    a, b = (registry.register(path) for path in files[:2])
    registry.promote(a, over=None, why="")
    registry.file(b).write_bytes(registry.file(b).read_bytes()[:-1] + b"x")
    with pytest.raises(RegistryError, match="missing or damaged; register it again"):
        registry.promote(b, over=a, why="")
    registry.register(files[1])
    registry.promote(b, over=a, why="")
    registry.file(a).unlink()
    with pytest.raises(RegistryError, match="missing or damaged"):
        registry.rollback()
    assert registry.standing.champion == b


def test_what_is_no_checkpoint_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_bytes(b"not a network")
    with pytest.raises(BadInput, match="is no checkpoint"):
        registry.register(tmp_path / "notes.safetensors")
    assert registry.events == []


def test_what_was_tuned_brings_its_base_along(registry: Registry, files: list[Path], tmp_path: Path) -> None:
    base = {"digest": checkpoint.file_digest(files[0]), "path": str(tmp_path / "base.safetensors")}
    shutil.copy(files[0], base["path"])
    tuned = checkpoints.save(tmp_path / "tuned.safetensors", seed=9, base=base)
    digest = registry.register(tuned)
    assert registry.standing.challengers == [digest]
    assert registry.lineage()[0]["base"] == base["digest"]
    Path(base["path"]).unlink()
    loaded = checkpoint.load(registry.file(digest))
    assert loaded.base is not None
    assert loaded.base.digest == base["digest"]
    with pytest.raises(BadInput, match=r"was tuned over .* and it is gone"):
        Registry(tmp_path / "others").register(tuned)


def test_the_list_says_where_a_checkpoint_comes_from(registry: Registry, files: list[Path]) -> None:
    a, b = (registry.register(path) for path in files[:2])
    registry.promote(a, over=None, why="")
    rows = registry.lineage()
    assert [(row["digest"], row["state"]) for row in rows] == [(b, "challenger"), (a, "champion")]
    assert (rows[0]["model"], rows[0]["frames"], rows[0]["step"]) == ("convgru:debug", "2 -> 2", "300 s")
    assert rows[0]["card"]["code_version"] == "test"
    registry.file(b).unlink()
    assert "is no checkpoint" in str(registry.lineage()[0]["fault"])


def test_a_journal_that_somebody_spoiled_is_named(registry: Registry, files: list[Path]) -> None:
    registry.register(files[0])
    with (registry.folder / lifecycle.JOURNAL).open("a") as file:
        file.write("{}\n")
    with pytest.raises(BadInput, match=r"journal\.jsonl: holds a line that is no event"):
        _ = registry.standing


# --- any order of commands ------------------------------------------------------------------------

COMMANDS = st.one_of(
    st.tuples(st.sampled_from(["register", "promote", "retire"]), st.integers(0, COUNT - 1)),
    st.tuples(st.just("rollback"), st.just(0)),
)


class Expected:
    """The rules, written down once more in the plainest way."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.retired: set[str] = set()
        self.reign: list[str] = []

    def register(self, digest: str) -> bool:
        if digest not in self.known:
            self.known.append(digest)
        self.retired.discard(digest)
        return True

    def promote(self, digest: str) -> bool:
        allowed = digest in self.known and digest not in self.retired and self.reign[-1:] != [digest]
        self.reign += [digest] * allowed
        return allowed

    def retire(self, digest: str) -> bool:
        allowed = digest in self.known and digest not in self.retired and self.reign[-1:] != [digest]
        self.retired |= {digest} if allowed else set()
        return allowed

    def rollback(self, _: str) -> bool:
        left = self.reign[:-1]
        while left and left[-1] in self.retired:
            left.pop()
        self.reign = left or self.reign
        return bool(left)


def obey(registry: Registry, command: str, path: Path) -> bool:
    """Does what the command line does; False if it is refused."""
    try:
        match command:
            case "register":
                registry.register(path)
            case "promote":
                digest = registry.find(checkpoint.file_digest(path))
                registry.promote(digest, over=registry.standing.champion, why="")
            case "retire":
                registry.retire(registry.find(checkpoint.file_digest(path)))
            case _:
                registry.rollback()
    except RegistryError:
        return False
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=st.lists(COMMANDS, max_size=25))
def test_any_order_of_commands_ends_as_the_rules_say(
    tmp_path_factory: pytest.TempPathFactory, files: list[Path], commands: list
) -> None:
    registry, expected = Registry(tmp_path_factory.mktemp("models")), Expected()
    digests = [checkpoint.file_digest(path) for path in files]
    for command, which in commands:
        assert obey(registry, command, files[which]) == getattr(expected, command)(digests[which])
        now = Registry(registry.folder).standing  # from the journal alone
        assert list(now.names) == expected.known
        assert now.champion == (expected.reign[-1] if expected.reign else None)
        assert set(now.names) - set(now.challengers) - {now.champion} == expected.retired - {now.champion}


# --- crashes and crowds ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 4))
def test_a_writer_that_dies_leaves_the_journal_before_or_after(
    registry: Registry, files: list[Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    a = registry.register(files[0])
    registry.promote(a, over=None, why="")
    before, calls = (registry.folder / lifecycle.JOURNAL).read_bytes(), iter(range(1, 100))

    def flush(_: Path) -> None:
        if next(calls) == step:
            raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr("nowcast.core.files.sync", flush)
        with suppress(OSError):
            Registry(registry.folder).register(files[1])
    after = (registry.folder / lifecycle.JOURNAL).read_bytes()
    assert after == before if step < 3 else after.startswith(before)
    assert registry.standing.champion == a
    b = registry.register(files[1])
    registry.promote(b, over=a, why="")
    assert registry.rollback() == a


def test_two_writers_at_once_lose_nothing(registry: Registry, files: list[Path]) -> None:
    digests = [registry.register(path) for path in files]
    registry.promote(digests[0], over=None, why="")

    def rule(mine: str) -> int:
        own, done = Registry(registry.folder), 0
        for _ in range(40):
            with suppress(RegistryError):
                own.promote(mine, over=own.standing.champion, why="mine")
                done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        done = sum(pool.map(rule, digests[1:3]))
    events = [event for event in registry.events if event.why == "mine"]
    assert len(events) == done > 0
    assert all(first.digest != second.digest for first, second in pairwise(events))


BUSY = """
import sys
from nowcast.registry.registry import Registry
registry, digests = Registry(sys.argv[1]), sys.argv[2:]
print("ready", flush=True)
while True:
    for digest in digests:
        registry.promote(digest, over=registry.standing.champion, why="x" * 4000)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment(registry: Registry, files: list[Path]) -> None:
    digests = [registry.register(path) for path in files[:2]]
    for attempt in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", BUSY, str(registry.folder), *digests],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(0.05 + 0.013 * attempt)
            child.kill()
        lines = (registry.folder / lifecycle.JOURNAL).read_text().splitlines()
        assert all(json.loads(line)["digest"] in digests for line in lines)
        registry.rollback()
        digests = digests if registry.standing.champion == digests[1] else digests[::-1]
