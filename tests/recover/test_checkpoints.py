"""Checkpoints: whole or not there, kept by what is known of them, read safely; and all that a step depends on."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import FULL, Disk
from states import equal
from torch import nn

import surefoot
from properties import over
from surefoot.capsule.snapshot import host_copy
from surefoot.errors import InputError
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.sources import synthetic
from surefoot.recover.checkpoints import Checkpoints, Tag, collect_state, restore_state

KILLS = 20


def state_of(step: int, size: int = 10) -> dict[str, Any]:
    return {"step": step, "weights": [torch.full((size,), float(step)), torch.full((size,), -float(step))]}


def write_without_end(folder: Path, first: int, size: int, ready: Connection) -> None:
    """Save and tag until killed."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder, keep=2)
    for step in count(first):
        checkpoints.save(step, state_of(step, size))
        checkpoints.tag_healthy(step - 1)
        if step == first:
            ready.send("go")


def test_kill_9_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path):
    """Twenty processes one after another write into one folder and are killed in the middle of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["surefoot.recover.checkpoints"])
    checkpoints, moments, newest, drafts = Checkpoints(tmp_path, keep=2), random.Random(0), 0, 0
    for turn in range(KILLS):
        ready, theirs = context.Pipe(duplex=False)
        child = context.Process(target=write_without_end, args=(tmp_path, newest + 1, 150_000, theirs))
        child.start()
        assert ready.recv() == "go"
        time.sleep(moments.uniform(0.0, 0.05))
        while turn % 2 and not list(tmp_path.glob("*.draft")):  # on a busy machine chance alone may miss the writes
            pass
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        drafts += bool(list(tmp_path.glob("*.draft")))
        for path in filter(None, (checkpoints.latest(), checkpoints.latest_healthy())):
            loaded = checkpoints.load(path)
            assert equal(loaded, state_of(loaded["step"], 150_000))
            assert path.name.startswith(f"step-{loaded['step']:09d}.")
        latest = checkpoints.latest()
        assert latest is not None
        assert int(latest.name[5:14]) > newest  # nothing that was there has been lost
        newest = int(latest.name[5:14])
    assert newest >= KILLS  # they did write
    assert drafts > KILLS // 4  # and many were killed while they did
    checkpoints.save(newest + 1, state_of(newest + 1))
    assert not list(tmp_path.glob("*.draft"))


@over("damage", {"cut short": "cut", "empty": "empty", "one bit turned over in a tensor": "bit"})
def test_a_damaged_file_is_never_chosen(damage: str, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    paths = [checkpoints.save(step, state_of(step)) for step in (10, 20)]
    checkpoints.tag_healthy(20)
    good, bad = (path.with_suffix(".healthy.pt") for path in paths)
    raw = bytearray(bad.read_bytes())
    where = raw.index(torch.full((10,), 20.0).numpy().tobytes())
    raw[where] ^= 1
    bad.write_bytes({"cut": raw[:-1], "empty": b"", "bit": raw}[damage])
    assert checkpoints.latest_healthy() == checkpoints.latest() == good
    with pytest.raises(InputError, match=f"checkpoint .*{bad.name} is damaged or not one of ours: "):
        checkpoints.load(bad)


def test_every_single_bit_counts_or_does_no_harm(tmp_path: Path):
    checkpoints, state = Checkpoints(tmp_path), {"w": torch.arange(9.0), "n": 3}
    path = checkpoints.save(1, state)
    raw, refused = path.read_bytes(), 0
    for position in range(0, len(raw), 3):
        spoiled = bytearray(raw)
        spoiled[position] ^= 1 << position % 8
        path.write_bytes(spoiled)
        chosen = checkpoints.latest()
        refused += chosen is None
        assert chosen is None or equal(checkpoints.load(chosen), state)
    assert refused > len(raw) // 12


def test_what_is_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2, waiting=2)

    def kept() -> dict[Tag, list[int]]:
        return {tag: [entry.step for entry in checkpoints.entries() if entry.tag is tag] for tag in Tag}

    for step in range(0, 60, 10):
        checkpoints.save(step, state_of(step))
    assert kept()[Tag.PENDING] == [0, 10, 50]  # the next to become healthy, and the newest
    checkpoints.tag_healthy(20)
    assert kept() == {Tag.PENDING: [50], Tag.HEALTHY: [0, 10], Tag.SUSPECT: []}
    checkpoints.save(60, state_of(60))
    checkpoints.tag_healthy(50)
    assert kept() == {Tag.PENDING: [60], Tag.HEALTHY: [10, 50], Tag.SUSPECT: []}
    checkpoints.save(70, state_of(70))
    checkpoints.tag_suspect(50)
    assert kept() == {Tag.PENDING: [], Tag.HEALTHY: [10, 50], Tag.SUSPECT: [70]}
    assert checkpoints.latest() == checkpoints.latest_healthy() == tmp_path / "step-000000050.healthy.pt"
    assert checkpoints.latest_healthy(before=49) == tmp_path / "step-000000010.healthy.pt"
    assert checkpoints.latest_healthy(before=9) is None
    checkpoints.save(70, state_of(70))  # made again: known of it is nothing yet
    assert kept() == {Tag.PENDING: [70], Tag.HEALTHY: [10, 50], Tag.SUSPECT: []}


@over("full", FULL)
def test_what_cannot_be_written_leaves_all_as_it_was(full: Disk, tmp_path: Path):
    with full(tmp_path) as (folder, disk):
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        checkpoints.save(1, state_of(1, 100_000))
        checkpoints.tag_healthy(1)
        disk.fill()
        for step in (1, 2):
            with pytest.raises(OSError, match=r"No space left on device|File too large"):
                checkpoints.save(step, state_of(step, 100_000))
        assert [(entry.step, entry.tag) for entry in checkpoints.entries()] == [(1, Tag.HEALTHY)]
        healthy = checkpoints.latest_healthy()
        assert healthy is not None
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [healthy.name]
        assert equal(checkpoints.load(healthy), state_of(1, 100_000))
        disk.empty()
        checkpoints.save(3, state_of(3, 100_000))
        assert checkpoints.entries()[-1].step == 3


def test_the_last_healthy_one_is_never_deleted(tmp_path: Path):
    """However many came after it that are pending, suspect or damaged."""
    checkpoints = Checkpoints(tmp_path, keep=1, waiting=1)
    checkpoints.save(5, state_of(5))
    checkpoints.tag_healthy(5)
    for step in range(10, 200, 10):
        checkpoints.save(step, state_of(step))
        if step % 30 == 0:
            checkpoints.tag_suspect(5)
        assert checkpoints.latest_healthy() == tmp_path / "step-000000005.healthy.pt"
    (tmp_path / "step-000000190.pt").write_bytes(b"")
    checkpoints.tag_healthy(190)  # of what is damaged it is not known
    latest = checkpoints.latest_healthy()
    assert latest is not None
    assert equal(checkpoints.load(latest), state_of(int(latest.name[5:14])))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("trapped",)


def test_only_what_can_be_read_safely_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("checkpoints")
    with pytest.raises(TypeError, match=r"state holds an object made by posix.mkdir; expected tensors, numbers"):
        checkpoints.save(1, {"trap": Trap()})
    assert list(Path("checkpoints").iterdir()) == []
    torch.save({"trap": Trap()}, path := Path("checkpoints/step-000000002.pt"))
    assert checkpoints.latest() is None
    with pytest.raises(InputError, match="is damaged or not one of ours"):
        checkpoints.load(path)
    assert not Path("trapped").exists()


def test_bad_input(tmp_path: Path):
    with pytest.raises(ValueError, match="keep is 0; expected a finite number above 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(InputError, match=r"checkpoint no/such.pt does not exist; expected a file that"):
        Checkpoints(tmp_path).load(Path("no/such.pt"))
    assert Checkpoints(tmp_path / "none").entries() == []


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "surefoot": lambda model: surefoot.ClippyAdagrad(model.parameters(), 0.1),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 0.01),
    "SGD, momentum": lambda model: torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
}


class Training:
    """A training with everything that has a state."""

    def __init__(self, make: Callable[[nn.Module], torch.optim.Optimizer], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.optimizer = make(self.model)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.loader = MovingWindow(synthetic.make(days=3, rows_per_day=64), 16, seed=1).stream(3)
        self.parts = {"schedulers": [self.scheduler], "loader": self.loader}

    def step(self) -> list[float]:
        _, batch = next(self.loader)
        noise = float(np.random.normal()) + random.random()  # noqa: NPY002 - the global one is what is saved
        self.optimizer.zero_grad()
        loss = (self.model(batch.dense)[:, 0] * noise - batch.labels[:, 3]).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return [loss.item(), noise]

    def state(self) -> dict[str, Any]:
        return collect_state(self.model, [self.optimizer], **self.parts)


@over("make", OPTIMIZERS)
def test_all_that_a_step_depends_on_comes_back_bit_for_bit(
    make: Callable[[nn.Module], torch.optim.Optimizer], tmp_path: Path
):
    checkpoints, training = Checkpoints(tmp_path), Training(make, seed=1)
    for _ in range(3):
        training.step()
    before = host_copy(training.state(), "state")
    path = checkpoints.save(3, training.state())
    expected = [training.step() for _ in range(5)]
    for other in (training, Training(make, seed=2)):  # in place, and in a new process's objects
        restore_state(checkpoints.load(path), other.model, [other.optimizer], **other.parts)
        assert equal(host_copy(other.state(), "state"), before)
        assert [other.step() for _ in range(5)] == expected


def test_a_state_of_other_parts_is_refused():
    training = Training(OPTIMIZERS["AdamW"], seed=1)
    state, optimizers = training.state(), [training.optimizer]
    with pytest.raises(ValueError, match="schedulers are 0; expected 1, as in the checkpoint"):
        restore_state(state, training.model, optimizers)
    with pytest.raises(ValueError, match="optimizers are 2; expected 1, as in the checkpoint"):
        restore_state(state, training.model, optimizers * 2, **training.parts)
    with pytest.raises(ValueError, match="scaler is given; expected none: the checkpoint was saved without it"):
        restore_state(state, training.model, optimizers, **training.parts, more={"scaler": training.scheduler})
