"""The policy: every stage works and can be left out, what rolls back does so bit for bit, the journal tells it."""

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from full_disk import FULL, Disk
from states import equal
from torch import nn
from torch.optim import Optimizer

import surefoot
from properties import over
from ranks import run_ranks
from surefoot.capsule.snapshot import host_copy
from surefoot.errors import InputError
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.sources import synthetic
from surefoot.recover import journal
from surefoot.recover.checkpoints import Tag, collect_state
from surefoot.recover.policy import Action, RecoveryPolicy, RollBack, Slow, State
from surefoot.recover.recovery import Recovery

LOG = synthetic.make(days=4, rows_per_day=1024)
AT_ONCE = RollBack(look=0)
NOTHING = RecoveryPolicy(skip=False, slow=None, roll_back=None, stop=False)


class Sign(NamedTuple):
    """An alarm."""

    step: int
    signal: str = "loss"
    reason: str = "the loss rose"
    task: str | None = "click"
    layer: str | None = None


class Told:
    """A detector that finds what it is told to, and remembers what it was shown."""

    def __init__(self) -> None:
        self.healthy, self.shown, self.has_learnt = True, 0, True

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        vars(self).update(state_dict)


def pair(model: nn.Sequential) -> list[Optimizer]:
    return [
        surefoot.ClippyAdagrad(model[0].parameters(), 0.1),
        torch.optim.Adam(model[2:].parameters(), 0.01),
    ]


OPTIMIZERS: dict[str, Callable[[nn.Sequential], list[Optimizer]]] = {
    "surefoot and torch": pair,
    "surefoot": lambda model: [surefoot.Adagrad(model.parameters(), 0.1)],
    "SGD": lambda model: [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)],
}


class Loop:
    """Any PyTorch loop: noise from every generator, a scheduler, a loader with a position, a running average."""

    def __init__(
        self,
        folder: Path,
        policy: RecoveryPolicy = RecoveryPolicy(),
        *,
        make: Callable[[nn.Sequential], list[Optimizer]] = pair,
        seed: int = 0,
        every: int = 5,
        **changes: Any,
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.optimizers = make(self.model)
        self.schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.99) for each in self.optimizers]
        self.loader = MovingWindow(LOG, 16, seed=1).stream(4)
        self.detector = Told()
        parts: dict[str, Any] = {"detector": self.detector, "schedulers": self.schedulers, "loader": self.loader}
        self.recovery = Recovery(
            self.model, self.optimizers, folder, policy=policy, every=every, **{**parts, **changes}
        )

    def step(self, alarm: Sign | None = None, *, spoil: float = 0.0) -> Action:
        self.train(spoil)
        return self.recovery.step(alarm)

    def train(self, spoil: float = 0.0) -> None:
        """Take a step without telling the recovery."""
        _, batch = next(self.loader)
        noise = float(np.random.normal()) * random.random()  # noqa: NPY002 - the global one is what rolls back
        loss = (self.model(batch.dense)[:, 0] + 0.1 * noise - batch.labels[:, 3] + spoil).square().mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for scheduler in self.schedulers:
            scheduler.step()
        self.detector.shown += 1

    def run(self, steps: int) -> list[Action]:
        return [self.step() for _ in range(steps)]

    def state(self) -> dict[str, Any]:
        """Return all but the loader."""
        parts: dict[str, Any] = {"schedulers": self.schedulers, "detector": self.detector}
        return host_copy(collect_state(self.model, self.optimizers, **parts), "state")

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self.recovery.journal.path
        return journal.read(path) if path.exists() else []

    @property
    def told(self) -> list[str]:
        return [event["event"] for event in self.events]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random.seed(0)
    return tmp_path


def moved(loop: Loop) -> bool:
    before = host_copy(dict(loop.model.named_parameters()), "before")
    loop.step()
    return not equal(host_copy(dict(loop.model.named_parameters()), "after"), before)


# Nothing wrong


def test_a_healthy_run_is_left_alone_and_its_checkpoints_become_healthy(folder: Path):
    plain, watched = Loop(folder / "0", NOTHING), Loop(folder / "1")
    for loop in (plain, watched):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        assert set(loop.run(47)) == {Action.NONE}
    assert equal(plain.state(), watched.state())
    tags = [(entry.step, entry.tag) for entry in watched.recovery.checkpoints.entries()]
    healthy = [(step, Tag.HEALTHY) for step in (5, 10, 15)]  # 30 steps without an alarm later
    assert tags == [*healthy, *((step, Tag.PENDING) for step in (20, 25, 30, 35, 40, 45))]
    assert watched.told == []


# The stages


@over("make", OPTIMIZERS)
def test_a_step_that_is_not_finite_is_skipped_by_all_and_told(make: Callable[..., list[Optimizer]], folder: Path):
    loop = Loop(folder, make=make)
    loop.run(3)
    before = loop.state()["model"]
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        loop.step(spoil=torch.nan)
    weights = {name for name, _ in loop.model.named_parameters()}
    after = loop.state()["model"]
    assert equal({name: after[name] for name in weights}, {name: before[name] for name in weights})
    assert loop.step(Sign(step=3, signal="non_finite")) is Action.SKIPPED
    assert loop.told == ["skipped", "alarm"]
    assert (loop.events[0]["step"], loop.events[0]["count"]) == (3, 1)
    assert moved(loop)


@over("make", OPTIMIZERS)
def test_a_skipped_step_leaves_every_buffer_as_it_was(make: Callable[..., list[Optimizer]], folder: Path):
    loop = Loop(folder, make=make)
    loop.run(3)
    before = host_copy(dict(loop.model.named_buffers()), "before")
    assert len(before) == 3
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        loop.step(spoil=torch.nan)  # the batch itself is finite, and so are the averages that it left
    assert equal(host_copy(dict(loop.model.named_buffers()), "after"), before)
    loop.step()
    assert int(loop.model.get_buffer("1.num_batches_tracked")) == int(before["1.num_batches_tracked"]) + 1


def test_one_value_that_is_not_finite_in_one_row_leaves_no_trace(folder: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = surefoot.ClippyAdagrad(model.parameters(), 0.1)
    recovery = Recovery(model, optimizer, folder, detector=Told())
    for step in range(60):
        x = torch.randn(16, 8)
        if step == 7:
            x[3, 5] = torch.nan
        optimizer.zero_grad()
        model(x).square().mean().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer.step()
        recovery.step()
    assert optimizer.skipped_steps == 1
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers())
    assert bool(model.eval()(torch.randn(16, 8)).isfinite().all())
    assert int(model.get_buffer("1.num_batches_tracked")) == 59


def test_without_the_first_stage_nothing_is_skipped(folder: Path):
    loop = Loop(folder, RecoveryPolicy(skip=False), make=OPTIMIZERS["SGD"])
    loop.run(3)
    loop.step(spoil=torch.nan)
    assert not all(bool(param.isfinite().all()) for param in loop.model.parameters())
    assert loop.told == []


def test_an_early_signal_slows_the_steps_and_the_rate_returns_gently(folder: Path):
    loop = Loop(folder, RecoveryPolicy(slow=Slow(factor=0.25, steps=4)))
    loop.run(20)
    assert loop.step(Sign(19, "clip_ratio")) is Action.SLOWED
    factors = []
    for _ in range(14):
        factors.append(loop.recovery.rate_factor)
        loop.step()
    assert factors[:5] == [0.25] * 5
    assert factors[5:13] == pytest.approx([0.25 * 2 ** (i / 4) for i in range(1, 9)])
    assert loop.recovery.rate_factor == 1.0
    assert loop.told == ["alarm", "slowed", "rate_restored"]


def test_without_the_second_stage_an_early_signal_goes_to_the_third(folder: Path):
    loop = Loop(folder, RecoveryPolicy(slow=None))
    loop.run(20)
    assert loop.step(Sign(19, "clip_ratio")) is Action.LOOKING


@over("make", OPTIMIZERS)
def test_harm_rolls_everything_back_bit_for_bit(make: Callable[..., list[Optimizer]], folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=AT_ONCE, confirm=10), make=make)
    loop.run(30)
    then = loop.state()  # the checkpoint after 30 steps
    loop.run(14)
    position = loop.loader.position
    assert loop.step(Sign(43, "auc")) is Action.ROLLED_BACK
    assert equal(loop.state(), then)
    assert loop.detector.shown == 30
    event = loop.events[-1]
    assert (event["event"], event["steps"], event["checkpoint"]) == ("rolled_back", 30, "step-000000030.healthy.pt")
    assert (event["batches_dropped"], event["step"], event["rate_factor"]) == (15, 44, 0.5)
    advanced = MovingWindow(LOG, 16, seed=1).stream(4)
    for _ in range(45):
        next(advanced)
    assert loop.loader.position == advanced.position != position  # as if it had gone back to 30 and past 15 batches


def test_the_checkpoint_is_older_than_the_onset_and_later_ones_are_suspect(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=AT_ONCE, confirm=10))
    loop.run(44)
    assert loop.step(Sign(27, "auc")) is Action.ROLLED_BACK
    assert loop.events[-1]["steps"] == 25
    assert [(e.step, e.tag) for e in loop.recovery.checkpoints.entries()][-1] == (40, Tag.SUSPECT)
    assert loop.events[-1]["batches_dropped"] == 20


def test_a_damaged_checkpoint_is_passed_over(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=AT_ONCE, confirm=10))
    loop.run(44)
    newest = folder / "checkpoints" / "step-000000030.healthy.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    loop.step(Sign(43, "auc"))
    assert loop.events[-1]["steps"] == 25


def test_a_bad_batch_that_did_no_harm_costs_a_few_batches_and_nothing_goes_back(folder: Path):
    loop = Loop(folder)
    loop.run(44)
    assert loop.step(Sign(43, "auc")) is Action.LOOKING
    before = host_copy(loop.model.state_dict(), "before")
    assert loop.run(3) == [Action.NONE] * 3
    assert equal(host_copy(loop.model.state_dict(), "after"), before)
    assert not loop.recovery.holding
    assert loop.recovery.rate_factor == 1.0
    assert moved(loop)
    assert loop.told == ["alarm", "looking", "released"]
    assert loop.step(Sign(loop.recovery.steps - 1, "auc")) is Action.ROLLED_BACK  # again, and so soon


def test_harm_that_stays_rolls_back_after_the_look(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=RollBack(look=6)))
    loop.run(44)
    loop.detector.healthy = False
    actions = [loop.step(Sign(43, "auc")), *loop.run(6)]
    assert actions == [Action.LOOKING, *[Action.NONE] * 5, Action.ROLLED_BACK]
    assert loop.told == ["alarm", "looking", "rolled_back"]
    assert loop.events[-1]["reason"] == "no better after a look at 6 batches"


BAD_BATCH: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Clippy from .1": lambda m: surefoot.ClippyAdagrad(m.parameters(), 0.05, initial_accumulator_value=0.1),
    "Clippy from 1e-6": lambda m: surefoot.ClippyAdagrad(m.parameters(), 0.05, initial_accumulator_value=1e-6),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), 0.01),
}


def regression(folder: Path, make: Callable[[nn.Module], Optimizer], fault: int | None) -> tuple[float, list[Any]]:
    """Return the final mean squared error and the events."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer, generator = make(model), torch.Generator().manual_seed(1)
    monitor = surefoot.Monitor(model, optimizer, tasks={"y": "regression"}, what_if=())
    recovery = Recovery(model, optimizer, folder, monitor=monitor)
    loss = torch.zeros(())
    for step in range(240):
        x = torch.randn(128, 8, generator=generator)
        y = x.sum(1) + x[:, 0] * x[:, 1]
        prediction = model(1e4 * x if step == fault else x)[:, 0]
        loss = (prediction - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recovery.step(monitor.step({"y": loss}, outputs={"y": prediction}, labels={"y": y}))
    x = torch.randn(4096, 8, generator=generator)
    with torch.no_grad():
        error = (model(x)[:, 0] - x.sum(1) - x[:, 0] * x[:, 1]).square().mean()
    return float(error), journal.read(folder / "events.jsonl")


@over("make", BAD_BATCH)
def test_an_early_bad_batch_leaves_nothing_in_the_state(make: Callable[[nn.Module], Optimizer], folder: Path):
    """Its trace in accumulators and momentum would slow the run down for good, though the losses are well again."""
    twin, events = regression(folder / "twin", make, None)
    assert events == []
    for fault in (20, 50):
        error, events = regression(folder / str(fault), make, fault)
        assert [event["event"] for event in events] == ["alarm", "rolled_back", "released"]
        assert (events[1]["steps"], events[1]["rate_factor"]) == (fault, 1.0)
        assert "times as large as before" in events[1]["reason"]
        assert error < 2 * twin


def spoiled(folder: Path) -> Loop:
    """Return a loop whose accumulators have taken in a bad batch after 44 steps, with the alarm about it told."""
    loop = Loop(folder, make=OPTIMIZERS["surefoot"])
    loop.run(44)
    for state in loop.optimizers[0].state.values():
        state["sum"] *= 1e6
    assert loop.step(Sign(44, "loss")) is Action.ROLLED_BACK
    assert (loop.events[-1]["checkpoint"], loop.events[-1]["rate_factor"]) == ("step-000000040.pt", 1.0)
    return loop


def test_what_came_at_once_goes_back_to_the_newest_checkpoint_at_the_whole_rate(folder: Path):
    loop = spoiled(folder)
    assert set(loop.run(40)) == {Action.NONE}
    assert loop.told == ["alarm", "rolled_back", "released"]
    assert (40, Tag.HEALTHY) in [(entry.step, entry.tag) for entry in loop.recovery.checkpoints.entries()]


def test_a_newest_checkpoint_that_is_not_well_is_followed_by_a_healthy_one(folder: Path):
    loop = spoiled(folder)
    loop.run(1)
    loop.detector.healthy = False
    assert loop.step() is Action.ROLLED_BACK
    assert loop.events[-1]["checkpoint"] == "step-000000010.healthy.pt"
    assert (loop.events[-1]["rate_factor"], loop.events[-1]["in_a_row"]) == (0.5, 1)
    assert loop.events[-1]["reason"] == "the newest checkpoint was not healthy"
    assert [(e.step, e.tag) for e in loop.recovery.checkpoints.entries()][-1] == (40, Tag.SUSPECT)
    loop.run(5)
    assert not loop.recovery.holding


def test_after_slowing_down_the_trace_is_looked_for_too(folder: Path):
    loop = Loop(folder, make=OPTIMIZERS["surefoot"])
    loop.run(44)
    for state in loop.optimizers[0].state.values():
        state["sum"] *= 1e6
    actions = [loop.step(Sign(44, "grad_norm")), *loop.run(3)]
    assert actions == [Action.SLOWED, Action.NONE, Action.NONE, Action.ROLLED_BACK]
    assert "times as large as before" in loop.events[-1]["reason"]


def test_what_is_not_finite_never_becomes_a_checkpoint(folder: Path):
    loop = Loop(folder, RecoveryPolicy(skip=False, confirm=5))
    loop.run(12)
    with torch.no_grad():
        loop.optimizers[1].state[loop.optimizers[1].param_groups[0]["params"][0]]["exp_avg"][0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what is NaN spreads
        loop.run(10)
    assert loop.recovery.checkpoints.entries()[-1].step == 10
    assert loop.told == ["checkpoint_failed"] * 2
    assert "exp_avg of 3.weight" in loop.events[0]["reason"]


def test_a_mask_that_is_not_finite_is_no_trouble(folder: Path):
    model = nn.Linear(2, 1)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    recovery = Recovery(model, torch.optim.SGD(model.parameters(), 0.1), folder, every=1)
    recovery.step()
    assert [entry.step for entry in recovery.checkpoints.entries()] == [0, 1]


def test_a_broken_model_is_refused(folder: Path):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.bias, torch.nan)
    with pytest.raises(ValueError, match="model has 'bias' that is NaN or infinite; expected finite weights"):
        Recovery(model, torch.optim.SGD(model.parameters(), 0.1), folder)


def test_checkpoints_are_made_early(folder: Path):
    """A short run has something to go back to."""
    loop = Loop(folder, RecoveryPolicy(roll_back=AT_ONCE), every=500)
    loop.run(100)
    assert loop.step(Sign(100, "auc")) is Action.ROLLED_BACK
    assert loop.events[-1]["steps"] == 70


def test_after_a_roll_back_the_model_looks_first_then_goes_on_at_half_the_rate(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3, steps=5)))
    loop.run(44)
    loop.step(Sign(43, "auc"))
    model = loop.state()["model"]
    loop.run(2)
    assert loop.recovery.holding
    assert equal(loop.state()["model"], model)  # the running averages of a batch norm too
    loop.run(1)
    assert not loop.recovery.holding
    assert loop.recovery.rate_factor == 0.5
    assert moved(loop)
    loop.run(10)
    assert loop.recovery.rate_factor == 1.0
    assert loop.told == ["alarm", "rolled_back", "released", "rate_restored"]


def test_it_waits_for_bad_data_to_pass(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3)))
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.step()
    loop.step(Sign(45))
    loop.detector.healthy = False
    loop.run(10)
    assert loop.recovery.holding
    loop.detector.healthy = True
    loop.run(2)
    assert loop.recovery.holding
    loop.run(1)
    assert not loop.recovery.holding
    assert loop.told == ["alarm", "rolled_back", "alarm", "released"]
    assert loop.events[-1]["batches_held"] == 15


@over("learnt", {"learnt": True, "untrained": False})
def test_weights_that_have_learnt_nothing_cannot_say_that_data_are_bad(learnt: bool, folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3)))
    loop.detector.has_learnt = learnt
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.step()
    loop.detector.healthy = False
    loop.step(Sign(45, "relative_loss"))
    loop.run(2)
    assert loop.recovery.holding is learnt
    assert loop.detector.healthy is not learnt  # it starts anew
    assert loop.told[:3] == ["alarm", "rolled_back", "alarm"]
    assert loop.told[3:] == ([] if learnt else ["released"])


@over("signal", {"loss": "loss", "not finite": "non_finite"})
def test_but_any_weights_can_say_so_of_a_loss_that_is_far_too_large(signal: str, folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3)))
    loop.detector.has_learnt = False
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.step()
    loop.detector.healthy = False
    loop.step(Sign(45, signal))
    loop.run(2)
    assert loop.recovery.holding


def test_an_early_signal_while_it_looks_is_of_the_rate_and_not_of_the_data(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3)))
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.step(Sign(45, "clip_ratio"))
    assert loop.recovery.rate_factor == pytest.approx(0.05)
    loop.run(4)
    assert not loop.recovery.holding
    assert loop.told == ["alarm", "rolled_back", "alarm", "slowed", "released"]


def test_data_that_have_changed_for_good_are_accepted(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=3, longest_hold=20)))
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.step()
    loop.detector.healthy = False
    loop.run(18)
    assert (loop.recovery.holding, loop.told[-1]) == (True, "rolled_back")
    loop.run(1)
    assert (loop.recovery.holding, loop.told[-1]) == (False, "accepted")
    assert (loop.detector.healthy, loop.detector.shown) == (True, 0)  # it starts anew
    assert moved(loop)
    then = loop.recovery.steps
    assert loop.step(Sign(then - 1, "loss")) is Action.NONE  # learning what is new looks like harm
    assert loop.step(Sign(then, "clip_ratio")) is Action.SLOWED
    loop.detector.healthy = False
    assert set(loop.run(27)) == {Action.NONE}
    assert loop.step(Sign(loop.recovery.steps - 1, "loss")) is Action.ROLLED_BACK
    assert loop.recovery.holding  # old weights find the new data bad again
    loop.step()
    loop.detector.healthy = False
    loop.run(19)
    assert (loop.recovery.holding, loop.told[-1]) == (False, "accepted")


def test_rather_slow_down_than_unlearn_what_was_accepted(folder: Path):
    loop = Loop(folder, RecoveryPolicy(confirm=5, roll_back=RollBack(look=2, hold=2, longest_hold=2)), every=20)
    loop.run(44)
    loop.detector.healthy = False
    loop.step(Sign(43, "auc"))
    loop.run(3)
    loop.detector.healthy = False
    loop.run(1)
    assert loop.told == ["alarm", "looking", "rolled_back", "accepted"]
    loop.run(6)
    actions = [loop.step(Sign(loop.recovery.steps - 1, "loss"))]
    loop.detector.healthy = False
    actions += loop.run(13)
    assert [action for action in actions if action is not Action.NONE] == [
        Action.LOOKING,
        Action.SLOWED,
        Action.ROLLED_BACK,
    ]


def test_at_most_three_roll_backs_in_a_row_then_it_stops_and_every_checkpoint_stays(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=2)))
    loop.run(50)
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    factors, actions = [], []
    for _ in range(4):
        actions.append(loop.step(Sign(loop.recovery.steps - 1, "auc")))
        factors.append(loop.recovery.rate_factor)
        held = 0
        while loop.recovery.holding:
            loop.step()
            held += 1
        actions.append(held)
        loop.run(1)
    assert actions == [Action.ROLLED_BACK, 2, Action.ROLLED_BACK, 4, Action.ROLLED_BACK, 8, Action.STOP, 0]
    assert factors == [0.5, 0.25, 0.125, 0.125]
    assert loop.told[-2:] == ["alarm", "stopped"]
    healthy = {name for name in kept if "healthy" in name}
    assert healthy <= {path.name for path in (folder / "checkpoints").iterdir()}
    assert len(healthy) == 3
    assert healthy <= set(loop.events[-1]["checkpoints"])
    assert loop.run(2) == [Action.STOP] * 2
    steps = [event["step"] for event in loop.events]
    assert steps == sorted(steps)


def test_roll_backs_do_not_count_anew_while_the_rate_is_lowered(folder: Path):
    how = replace(AT_ONCE, hold=1, steps=200, at_most=1)
    loop = Loop(folder, RecoveryPolicy(slow=None, confirm=10, roll_back=how))
    loop.run(50)
    assert loop.step(Sign(loop.recovery.steps - 1, "auc")) is Action.ROLLED_BACK
    loop.run(60)
    assert loop.recovery.rate_factor < 1.0
    assert loop.step(Sign(loop.recovery.steps - 1, "auc")) is Action.STOP


def test_roll_backs_count_anew_after_health(folder: Path):
    loop = Loop(folder, RecoveryPolicy(confirm=10, roll_back=replace(AT_ONCE, hold=1, steps=2, at_most=1)))
    for _ in range(3):
        loop.run(50)
        assert loop.step(Sign(loop.recovery.steps - 1, "auc")) is Action.ROLLED_BACK
    loop.run(3)
    assert loop.step(Sign(loop.recovery.steps - 1, "auc")) is Action.STOP


def test_without_the_third_stage_it_slows_and_then_stops(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=None))
    loop.run(44)
    assert [loop.step(Sign(43, "auc")), loop.step(Sign(44, "auc"))] == [Action.SLOWED, Action.STOP]


def test_without_the_last_stage_it_goes_on(folder: Path):
    loop = Loop(folder, RecoveryPolicy(slow=None, roll_back=None, stop=False))
    loop.run(44)
    assert loop.step(Sign(43, "auc")) is Action.NONE
    assert moved(loop)


# Called from an optimizer's hook


def test_a_lowered_rate_is_whole_again_after_22_healthy_steps(folder: Path):
    loop = Loop(folder)
    loop.run(30)
    assert loop.step(Sign(29, "clip_ratio")) is Action.SLOWED
    factors: list[float] = []
    for _ in range(30):
        loop.step()
        factors.append(loop.recovery.rate_factor)
    assert factors.index(1.0) + 1 == 22


HOOKED: dict[str, Callable[[nn.Sequential], list[Optimizer]]] = {
    "Clippy": lambda model: [surefoot.ClippyAdagrad(model.parameters(), 0.1)],
    "Adam": lambda model: [torch.optim.Adam(model.parameters(), 0.01)],
    "surefoot and torch": pair,
}


SIGNS = {33: Sign(33, "clip_ratio"), 75: Sign(74, "auc")}  # by the batch on which it is told


def told_from_a_hook(folder: Path, make: Callable[[nn.Sequential], list[Optimizer]], hook: str, clip: str) -> Loop:
    """Slow down, save meanwhile, roll back; the last optimizer's hook, and Clippy, are put on before the recovery or
    after it.
    """
    loops: list[Loop] = []
    told = 0

    def tell(*_: object) -> None:
        nonlocal told
        loops[0].recovery.step(SIGNS.get(told))
        told += 1

    def attach(when: str, optimizer: Optimizer) -> None:
        if hook == when:
            optimizer.register_step_post_hook(tell)
        if clip == when and isinstance(optimizer, torch.optim.Adam):
            surefoot.clip_updates(optimizer, surefoot.Clippy(relative=1e-3, absolute=1e-4))

    def made(model: nn.Sequential) -> list[Optimizer]:
        optimizers = make(model)
        attach("before", optimizers[-1])
        return optimizers

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    policy = RecoveryPolicy(skip=False, slow=Slow(steps=20), roll_back=replace(AT_ONCE, hold=2), confirm=10)
    loops.append(Loop(folder, policy, make=made, schedulers=()))
    loops[0].schedulers = []  # a rate that is set between the hook and the call after the step is another one
    attach("after", loops[0].optimizers[-1])
    for batch in range(100):
        loops[0].train()
        if hook == "none":
            loops[0].recovery.step(SIGNS.get(batch))
    return loops[0]


@over("make", HOOKED)
@over("clip", {"clipped before": "before", "clipped after": "after"})
def test_told_from_a_hook_it_does_the_same_wherever_the_hook_is(
    make: Callable[[nn.Sequential], list[Optimizer]], clip: str, folder: Path
):
    plain = told_from_a_hook(folder / "none", make, "none", clip)
    assert plain.told == ["alarm", "slowed", "alarm", "rolled_back", "released"]
    for hook in ("before", "after"):
        hooked = told_from_a_hook(folder / hook, make, hook, clip)
        assert hooked.events == plain.events
        assert equal(hooked.state()["model"], plain.state()["model"])
        assert equal(hooked.state()["optimizers"], plain.state()["optimizers"])
        for path, other in zip(
            *(sorted((each / "checkpoints").iterdir()) for each in (folder / "none", folder / hook)), strict=True
        ):
            saved, expected = hooked.recovery.checkpoints.load(other), plain.recovery.checkpoints.load(path)
            assert equal(saved["optimizers"], expected["optimizers"])
            assert equal(saved["model"], expected["model"])


def test_told_to_stop_from_a_hook_it_says_so_after_the_next_step(folder: Path):
    loop = Loop(folder, RecoveryPolicy(slow=None, roll_back=None))
    done: list[Action] = []
    alarms = iter([None, Sign(1), None, None])
    loop.optimizers[-1].register_step_post_hook(lambda *_: done.append(loop.recovery.step(next(alarms))))
    for _ in range(4):
        loop.train()
    assert done == [Action.NONE, Action.NONE, Action.STOP, Action.STOP]


# From stage to stage


def test_a_stage_that_does_not_help_in_time_is_followed_by_the_next(folder: Path):
    loop = Loop(folder, RecoveryPolicy(patience=6))
    loop.run(44)
    loop.detector.healthy = False
    assert loop.step(Sign(43, "grad_norm")) is Action.SLOWED
    assert [action for action in loop.run(6) if action is not Action.NONE] == [Action.ROLLED_BACK]
    assert loop.events[-1]["reason"] == "no better 6 steps later"


def test_an_early_signal_of_a_step_from_before_the_slowing_changes_nothing(folder: Path):
    loop = Loop(folder)
    loop.run(44)
    actions = [loop.step(Sign(step, "clip_ratio")) for step in (43, 44, 45)]
    assert actions == [Action.SLOWED, Action.NONE, Action.ROLLED_BACK]


def test_an_alarm_of_a_step_that_was_rolled_back_changes_nothing(folder: Path):
    """A monitor reads one step late: what it read last belongs to weights that are gone."""
    loop = Loop(folder, RecoveryPolicy(roll_back=replace(AT_ONCE, hold=0)))
    loop.run(44)
    loop.step(Sign(43, "auc"))
    loop.detector.healthy = False  # it has been shown that step
    assert loop.step(Sign(44, "loss")) is Action.NONE
    assert loop.detector.healthy
    assert loop.told == ["alarm", "rolled_back"]


# An interruption


def test_a_run_goes_on_after_an_interruption_as_if_there_had_been_none(folder: Path):
    policy = RecoveryPolicy(slow=Slow(steps=20), confirm=10)
    first = Loop(folder, policy, every=10)
    first.run(30)
    first.step(Sign(29, "clip_ratio"))
    first.run(19)
    then, position = first.state(), first.loader.position
    first.run(5)
    torch.manual_seed(5)
    second = Loop(folder, policy, seed=7, every=10)
    assert second.recovery.resume() == 50
    assert equal(second.state(), then)
    assert second.loader.position == position
    assert second.recovery.rate_factor == 0.1
    second.run(5)
    second.recovery.close()
    assert equal(second.state()["model"], first.state()["model"])
    assert second.told == ["alarm", "slowed", "resumed"]


def test_a_number_that_an_earlier_version_has_saved_is_left_out():
    state = State(steps=7, stage=Action.SLOWED, pending=[5])
    assert State.of({**state.state_dict(), "hold_limit": 40}) == state


def test_an_old_folder_is_not_mixed_up_with_a_new_run(folder: Path):
    Loop(folder).run(2)
    with pytest.raises(InputError, match=r"has checkpoints of an earlier run; expected resume\(\) before the first"):
        Loop(folder).step()


def test_a_loader_without_a_position_is_left_where_it_is(folder: Path):
    loop = Loop(folder, RecoveryPolicy(roll_back=AT_ONCE), loader=None)
    loop.run(44)
    assert loop.step(Sign(43, "auc")) is Action.ROLLED_BACK
    assert loop.loader.position == (0, 45)


@over("full", FULL)
def test_a_full_disk_ends_no_training_and_loses_nothing(full: Disk, folder: Path):
    with full(folder) as (run, disk):
        loop = Loop(run, RecoveryPolicy(roll_back=AT_ONCE, confirm=10), keep=100)  # an old one that goes makes room
        loop.run(44)
        disk.fill()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loop.run(6)
            assert loop.step(Sign(50, "auc")) is Action.ROLLED_BACK
            loop.run(5)
        assert {str(each.message).partition(":")[0] for each in told} >= {
            "the checkpoint after 45 steps was not written",
            f"{run / 'events.jsonl'} cannot be written, so events wait for room",
        }
        assert loop.told == []
        assert loop.recovery.checkpoints.latest_healthy() is not None
        disk.empty()
        loop.step(Sign(loop.recovery.steps, "auc"))
        assert loop.told[:5] == ["checkpoint_failed", "checkpoint_failed", "alarm", "rolled_back", "released"]
        assert next(event["steps"] for event in loop.events if event["event"] == "rolled_back") == 40
        steps = [event["step"] for event in loop.events]
        assert steps == sorted(steps)


@over("full", FULL)
def test_a_disk_that_is_full_from_the_start_ends_no_training(full: Disk, folder: Path):
    with full(folder) as (run, disk):
        disk.fill()
        with pytest.warns(UserWarning, match=r"(the checkpoint after 0 steps was not|events.jsonl cannot be) written"):
            loop = Loop(run, seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert set(loop.run(12)) == {Action.NONE}
            assert loop.step(Sign(12, "auc")) is Action.LOOKING
        disk.empty()
        loop.run(20)
        assert loop.recovery.checkpoints.latest() is not None


def test_a_folder_that_cannot_be_used_is_named(folder: Path):
    (folder / "run").write_text("a file")
    with pytest.raises(InputError, match=r"folder .*run.* cannot be written: "):
        Loop(folder / "run")


# Several ranks


def roll_back_on_rank(rank: int, folder: str) -> None:
    """Run a rank; rank 0 skips a step, the newest healthy checkpoint of rank 1 is damaged."""
    loop = Loop(Path(folder) / str(rank), RecoveryPolicy(roll_back=AT_ONCE, confirm=10))
    loop.run(43)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        loop.step(spoil=0.0 if rank else torch.nan)
    assert loop.step(Sign(43, "non_finite")) is Action.SKIPPED
    newest = Path(folder) / "1" / "checkpoints" / "step-000000030.healthy.pt"
    if rank == 1:
        newest.write_bytes(newest.read_bytes()[:-100])
    assert loop.step(Sign(44, "auc")) is Action.ROLLED_BACK


@pytest.mark.slow
def test_ranks_decide_alike_and_roll_back_to_a_checkpoint_that_all_have(tmp_path: Path):
    run_ranks(roll_back_on_rank, tmp_path)
    for rank in ("0", "1"):
        assert journal.read(tmp_path / rank / "events.jsonl")[-1]["checkpoint"] == "step-000000025.healthy.pt"


# Bad input


@over(
    "wrong",
    {
        "factor": (lambda: Slow(factor=1.0), "factor is 1.0; expected a number between 0 and 1"),
        "steps": (lambda: RollBack(steps=0), "steps is 0; expected a finite number above 0"),
        "hold": (lambda: RollBack(hold=-1), "hold is -1; expected a finite number, 0 or above"),
        "at_most": (lambda: RollBack(at_most=0), "at_most is 0; expected a finite number above 0"),
        "patience": (lambda: RecoveryPolicy(patience=0), "patience is 0; expected a finite number above 0"),
        "confirm": (lambda: RecoveryPolicy(confirm=-3), "confirm is -3; expected a finite number above 0"),
    },
)
def test_numbers_that_cannot_be(wrong: tuple[Callable[[], object], str]):
    with pytest.raises(ValueError, match=wrong[1]):
        wrong[0]()


def test_parts_that_cannot_be(folder: Path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="optimizers is empty; expected one or more"):
        Recovery(model, [], folder)
    with pytest.raises(TypeError, match=r"optimizers has Linear.*; expected torch.optim.Optimizer objects"):
        Recovery(model, [optimizer, model], folder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="every is 0; expected a finite number above 0"):
        Recovery(model, optimizer, folder, every=0)
