"""The door: real loops under a supervisor, with what goes wrong in them, and their capsules run again."""

import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim import Adagrad, Adam, Optimizer

import surefoot
from full_disks import nothing_can_be_written
from surefoot import Action, Supervisor, Training, Verdict
from surefoot.capsule import storage

pytestmark = pytest.mark.filterwarnings("ignore:guard of .* the step was skipped:RuntimeWarning")

TASKS = {"click": "binary", "sales": "regression"}
STEPS, ROWS = 160, 128
IN_TIME = 8  # steps in which an alarm has to come


class Rows(NamedTuple):
    x: Tensor
    click: Tensor
    sales: Tensor


class Fault(StrEnum):
    NAN = "nan"  # one number of one row
    FEATURE = "feature"  # a feature of a whole batch times 1e4
    RATE = "rate"  # times 50, for five steps


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.ReLU())
        self.heads = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.bottom(x))


def batch_of(step: int, fault: tuple[Fault, int] | None = None, rows: int = ROWS) -> Rows:
    draw = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(rows, 6, generator=draw)
    noise = torch.randn(rows, 2, generator=draw)
    click = (x[:, 0] + x[:, 1] * x[:, 2] + noise[:, 0] > 0).float()
    sales = x[:, 3] - x[:, 4] + 0.3 * noise[:, 1]
    if fault is not None and fault[1] == step:
        if fault[0] is Fault.NAN:
            x[17, 2] = math.nan
        elif fault[0] is Fault.FEATURE:
            x[:, 2] *= 1e4
    return Rows(x, click, sales)


@dataclass
class Loop:
    """A plain loop; the rate is set before each step, as a schedule does."""

    count: int = 1  # optimizers
    seed: int = 0
    kind: Any = Adagrad
    rate: float = 0.05
    fault: tuple[Fault, int] | None = None
    model: nn.Module = field(init=False)
    optimizers: list[Optimizer] = field(init=False)
    step: int = field(default=0, init=False)
    shown: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = Model()
        parts = [self.model.bottom, self.model.heads] if self.count == 2 else [self.model]
        self.optimizers = [self.kind(part.parameters(), lr=self.rate) for part in parts]

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        out = self.model(batch.x)
        self.shown = {
            "outputs": {"click": out[:, 0], "sales": out[:, 1]},
            "labels": {"click": batch.click, "sales": batch.sales},
        }
        return {
            "click": binary_cross_entropy_with_logits(out[:, 0], batch.click),
            "sales": mse_loss(out[:, 1], batch.sales),
        }

    def take(self, batch: Rows) -> dict[str, Tensor]:
        """Take one step."""
        fault, at = self.fault or (None, 0)
        rate = self.rate * (50 if fault is Fault.RATE and at <= self.step < at + 5 else 1)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
        losses = self.losses(batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return losses

    def train(self, supervisor: Supervisor | None, steps: Sequence[int] = range(STEPS)) -> list[Action]:
        found = []
        for step in steps:
            torch.rand(3)  # as a loader does
            batch = batch_of(step, self.fault)
            losses = self.take(batch)
            if supervisor is not None:
                found.append(supervisor.step(losses, **self.shown, batch=batch))
        return found

    @torch.no_grad()
    def score(self) -> float:
        """Return the summed loss of rows that were not trained on."""
        self.model.eval()
        total = sum(float(loss) for loss in self.losses(batch_of(-1, rows=4096)).values())
        self.model.train()
        return total

    def again(self, capsule: Path) -> surefoot.Replay:
        """Run a capsule again in a training made anew."""
        anew = Loop(count=self.count, seed=self.seed + 1, kind=self.kind, rate=self.rate, fault=self.fault)

        def prepare(record: Any) -> None:
            anew.step = record.step

        training = Training(anew.model, anew.optimizers, lambda batch: anew.take(Rows(*batch)), prepare=prepare)
        return surefoot.replay(surefoot.read_capsule(capsule), surefoot.under_recovery(training))


def capsules(folder: Path) -> list[Path]:
    return sorted((folder / "capsules").glob("step-*"))


def supervised(loop: Loop, folder: Path, **options: Any) -> Supervisor:
    return Supervisor(loop.model, loop.optimizers, folder, tasks=TASKS, **options)


# What goes wrong is named, survived, and run again


@pytest.fixture(scope="module")
def unharmed() -> float:
    loop = Loop()
    loop.train(None)
    return loop.score()


def test_what_is_reported_where_gradients_are_disabled_is_no_part_of_a_step(tmp_path: Path):
    loop, batch = Loop(), batch_of(0)
    with supervised(loop, tmp_path) as supervisor:
        with torch.no_grad():
            supervisor.report(loop.losses(batch_of(7)), **loop.shown, batch=batch_of(7))
        losses = loop.losses(batch)
        supervisor.report(losses, **loop.shown, batch=batch)
        torch.stack([*losses.values()]).sum().backward()
        loop.optimizers[0].step()
        assert supervisor.steps == 1
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    (step,) = storage.read(path).steps
    assert isinstance(step.batch, tuple)
    assert torch.equal(torch.as_tensor(step.batch[0]), batch.x)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fault", [*Fault])
def test_a_fault_is_named_survived_and_run_again(fault: Fault, count: int, tmp_path: Path, unharmed: float):
    loop, alarms = Loop(count, fault=(fault, 80)), list[surefoot.Alarm]()
    with supervised(loop, tmp_path, on_alarm=alarms.append) as supervisor:
        actions = loop.train(supervisor)
    assert alarms
    assert 80 <= alarms[0].step <= 80 + IN_TIME
    assert alarms[0].task or alarms[0].layer
    assert supervisor.last_alarm == alarms[-1]
    assert set(actions) - {Action.NONE}
    assert Action.STOP not in actions
    assert loop.score() < unharmed + 0.05
    found = loop.again(capsules(tmp_path)[0])
    assert found.difference is None
    assert found.states >= 2
    assert found.event == alarms[0].step
    told = [event["event"] for event in surefoot.read_journal(tmp_path / "events.jsonl")]
    assert "alarm" in told
    assert ("skipped" in told) == (fault is Fault.NAN)


def test_a_healthy_run_has_no_alarm_and_no_files_but_its_own(tmp_path: Path):
    loop = Loop()
    with supervised(loop, tmp_path) as supervisor:
        assert set(loop.train(supervisor)) == {Action.NONE}
        assert supervisor.steps == STEPS
    assert supervisor.close() is Verdict.HEALTHY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "monitor"]
    assert (supervisor.last_alarm, supervisor.events) == (None, [])


def test_a_supervised_run_takes_the_very_steps_of_one_that_is_not(tmp_path: Path):
    plain, watched = Loop(2), Loop(2)
    torch.manual_seed(5)
    plain.train(None)
    with supervised(watched, tmp_path) as supervisor:
        torch.manual_seed(5)
        watched.train(supervisor)
    for mine, theirs in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert mine.equal(theirs)


def test_an_alarm_is_logged_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loop = Loop(fault=(Fault.FEATURE, 40))
    with supervised(loop, tmp_path) as supervisor, caplog.at_level(logging.WARNING, "surefoot"):
        loop.train(supervisor, range(50))
    assert supervisor.last_alarm is not None
    assert f"step {supervisor.last_alarm.step}: {supervisor.last_alarm.reason}" in caplog.messages


# Loops that are somebody else's


class Reported(Loop):
    """A loop that tells its losses from within, and nobody calls ``step``."""

    supervisor: Supervisor | None = None
    parts = 1

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        losses = super().losses(batch)
        if self.supervisor is not None and self.model.training:
            self.supervisor.report(losses, **self.shown, batch=batch)
        return losses


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fault", [*Fault])
def test_report_does_what_step_does(fault: Fault, count: int, tmp_path: Path):
    called, told = Loop(count, fault=(fault, 80)), Reported(count, fault=(fault, 80))
    logs: tuple[list[Any], list[Any]] = ([], [])
    torch.manual_seed(5)
    with supervised(called, tmp_path / "called", on_alarm=logs[0].append) as supervisor:
        called.train(supervisor)
    torch.manual_seed(5)
    with supervised(told, tmp_path / "told", on_alarm=logs[1].append) as told.supervisor:
        told.train(None)
    assert logs[0] == logs[1] != []
    assert told.supervisor.steps == STEPS
    for mine, theirs in zip(told.model.parameters(), called.model.parameters(), strict=True):
        assert mine.equal(theirs)
    for path in capsules(tmp_path / "told"):
        assert told.again(path).difference is None


def test_each_task_may_report_by_itself(tmp_path: Path):
    loop = Loop()
    with supervised(loop, tmp_path) as supervisor:
        for step in range(20):
            batch = batch_of(step)
            losses = loop.losses(batch)
            for task in TASKS:
                more = {kind: {task: loop.shown[kind][task]} for kind in ("outputs", "labels")}
                supervisor.report({task: losses[task]}, outputs=more["outputs"], labels=more["labels"], batch=batch)
            loop.optimizers[0].zero_grad()
            torch.stack([*losses.values()]).sum().backward()
            loop.optimizers[0].step()
            assert supervisor.steps == step + 1
        assert supervisor.monitor is not None
        assert {"loss/click", "loss/sales", "relative_loss/click"} <= set(supervisor.monitor.values)
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    assert loop.again(path).difference is None


def test_an_optimizer_that_steps_more_rarely_delays_no_step(tmp_path: Path):
    loop = Loop(2)
    with supervised(loop, tmp_path) as supervisor:
        for step in range(21):
            losses = loop.losses(batch_of(step))
            assert supervisor.steps == step  # the last one has ended with this call of the model at the latest
            supervisor.report(losses, **loop.shown, batch=batch_of(step))
            for optimizer in loop.optimizers:
                optimizer.zero_grad()
            torch.stack([*losses.values()]).sum().backward()
            loop.optimizers[0].step()
            if step % 3 == 0:
                loop.optimizers[1].step()
            for optimizer in loop.optimizers:
                optimizer.zero_grad()
        assert supervisor.monitor is not None
        assert "l2_norm/grad/bottom.0.weight" in supervisor.monitor.values
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    assert "bottom.0.weight" in surefoot.read_capsule(path).steps[4].norms
    assert supervisor.steps == 21


def accumulate(loop: Loop, parts: Sequence[Rows]) -> dict[str, Tensor]:
    """Take one step on several batches."""
    loop.optimizers[0].zero_grad()
    losses: dict[str, Tensor] = {}
    for part in parts:
        losses = loop.losses(Rows(*part))
        (torch.stack([*losses.values()]).sum() / len(parts)).backward()
    loop.optimizers[0].step()
    return losses


def test_accumulated_batches_are_one_step_and_run_again_as_one(tmp_path: Path):
    loop = Reported()
    with supervised(loop, tmp_path) as loop.supervisor:
        for step in range(30):
            torch.rand(3)
            accumulate(loop, [batch_of(3 * step + part, rows=64) for part in range(3)])
            assert loop.supervisor.steps == step + 1
        assert loop.supervisor.ring is not None
        path = loop.supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    capsule, anew = surefoot.read_capsule(path), Loop(seed=1)
    assert len(capsule.steps[0].batch) == 3
    training = Training(anew.model, anew.optimizers, lambda parts: accumulate(anew, parts))
    assert surefoot.replay(capsule, training).difference is None


NOTHING_HELPS = surefoot.RecoveryPolicy(slow=None, roll_back=None, skip=False)


def hopeless(folder: Path, **options: Any) -> Reported:
    loop = Reported(fault=(Fault.FEATURE, 20))
    loop.supervisor = supervised(loop, folder, recovery=NOTHING_HELPS, on_alarm=lambda alarm: None, **options)
    return loop


def test_a_loop_that_owns_itself_is_stopped_by_an_exception(tmp_path: Path):
    loop = hopeless(tmp_path)
    assert loop.supervisor is not None
    with pytest.raises(surefoot.TrainingStopped, match=r"stopped after step 2\d: the"), loop.supervisor:
        loop.train(None)
    assert loop.supervisor.action is Action.STOP
    assert loop.supervisor.close() is Verdict.FULL
    assert [path.name[:7] for path in capsules(tmp_path)] == ["step-00"]  # of the alarm alone


def test_or_it_is_told_once_in_its_own_way(tmp_path: Path):
    calls = []
    loop = hopeless(tmp_path, on_stop=lambda: calls.append("stop"))
    loop.train(None, range(60))
    assert calls == ["stop"]


def test_step_returns_stop_and_raises_nothing(tmp_path: Path):
    loop = Loop(fault=(Fault.FEATURE, 20))
    with supervised(loop, tmp_path, recovery=NOTHING_HELPS, on_alarm=lambda alarm: None) as supervisor:
        actions = loop.train(supervisor, range(60))
    assert actions[-1] is Action.STOP
    assert actions.index(Action.STOP) < 50


def test_without_a_recovery_a_run_that_has_diverged_fully_stops(tmp_path: Path):
    loop = Loop(fault=(Fault.NAN, 30))
    with supervised(loop, tmp_path, recovery=None, on_alarm=lambda alarm: None) as supervisor:
        actions = loop.train(supervisor)
    assert actions[30] is Action.NONE
    assert (actions[-1], supervisor.close()) == (Action.STOP, Verdict.FULL)


# What a step starts from


class Container(Loop):
    """A model without a ``forward`` of its own: its members are called."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = nn.ModuleDict(dict(self.model.named_children()))

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        parts: Any = self.model
        whole = self.model
        self.model = lambda x: parts["heads"](parts["bottom"](x))  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return super().losses(batch)
        finally:
            self.model = whole


def test_members_of_a_container_are_enough(tmp_path: Path):
    loop, anew = Container(), Container(seed=1)
    with supervised(loop, tmp_path) as supervisor:
        loop.train(supervisor, range(40))
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    found = surefoot.read_capsule(path)
    assert found.steps[0].step == 0
    training = Training(anew.model, anew.optimizers, lambda batch: anew.take(Rows(*batch)))
    assert surefoot.replay(found, training).difference is None


@pytest.mark.parametrize("begins", [True, False])
def test_a_model_that_is_never_called_is_served_by_the_end_of_the_last_step(begins: bool, tmp_path: Path):
    loop = Loop()
    module = loop.model
    with supervised(loop, tmp_path) as supervisor:
        for step in range(40):
            batch = batch_of(step)
            if begins:
                torch.rand(3)  # else the loop draws nothing between steps
                supervisor.begin()
            loop.model = module.forward  # pyright: ignore[reportAttributeAccessIssue]
            losses = loop.take(batch)
            supervisor.step(losses, **loop.shown, batch=batch)
        assert supervisor.ring is not None
        assert supervisor.ring.steps == range(0 if begins else 1, 40)
        path = supervisor.ring.write(tmp_path / "capsules")
    loop.model = module
    assert path is not None
    assert loop.again(path).difference is None


def test_looking_at_the_model_between_steps_changes_nothing(tmp_path: Path):
    loop = Loop()
    with supervised(loop, tmp_path) as supervisor:
        for step in range(40):
            with torch.no_grad():
                loop.model(torch.zeros(2, 6))  # in training mode
            loop.score()
            torch.rand(3)
            loop.train(supervisor, [step])
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    assert loop.again(path).difference is None


def test_a_scaler_goes_along(tmp_path: Path):
    """A step that GradScaler skips is a step, and its scale is in the capsule."""

    def take(loop: Loop, scaler: Any, batch: Rows) -> dict[str, Tensor]:
        losses = loop.losses(batch)
        loop.optimizers[0].zero_grad()
        scaler.scale(torch.stack([*losses.values()]).sum()).backward()
        if loop.step % 10 == 7:  # an overflow
            loop.model.get_parameter("heads.bias").grad[0] = math.inf  # pyright: ignore[reportOptionalSubscript]
        scaler.step(loop.optimizers[0])
        scaler.update()
        loop.step += 1
        return losses

    loop, scaler = Loop(kind=Adam, rate=0.01), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    with supervised(loop, tmp_path, more={"scaler": scaler}) as supervisor:
        for step in range(40):
            batch = batch_of(step)
            supervisor.step(take(loop, scaler, batch), **loop.shown, batch=batch)
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    anew, its = Loop(kind=Adam, rate=0.01, seed=1), torch.amp.GradScaler("cpu")

    def prepare(record: Any) -> None:
        anew.step = record.step

    training = Training(
        anew.model, anew.optimizers, lambda batch: take(anew, its, Rows(*batch)), others=[its], prepare=prepare
    )
    found = surefoot.replay(surefoot.read_capsule(path), surefoot.under_recovery(training))
    assert found.difference is None


def test_row_numbers_do_in_place_of_the_batch(tmp_path: Path):
    loop, anew = Loop(), Loop(seed=1)
    with supervised(loop, tmp_path) as supervisor:
        for step in range(40):
            supervisor.step(
                loop.take(batch_of(step)), **loop.shown, rows=torch.tensor([step]), note={"day": step // 10}
            )
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    assert path is not None
    capsule = surefoot.read_capsule(path)
    assert capsule.steps[25].note == {"day": 2, "rate_factor": 1.0, "held": 0}
    training = Training(
        anew.model, anew.optimizers, lambda batch: anew.take(Rows(*batch)), fetch=lambda rows: batch_of(int(rows[0]))
    )
    assert surefoot.replay(capsule, training).difference is None


# What may fail


def fail(loop: Loop, folder: Path, error: BaseException) -> None:
    with supervised(loop, folder) as supervisor:
        loop.train(supervisor, range(40))
        loop.losses(batch_of(40))
        raise error


def test_an_exception_leaves_a_capsule_of_the_last_steps(tmp_path: Path):
    loop = Loop()
    with pytest.raises(ZeroDivisionError):
        fail(loop, tmp_path, ZeroDivisionError("division by zero"))
    (path,) = capsules(tmp_path)
    capsule = surefoot.read_capsule(path)
    assert capsule.alarm is not None
    assert (capsule.alarm["step"], capsule.alarm["reason"]) == (39, "ZeroDivisionError: division by zero")
    assert loop.again(path).difference is None
    assert not loop.optimizers[0]._optimizer_step_post_hooks
    assert not loop.model._forward_pre_hooks


def test_an_interruption_leaves_none(tmp_path: Path):
    loop = Loop()
    with pytest.raises(KeyboardInterrupt):
        fail(loop, tmp_path, KeyboardInterrupt())
    assert capsules(tmp_path) == []


def test_a_full_disk_ends_nothing(tmp_path: Path):
    room, full = Loop(fault=(Fault.FEATURE, 80)), Loop(fault=(Fault.FEATURE, 80))
    torch.manual_seed(5)
    with supervised(room, tmp_path / "room", on_alarm=lambda alarm: None) as supervisor:
        expected = room.train(supervisor)
    (tmp_path / "full").mkdir()
    supervisor = supervised(full, tmp_path / "full", on_alarm=lambda alarm: None, recovery=None)
    torch.manual_seed(5)
    with nothing_can_be_written(), pytest.warns() as told, supervisor:
        found = full.train(supervisor)
    assert len(found) == len(expected) == STEPS
    assert supervisor.steps == STEPS
    words = " ".join(str(each.message) for each in told)
    for said in ("events.jsonl cannot be written, so events wait for room", "the capsule step-0000008"):
        assert said in words


def test_a_ring_that_fails_is_given_up(tmp_path: Path):
    loop = Loop()
    ring = surefoot.Ring(loop.model, loop.optimizers, max_bytes=100)
    with (
        pytest.warns(RuntimeWarning, match="keeping the last steps for capsules failed, .*max_bytes is 100"),
        supervised(loop, tmp_path, ring=ring) as supervisor,
    ):
        loop.train(supervisor, range(10))
    assert (supervisor.steps, supervisor.ring) == (10, None)


def test_without_batch_and_rows_it_says_once_that_there_are_no_capsules(tmp_path: Path):
    loop = Loop()
    with supervised(loop, tmp_path) as supervisor:
        with pytest.warns(RuntimeWarning, match="neither batch= nor rows=; give one of them, or ring=None"):
            supervisor.step(loop.take(batch_of(0)), **loop.shown)
        supervisor.step(loop.take(batch_of(1)), **loop.shown)
    assert supervisor.steps == 2


KILLED = """
import os, sys
from pathlib import Path
from test_supervisor import Loop, supervised

loop = Loop(2)
supervisor = supervised(loop, Path(sys.argv[1]))
loop.train(supervisor, range(75))
os._exit(9)
"""


def test_a_killed_run_goes_on_from_its_newest_checkpoint(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 9
    loop = Loop(2, seed=3)
    with supervised(loop, tmp_path) as supervisor:
        steps = supervisor.resume()
        assert 0 < steps <= 75
        assert supervisor.steps == steps
        loop.train(supervisor, range(steps, STEPS))
    whole = Loop(2)
    with supervised(whole, tmp_path / "whole") as supervisor:
        whole.train(supervisor)
    for mine, theirs in zip(loop.model.parameters(), whole.model.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_trainer_that_checkpoints_itself_saves_it_with_the_rest(tmp_path: Path):
    loop = Loop(fault=(Fault.FEATURE, 30))
    with supervised(loop, tmp_path / "a", on_alarm=lambda alarm: None) as supervisor:
        loop.train(supervisor, range(60))
        state = torch.load(_saved(supervisor.state_dict(), tmp_path / "state.pt"), weights_only=True)
        weights, optimizer = loop.model.state_dict(), loop.optimizers[0].state_dict()
        events = supervisor.events
        anew = Loop(seed=1)
        anew.model.load_state_dict(weights)
        anew.optimizers[0].load_state_dict(optimizer)
        with supervised(anew, tmp_path / "a", on_alarm=lambda alarm: None) as second:
            second.load_state_dict(state)
            assert (second.steps, second.events) == (60, events)
            assert set(anew.train(second, range(60, 90))) == {Action.NONE}
            assert second.recovery is not None
            assert second.recovery.steps == 90


def test_checkpoints_of_steps_that_a_trainer_takes_again_are_gone(tmp_path: Path):
    loop = Loop()
    with supervised(loop, tmp_path) as supervisor:
        loop.train(supervisor, range(60))
        state = supervisor.state_dict()
        loop.train(supervisor, range(60, 140))
    anew = Loop()
    with supervised(anew, tmp_path) as supervisor:
        assert supervisor.recovery is not None
        checkpoints = supervisor.recovery.checkpoints
        assert max(entry.step for entry in checkpoints.entries()) > 60
        supervisor.load_state_dict(state)
        assert max(entry.step for entry in checkpoints.entries()) == 60


def _saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


# Parts


def parts() -> Iterator[Any]:
    yield pytest.param({"recovery": None}, id="no-recovery")
    yield pytest.param({"ring": None}, id="no-ring")
    yield pytest.param({"monitor": None, "tasks": None}, id="no-monitor")
    yield pytest.param({"monitor": None, "recovery": None, "ring": None, "tasks": None}, id="nothing")


@pytest.mark.parametrize("options", [*parts()])
def test_parts_can_be_left_out(options: dict[str, Any], tmp_path: Path):
    loop = Loop(fault=(Fault.NAN, 30))
    options = {"tasks": TASKS, "on_alarm": lambda alarm: None} | options
    with Supervisor(loop.model, loop.optimizers, tmp_path, **options) as supervisor:
        loop.train(supervisor, range(60))
    assert supervisor.steps == 60
    assert (tmp_path / "checkpoints").exists() == ("recovery" not in options)
    assert bool(capsules(tmp_path)) == ("ring" not in options and "monitor" not in options)
    finite = all(bool(p.isfinite().all()) for p in loop.model.parameters())
    assert finite == ("recovery" not in options)
    assert (supervisor.last_alarm is None) == ("monitor" in options)


def test_parts_of_ones_own_are_used(tmp_path: Path):
    loop, calls = Loop(fault=(Fault.FEATURE, 80)), []
    monitor = surefoot.Monitor(loop.model, loop.optimizers, tasks=TASKS)
    recovery = surefoot.Recovery(
        loop.model, loop.optimizers, tmp_path, monitor=monitor, every=20, on_roll_back=lambda: calls.append("back")
    )
    ring = surefoot.Ring(loop.model, loop.optimizers, steps=20, every=10)
    with Supervisor(
        loop.model, loop.optimizers, tmp_path, monitor=monitor, recovery=recovery, ring=ring, on_alarm=calls.append
    ) as supervisor:
        actions = loop.train(supervisor)
    assert (supervisor.monitor, supervisor.recovery, supervisor.ring) == (monitor, recovery, ring)
    assert ("back" in calls) == (Action.ROLLED_BACK in actions)
    assert any(isinstance(each, surefoot.Alarm) for each in calls)
    assert loop.again(capsules(tmp_path)[0]).difference is None


def test_an_argument_that_would_reach_nobody_is_refused(tmp_path: Path):
    loop = Loop()
    monitor = surefoot.Monitor(loop.model, loop.optimizers)
    with pytest.raises(ValueError, match=r"tasks is .* beside monitor; expected it to be given to the monitor itself"):
        supervised(loop, tmp_path, monitor=monitor)
    recovery = surefoot.Recovery(loop.model, loop.optimizers, tmp_path, monitor=monitor)
    with pytest.raises(ValueError, match="recovery is given and monitor is not; expected the monitor that it was made"):
        supervised(loop, tmp_path, recovery=recovery)
    with pytest.raises(ValueError, match="recovery is None; expected one"):
        supervised(loop, tmp_path / "b", recovery=None).resume()


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_order_of_hooks_does_not_matter(order: str, tmp_path: Path):
    """Clipping attached before or after: the same steps, the same alarms, the same capsule."""
    results = []
    for name in ("before", order):
        torch.manual_seed(5)
        loop, alarms = Reported(fault=(Fault.FEATURE, 60)), list[Any]()
        torch.manual_seed(5)
        if name == "before":
            surefoot.clip_updates(loop.optimizers[0], surefoot.Clippy())
        loop.supervisor = supervised(loop, tmp_path / f"{order}-{name}{len(results)}", on_alarm=alarms.append)
        if name == "after":
            surefoot.clip_updates(loop.optimizers[0], surefoot.Clippy())
        loop.train(None, range(100))
        loop.supervisor.close()
        results.append((alarms, [p.detach().clone() for p in loop.model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(mine.equal(its) for mine, its in zip(results[0][1], results[1][1], strict=True))


def test_wrappers_of_the_model_are_looked_through(tmp_path: Path):
    loop = Loop()
    inner, loop.model = loop.model, nn.DataParallel(loop.model)
    with supervised(loop, tmp_path) as supervisor:
        loop.train(supervisor, range(30))
        assert supervisor.monitor is not None
        assert "l2_norm/grad/heads.weight" in supervisor.monitor.values
        assert supervisor.ring is not None
        path = supervisor.ring.write(tmp_path / "capsules")
    loop.model = inner
    assert path is not None
    assert loop.again(path).difference is None
