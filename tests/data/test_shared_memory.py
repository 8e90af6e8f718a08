"""Loader processes: the same batches however many there are, in memory that nobody else writes to, and none is lost."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import traceback
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from nowcast.config import Span, WindowSettings
from nowcast.data.loader import Loader, Windows, WindowSampler, loader
from nowcast.data.shared_memory import SLOTS, SharedBatch, SharedBuffer
from nowcast.store import FrameStore
from tests import synthetic

SETTINGS = WindowSettings(quantity="rainfall_rate", in_steps=2, out_steps=3, crop=32, crops_per_window=2, flips=True)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 frames in 16 bits."""
    path = tmp_path_factory.mktemp("buffer") / "store"
    cube = synthetic.cube(range(30))
    cube["rainfall_rate"].encoding["quantum"] = 0.01
    FrameStore(path).append(cube, message="m")
    return str(path)


@pytest.fixture
def windows(path: str) -> Windows:
    return Windows([Span(store=path)], SETTINGS, training=True)


def batches(windows: Windows, workers: int, *, seed: int = 0, packed: bool = True, shuffle: bool = True) -> Loader:
    """7 batches of 4 windows, the last of 2."""
    return loader(windows, batch_size=8, workers=workers, seed=seed, shuffle=shuffle, packed=packed)


def epoch(loader: Loader, number: int) -> list[dict[str, torch.Tensor]]:
    loader.draws.set_epoch(number)
    return list(loader)


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def busy(loader: Loader) -> int:
    gc.collect()
    return int(loader.dataset.buffer.busy.sum())  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_processes_changes_nothing(windows: Windows, workers: int) -> None:
    alone, together = batches(windows, 0), batches(windows, workers)
    for number in range(3):
        want = epoch(alone, number)
        assert len(want) == 7
        assert same(want, epoch(together, number))
    assert not same(want, epoch(together, 0))


def test_scaled_batches_are_unpacked_ones(windows: Windows) -> None:
    packed, scaled = list(batches(windows, 2)), list(batches(windows, 2, packed=False))
    assert packed[0]["frames"].dtype == torch.int16
    assert same([windows.unpack(batch) for batch in packed], scaled)


def test_a_batch_that_is_kept_is_not_written_to(windows: Windows) -> None:
    """The first ones lie in slots, of which there are fewer than batches are held."""
    want, found = batches(windows, 0), batches(windows, 1)
    first = epoch(found, 0)
    assert busy(found) == SLOTS < len(first)
    again = epoch(found, 1)
    assert same(first, epoch(want, 0))
    assert same(again, epoch(want, 1))
    part = first[0]["frames"][1, :, :, 3:5]
    copy = part.clone()
    del first, again
    epoch(found, 2)
    assert torch.equal(part, copy), "a view of a batch keeps its slot"
    assert busy(found) == 1


def test_an_epoch_may_be_broken_off(windows: Windows) -> None:
    want, found = list(batches(windows, 0)), batches(windows, 2)
    for turn in range(12):
        seen = 1 + turn % 6
        assert same(want[:seen], list(islice(found, seen)))
        assert busy(found) <= 4, "of the slots only two per process may wait for the next epoch"
    assert same(want, list(found))
    assert busy(found) == 0


def test_two_loaders_of_the_same_windows_do_not_disturb_each_other(windows: Windows) -> None:
    want = [list(batches(windows, 0, seed=seed)) for seed in (1, 2)]
    pair = zip(batches(windows, 1, seed=1), batches(windows, 1, seed=2), strict=True)
    one, other = (list(found) for found in zip(*pair, strict=True))
    assert same(want[0], one)
    assert same(want[1], other)
    held, fitting = batches(windows, 0, seed=1), iter(batches(windows, 0, seed=2))
    assert same(want[0], [batch for batch in held if next(fitting)])


def test_a_slot_that_cannot_be_filled_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = SharedBuffer(1, (2, 2), torch.uint8)
    with buffer.slot() as place:
        assert place is None, "this is no loader process"
    monkeypatch.setattr("nowcast.data.shared_memory.get_worker_info", lambda: type("Info", (), {"id": 0}))
    with pytest.raises(OSError, match="disk"), buffer.slot() as place:
        assert place == (0, 0)
        assert buffer.busy.tolist() == [[1, 0, 0, 0]]
        raise OSError("disk")
    assert not buffer.busy.any()


def test_a_batch_leaves_its_slot_when_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # which needs a GPU
    monkeypatch.setattr("nowcast.data.shared_memory.get_worker_info", lambda: type("Info", (), {"id": 1}))
    buffer = SharedBuffer(2, (3, 4), torch.int16)
    with buffer.slot() as place:
        buffer.memory[place][:2] = 7
    batch = pickle.loads(pickle.dumps(SharedBatch(buffer, place, 2, {"source": np.array([0, 1])})))
    assert buffer.busy.sum() == 1
    batch = batch.pin_memory()
    assert batch["frames"].tolist() == [[7] * 4] * 2
    assert batch["source"].tolist() == [0, 1]
    assert not buffer.busy.any()


def test_an_error_in_a_process_comes_out_and_the_next_epoch_works(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = batches(windows, 1)
    want = list(found)
    draw = WindowSampler._order
    monkeypatch.setattr(WindowSampler, "_order", lambda draws, rng: draw(draws, rng) + 1000)
    with pytest.raises(IndexError) as caught:
        list(found)
    traceback.clear_frames(caught.tb)  # torch ends the processes of a loader in a reference cycle after seconds only
    del caught
    monkeypatch.undo()
    assert same(want, list(found))


def test_nothing_is_left_behind(windows: Windows) -> None:
    """Neither processes, nor open files, nor shared memory, nor a growing process."""
    me = psutil.Process()
    list(batches(windows, 1))  # what starts processes stays
    gc.collect()
    others = set(me.children(recursive=True))

    def state() -> tuple[set[psutil.Process], int, int]:
        gc.collect()
        shared = [part for part in me.memory_maps(grouped=False) if part.path.startswith("/dev/shm")]
        return set(me.children(recursive=True)) - others, me.num_fds(), len(shared)

    before = state()
    for _ in range(3):
        found = batches(windows, 2)
        kept = list(found)
        process = min(set(me.children(recursive=True)) - others, key=lambda child: child.pid)
        sizes = [process.memory_full_info().uss for _ in range(3) if list(found)]
        assert sizes[-1] - sizes[0] < 2**22
        del found, kept
    assert state() == before
    assert not before[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seen", [0, 3, 7])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(windows: Windows, workers: int, seen: int) -> None:
    first, next_one = (epoch(batches(windows, 0), number) for number in (4, 5))
    left, found = batches(windows, workers), batches(windows, workers)
    left.draws.set_epoch(4)
    assert len(list(islice(left, seen))) == seen
    found.load_state_dict(left.state_dict())
    assert (
        found.state_dict()
        == left.state_dict()
        == ({"epoch": 5, "batches": 0} if seen == 7 else {"epoch": 4, "batches": seen})
    )
    assert same(next_one if seen == 7 else first[seen:], list(found))
    assert len(found) == 7
    assert same(next_one, epoch(found, 5)), "the epochs after it are whole"


# --- several training processes -----------------------------------------------------------------------


def rank(number: int, port: int, path: str, folder: Path) -> None:
    """One of two training processes with a loader process each; writes the pixel sums of its batches."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    windows = Windows([Span(store=path)], SETTINGS, training=True)
    found = batches(windows, 1)  # made before the processes know of each other, as Lightning does
    torch.distributed.init_process_group("gloo", rank=number, world_size=2)
    sums = [[frame.long().sum().item() for frame in batch["frames"]] for batch in epoch(found, 2)]
    drawn = list(found.draws)
    torch.distributed.destroy_process_group()
    (folder / f"{number}.json").write_text(json.dumps({"sums": sums, "drawn": drawn}))


@pytest.mark.slow
def test_two_training_processes_share_an_epoch(windows: Windows, path: str, tmp_path: Path) -> None:
    from tests.conftest import free_port

    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [context.Process(target=rank, args=(number, port, path, tmp_path)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, other = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert [len(batch) for batch in one["sums"]] == [len(batch) for batch in other["sums"]] == [8, 8, 8, 2]
    draws = WindowSampler(windows, seed=0, count=None, shuffle=True)
    draws.set_epoch(2)
    together = [tuple(drawn) for pair in zip(one["drawn"], other["drawn"], strict=True) for drawn in pair]
    assert together == list(draws), "26 windows, none twice"
    whole = [frame.long().sum().item() for batch in epoch(batches(windows, 0), 2) for frame in batch["frames"]]
    assert sorted(whole) == sorted(value for part in (one, other) for batch in part["sums"] for value in batch)


@pytest.mark.gpu
def test_batches_for_a_gpu_come_in_pinned_memory(windows: Windows) -> None:
    want = [windows.unpack(batch) for batch in batches(windows, 0)]
    there, found = windows.unpack.to("cuda"), batches(windows, 2)  # the processes start when the tables are there
    kept = list(found)
    assert kept[0]["frames"].is_pinned()
    assert busy(found) == 0
    moved = [there({key: value.to("cuda") for key, value in packed.items()}) for packed in kept]
    assert same(want, [{key: value.cpu() for key, value in batch.items()} for batch in moved])
