"""The ring's bounds, measured from outside, and its files: whole, safe, refused in one sentence when damaged."""

import gc
import json
import math
import pickle
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import surefoot
from small_training import adam, nothing, record, training, written
from surefoot.capsule import snapshot, storage
from surefoot.capsule.replay import replay
from surefoot.capsule.ring import Ring
from surefoot.errors import InputError

DEVICE = "cuda" if torch.backends.cuda.is_built() else "cpu"  # some of torch's shape functions want a real build


class Pair(NamedTuple):
    x: Tensor
    name: str


def tensors_in(thing: object) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from ``thing`` through plain containers and objects of surefoot's."""
    seen, waiting = set[int](), [thing]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict | list | tuple | set) or type(each).__name__ == "deque":
            waiting += [*(each.values() if isinstance(each, dict) else each)]  # pyright: ignore[reportGeneralTypeIssues]
        elif type(each).__module__.startswith("surefoot.capsule"):
            waiting += vars(each).values()


def held(ring: Ring) -> int:
    """Return the bytes of all the tensors that the ring holds, its own alone, whatever it says itself."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(vars(ring)["_segments"])
    }
    return sum(storages.values())


def loop(ring: Ring, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, first: int = 0) -> Iterator[int]:
    for step, x in enumerate(batches, start=first):
        ring.record(step, x)
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ring.observe(step, {"loss": loss})
        yield step


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(100, 100)
    return model, torch.optim.Adam(model.parameters())


# What is kept


def test_at_least_so_many_steps_are_kept_and_no_more_than_a_segment_above():
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=10, every=4)
    for step in loop(ring, model, optimizer, [torch.randn(2, 100)] * 60):
        assert ring.steps[-1] == step
        assert min(step + 1, 10) <= len(ring.steps) <= 10 + 4 - 1


@pytest.mark.filterwarnings("ignore:a step is not kept. it takes:RuntimeWarning")
@pytest.mark.parametrize("budget", [400_000, 700_000, 3_000_000])
def test_memory_stays_below_the_limit_as_measured_from_outside(budget: int):
    """Batches of every size: some are a third of the limit, one is larger than all of it."""
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=50, every=8, max_bytes=budget)
    rows = [1, 1, *([3, 100, 10, 50] * 10), budget // 300, *([20] * 30)]
    most, longest = 0, 0
    for step in loop(ring, model, optimizer, (torch.randn(n, 100) for n in rows)):
        most, longest = max(most, held(ring)), max(longest, len(ring.steps))
        assert held(ring) <= ring.nbytes <= budget
        assert rows[step] == budget // 300 or ring.steps[-1] == step
    assert most > 0.4 * budget
    assert longest >= 3


def test_a_step_too_large_to_keep_is_told_and_the_next_one_is_kept_again(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer, max_bytes=400_000)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)] * 3))
    ring.write_later(100, tmp_path)
    with pytest.warns(RuntimeWarning, match=r"a step is not kept: it takes 4\d{5} bytes, and \d+ its snapshot, of"):
        list(loop(ring, model, optimizer, [torch.randn(1000, 100)], first=3))
    assert (ring.steps, ring.nbytes) == (range(0), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]  # what was waited with is written first
    list(loop(ring, model, optimizer, [torch.randn(2, 100)], first=4))
    assert ring.steps == range(4, 5)


def test_where_memory_is_tight_a_new_snapshot_does_not_cost_all_the_steps_before_it():
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=1000, every=1000, max_bytes=700_000)
    kept = [len(ring.steps) for _ in loop(ring, model, optimizer, [torch.randn(20, 100)] * 60)]
    assert max(kept) < 30
    assert min(kept[20:]) > 8


def test_the_ring_is_all_that_grows():
    """No tensor outside the ring outlives its step."""
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=4, every=2)
    steps = loop(ring, model, optimizer, (torch.randn(2, 100) for _ in range(40)))
    counts = [sum(issubclass(type(each), Tensor) for each in gc.get_objects()) for step in steps if step % 8 == 7]
    assert len(counts) == 5
    assert max(counts[1:]) <= counts[0]


def test_a_limit_that_holds_nothing_is_refused_at_the_start():
    model, optimizer = small()
    ring = Ring(model, optimizer, max_bytes=200_000)  # Adam makes two more copies of the weights in the first step
    with pytest.raises(
        ValueError, match=r"max_bytes is 200000; expected at least \d+, for two snapshots of 1\d+ bytes"
    ):
        list(loop(ring, model, optimizer, [torch.randn(2, 100)] * 2))
    assert ring.steps == range(1)


@pytest.mark.parametrize("argument", ["steps", "every", "max_bytes", "max_disk_bytes"])
def test_numbers_are_above_0(argument: str):
    model, optimizer = small()
    with pytest.raises(ValueError, match=f"{argument} is 0; expected a finite number above 0"):
        Ring(model, optimizer, **{argument: 0})  # pyright: ignore[reportArgumentType]


def test_steps_count_up_and_are_observed_once_recorded():
    model, optimizer = small()
    ring = Ring(model, optimizer)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)]))
    with pytest.raises(ValueError, match="step is 0; expected one above 0, the last one"):
        ring.record(0, torch.zeros(1))
    with pytest.raises(ValueError, match="step is 7; expected 0, the step recorded last"):
        ring.observe(7, {})
    with pytest.raises(ValueError, match="batch and rows are both None"):
        ring.record(1)
    with pytest.warns(RuntimeWarning, match="no capsule is written: the ring holds no step"):
        assert Ring(model, optimizer).write(Path("nowhere")) is None


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": object()}, r"batch\['x'\] is a object; expected tensors, numbers, strings, None"),
        ([torch.eye(2).to_sparse()], r"batch\[0\] is a torch.sparse_coo tensor; expected whole, strided ones"),
        ({(1, 2): 3}, r"batch has the key \(1, 2\); expected strings and whole numbers as keys"),
    ],
)
def test_what_cannot_be_written_safely_is_refused_at_the_first_step(batch: Any, words: str):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    with pytest.raises(TypeError, match=words):
        ring.record(0, batch)
    assert (ring.steps, ring.nbytes) == (range(0), 0)


def test_later_changes_do_not_reach_the_ring(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    x = torch.ones(2, 100)
    list(loop(ring, model, optimizer, [x]))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = ring.write(tmp_path)
    x.zero_()
    with torch.no_grad():
        model.get_parameter("weight").zero_()
    again = ring.write(tmp_path)
    assert first is not None
    assert again is not None
    for path in (first, again):
        capsule = storage.read(path)
        assert torch.equal(capsule.steps[0].batch, torch.ones(2, 100))
        assert not torch.equal(capsule.state(0)["model"]["weight"], weights["weight"])  # before the step
        assert capsule.state(0)["model"]["weight"].abs().sum() > 0


def test_no_host_wait_on_an_accelerator():
    """Everything but the writing runs on tensors without numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.Linear(4, 2, device=DEVICE)
        optimizer = torch.optim.Adam(model.parameters())
        ring = Ring(model, optimizer, every=2)
        for step in range(5):
            x = torch.empty(3, 4, device=DEVICE)
            ring.record(step, (x, 1))
            loss = model(x).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ring.observe(step, {"loss": loss.detach(), "float": 1.0})
        kept = list(tensors_in(vars(ring)["_segments"]))
    assert ring.steps == range(5)
    assert {each.device.type for each in kept if each.numel() == 12} == {"cpu"}  # the batches


# Files


def test_a_capsule_reads_back_as_it_was(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    ring.record(
        7, {"pair": Pair(torch.arange(3), "a"), "list": [1, 2.5, None]}, rows=torch.tensor([4, 5]), note={"day": 3}
    )
    ring.observe(7, {"loss": torch.tensor(math.nan), "up": math.inf}, {"down": torch.tensor(-math.inf)})
    ring.record(9, torch.ones(1))
    alarm = {"step": 7, "task": None, "layer": "0", "signal": "loss", "reason": "it is NaN", "value": math.nan}
    capsule = written(ring, tmp_path, alarm=alarm, config="rate = 0.1\n")
    assert capsule.folder.name == "step-00000007"
    assert (capsule.event, capsule.config, capsule.snapshots) == (7, "rate = 0.1\n", (7,))
    assert capsule.alarm == {**alarm, "value": "nan"}
    first, last = capsule.steps
    expected = {"pair": (torch.arange(3), "a"), "list": [1, 2.5, None]}
    assert snapshot.first_difference(first.batch, expected, "batch") is None
    assert torch.equal(first.rows, torch.tensor([4, 5]))  # pyright: ignore[reportArgumentType]
    assert (repr(first.losses), first.norms) == ("{'loss': nan, 'up': inf}", {"down": -math.inf})
    assert (first.note, first.observed, last.observed, last.losses) == ({"day": 3}, True, False, {})
    assert capsule.digests is None  # the last step was not seen to its end
    assert capsule.facts["threads"] == 1
    assert {"torch", "numpy", "surefoot", "python"} == set(capsule.facts["versions"])


def test_a_number_comes_back_to_the_last_bit(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    values = torch.rand(1000) * 10.0 ** torch.randint(-38, 38, (1000,))
    ring.record(0, torch.ones(1))
    ring.observe(0, {str(i): value for i, value in enumerate(values)})
    kept = written(ring, tmp_path).steps[0].losses
    assert torch.equal(torch.tensor(list(kept.values())), values)


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_disk_stays_below_the_limit_at_every_moment_and_the_newest_capsules_stay(tmp_path: Path):
    limit, most, done = 2_500_000, 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            with suppress(FileNotFoundError):  # renamed or deleted meanwhile
                most = max(most, folder_size(tmp_path))

    (tmp_path / "notes.txt").write_text("mine")
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=16, every=8, max_disk_bytes=limit)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    names = []
    try:
        for step in loop(ring, model, optimizer, [torch.randn(64, 100)] * 80):
            if step % 8 == 7:
                path = ring.write(tmp_path, alarm={"step": step})
                assert path is not None
                names.append(path.name)
                assert folder_size(tmp_path) <= limit
    finally:
        done.set()
        watcher.join()
    left = sorted(path.name for path in tmp_path.glob("step-*"))
    assert 2 <= len(left) < len(names)
    assert left == names[-len(left) :]
    assert 0.5 * limit < most <= limit
    assert (tmp_path / "notes.txt").exists()


def test_what_does_not_fit_is_cut_to_its_newest_part_or_told(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer, every=8, max_disk_bytes=600_000)
    list(loop(ring, model, optimizer, [torch.randn(64, 100)] * 20))
    capsule = written(ring, tmp_path)
    assert capsule.snapshots == (16,)
    assert folder_size(tmp_path) <= 600_000
    ring = Ring(model, optimizer, max_disk_bytes=1000)
    list(loop(ring, model, optimizer, [torch.randn(64, 100)]))
    with pytest.warns(RuntimeWarning, match="step-00000000 is not written: its newest part alone takes more than 1000"):
        assert ring.write(tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    model, optimizer = small()
    ring = Ring(model, optimizer)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)]))
    with pytest.warns(RuntimeWarning, match="the capsule step-00000000 is not written"):
        assert ring.write(tmp_path / "file") is None


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Let no file grow beyond ``at`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("at", [100, 30_000])
def test_a_full_disk_leaves_nothing_behind_and_costs_no_training(at: int, tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)]))
    with pytest.warns(RuntimeWarning, match="step-00000000 is not written: .*File too large"), full_disk(at):
        assert ring.write(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert ring.write(tmp_path) is not None


def test_a_draft_left_by_a_killed_process_is_no_capsule_and_makes_room(tmp_path: Path):
    draft = tmp_path / "step-00000001-1234.draft"
    draft.mkdir()
    (draft / "state-00000000.pt").write_bytes(bytes(450_000))
    model, optimizer = small()
    ring = Ring(model, optimizer, max_disk_bytes=500_000)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)]))
    written(ring, tmp_path)
    assert not draft.exists()


# After the alarm


def test_a_capsule_asked_for_later_holds_what_came_before_and_after(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer, steps=4, every=2)
    paths = []
    for step in range(30):
        if step == 10:
            ring.write_later(12, tmp_path, alarm={"step": 9})
            ring.write_later(1, tmp_path, alarm={"step": 10})  # the first alarm is where it began
        ring.record(step, torch.ones(2, 100))
        paths.append(ring.observe(step, {"loss": 0.0}))
    (path,) = [path for path in paths if path is not None]
    assert paths.index(path) == 21
    capsule = storage.read(path)
    assert (capsule.event, capsule.steps[0].step, capsule.steps[-1].step) == (9, 6, 21)
    assert len(ring.steps) <= 5  # and then it forgets again


def test_it_is_written_before_anything_of_it_would_be_let_go(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer, every=4, max_bytes=700_000)
    for step in loop(ring, model, optimizer, [torch.randn(20, 100)] * 40):
        if step == 5:
            assert ring.steps[0] == 0
            ring.write_later(1000, tmp_path, alarm={"step": 5})
    (path,) = tmp_path.iterdir()
    steps = storage.read(path).steps
    assert steps[0].step == 0
    assert 5 < steps[-1].step < 39


def test_flush_and_clear(tmp_path: Path):
    model, optimizer = small()
    ring = Ring(model, optimizer)
    assert ring.flush() is None
    list(loop(ring, model, optimizer, [torch.randn(2, 100)] * 3))
    ring.write_later(1000, tmp_path)
    ring.clear()  # as before a roll-back
    (path,) = tmp_path.iterdir()
    assert path.name == "step-00000002"
    assert ring.steps == range(0)
    list(loop(ring, model, optimizer, [torch.randn(2, 100)], first=1))
    assert ring.steps == range(1, 2)


# Damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(record(training(adam), 3, spoil=nothing), tmp_path_factory.mktemp("capsules"), config="").folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["state-00000000.pt", "steps-00000000.pt"])
def test_a_damaged_file_is_named(whole: Path, name: str, damage: Any, tmp_path: Path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(copy / name)
    with pytest.raises(InputError, match=f"{name} is (damaged|missing); |{name} is damaged: it has") as told:
        storage.read(copy)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.pop("files"), "capsule.json is damaged: KeyError 'files'"),
        (
            lambda document: document.update(format="surefoot capsule 99"),
            "has the format 'surefoot capsule 99'; expected",
        ),
        (lambda document: document.update(snapshots=3), "capsule.json is damaged: TypeError"),
        (lambda document: document["record"]["steps"].pop(), "holds steps that are none"),
    ],
)
def test_a_changed_document_is_told(whole: Path, change: Any, words: str, tmp_path: Path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    document = json.loads((copy / "capsule.json").read_text())
    change(document)
    (copy / "capsule.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words):
        assert storage.read(copy).steps


def test_what_is_no_capsule(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "capsule.json").write_text("{}")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "capsule.json").write_text('{"format": "sure')
    for name, words in {
        "nowhere": "does not exist; expected a capsule's folder",
        "file": "is a file; expected a capsule's folder",
        "empty": "has no capsule.json; expected a capsule's folder",
        "other": "has the format None; expected 'surefoot capsule 1'",
        "cut": "capsule.json is not JSON: Unterminated string",
    }.items():
        with pytest.raises(InputError, match=words):
            storage.read(tmp_path / name)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def test_a_file_made_to_run_code_is_not_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(whole, tmp_path / "copy")
    path = copy / "steps-00000000.pt"
    torch.save([Trap()], path, pickle_module=pickle)
    document = json.loads((copy / "capsule.json").read_text())
    document["files"][path.name] = [path.stat().st_size, __import__("zlib").crc32(path.read_bytes())]
    (copy / "capsule.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="steps-00000000.pt cannot be read: Weights only load failed"):
        assert storage.read(copy).steps
    assert not (tmp_path / "trapped").exists()


def test_states_narrower_weights_than_their_state(tmp_path: Path):
    """Optimizers of bfloat16 weights get their float32 state back as it was, which torch's own loading narrows."""
    model = nn.Linear(3, 3).bfloat16()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    for state in optimizer.state.values():
        state["sum"] = torch.rand(state["sum"].shape)
    kept = snapshot.host_copy(snapshot.live_state(model, [optimizer], []), "state")
    again = torch.optim.Adagrad(model.parameters(), lr=0.1)
    snapshot.restore(kept, model, [again])
    loaded = snapshot.host_copy(snapshot.live_state(model, [again], []), "state")
    assert snapshot.first_difference(kept, loaded, "state") is None


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adam, surefoot.ClippyAdagrad])
def test_a_restored_state_stays_as_it_is_when_training_goes_on(kind: Any):
    model = nn.Linear(3, 3)
    optimizer = kind(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    step()
    kept = snapshot.host_copy(snapshot.live_state(model, [optimizer], []), "state")
    copy = snapshot.host_copy(kept, "state")
    snapshot.restore(kept, model, [optimizer])
    step()
    assert snapshot.first_difference(kept, copy, "state") is None


def test_a_look_at_the_state_of_a_parameter_that_has_none_yet_changes_nothing():
    model, optimizer = small()
    before = snapshot.live_state(model, [optimizer], [])
    assert not optimizer.state[next(model.parameters())]  # makes an empty one
    assert snapshot.live_state(model, [optimizer], [])["optimizers"] == before["optimizers"]


def test_a_capsule_of_whatever_the_model_draws_replays(tmp_path: Path):
    capsule = written(record(training(adam), 5, every=2), tmp_path)
    assert replay(capsule, training(adam, seed=1)).difference is None
