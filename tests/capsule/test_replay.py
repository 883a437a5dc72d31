"""A replay: bit for bit, in another process too, noticing what differs; and the same batches under another rule."""

import subprocess
import sys
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import surefoot
from small_training import (
    MakeOptimizer,
    adagrad,
    adam,
    clipped_adam,
    clippy_adagrad,
    record,
    training,
    written,
)
from surefoot.capsule.counterfactual import Counterfactual
from surefoot.capsule.recovery_test import loss_changes
from surefoot.capsule.replay import ReplayedStep, Training, _differences, as_recorded, go_on, replay  # pyright: ignore[reportPrivateUsage]
from surefoot.capsule.ring import Ring
from surefoot.capsule.storage import StepRecord
from surefoot.errors import InputError

EVERY = (adagrad, adam, clipped_adam, clippy_adagrad)


@pytest.mark.parametrize("make", EVERY)
def test_a_replay_from_the_middle_is_equal_bit_for_bit(make: MakeOptimizer, tmp_path: Path):
    """With dropout, sparse embeddings, a warm-up, and a loop that draws random numbers between steps."""
    capsule = written(record(training(make), 23, steps=8, every=4), tmp_path)
    assert capsule.snapshots == (12, 16, 20)
    result = replay(capsule, training(make, seed=5))  # other weights, which the capsule's replace
    assert result.difference is None
    assert [seen.step for seen in result.steps] == list(range(12, 23))
    assert (result.compared, result.states) == (11 * (6 + 14), 3)  # 6 losses, 14 dense parameters
    assert result.surroundings == []


def test_a_replay_in_another_process_is_equal_bit_for_bit(tmp_path: Path):
    capsule = written(record(training(clippy_adagrad), 10, every=4), tmp_path)
    code = (
        "from pathlib import Path; from small_training import *; from surefoot.capsule.replay import replay;"
        f"r = replay(storage.read(Path({str(capsule.folder)!r})), training(clippy_adagrad, seed=5));"
        "print(r.difference, r.compared, r.states, torch.get_num_threads() > 1)"
    )
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(2); {code}"]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "None 200 3 True\n", done.stderr  # run with the recorded thread, and 2 again afterwards


def test_the_recorded_threads_and_settings_are_in_force_and_then_those_found(tmp_path: Path):
    subject, found = training(), []

    def step(batch: object) -> object:
        found.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return subject.step(batch)

    capsule = written(record(training(), 3), tmp_path)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    try:
        replay(capsule, replace(subject, step=step))  # pyright: ignore[reportArgumentType]
        assert set(found) == {(1, "highest")}
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_row_numbers_are_enough(tmp_path: Path):
    capsule = written(record(training(), 8, ids_only=True), tmp_path)
    assert capsule.steps[0].batch is None
    assert replay(capsule, training()).difference is None
    with pytest.raises(InputError, match="step 0 has row numbers only; expected a fetch function"):
        replay(capsule, replace(training(), fetch=None))


def test_python_and_numpy_generators_inside_and_between_steps(tmp_path: Path):
    import random

    import numpy as np

    torch.manual_seed(0)
    model = nn.Linear(2, 1)

    def make() -> Training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(x: torch.Tensor) -> dict[str, torch.Tensor]:
            loss = (model(x) * random.random() + np.random.rand()).square().mean()  # noqa: NPY002
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss.detach()}

        return Training(model, [optimizer], step)

    subject = make()
    ring = Ring(model, subject.optimizers, draws="all")
    for step in range(5):
        x = torch.from_numpy(np.random.rand(4, 2).astype(np.float32))  # noqa: NPY002
        random.random()
        ring.record(step, x)
        ring.observe(step, subject.step(x))
    capsule = written(ring, tmp_path)
    random.random()
    torch.rand(1)
    before = random.getstate(), torch.get_rng_state()
    assert replay(capsule, make()).difference is None
    assert random.getstate() == before[0]  # the caller's generators are left alone
    assert torch.equal(torch.get_rng_state(), before[1])


def damaged_loss(step: Training) -> Training:
    def other(batch: object) -> dict[str, torch.Tensor | float]:
        losses = dict(step.step(batch))
        return {**losses, "like": torch.nextafter(torch.as_tensor(losses["like"]), torch.tensor(inf))}

    return replace(step, step=other)


def test_the_first_difference_is_named(tmp_path: Path):
    capsule = written(record(training(), 6), tmp_path)
    first = replay(capsule, damaged_loss(training())).difference
    assert first is not None
    assert (first.step, first.name) == (0, "loss like")
    assert first.recorded != first.replayed
    assert float(first.recorded) == pytest.approx(float(first.replayed), rel=1e-6)  # one unit in the last place


def test_a_changed_weight_alone_is_noticed_at_the_next_snapshot(tmp_path: Path):
    """An embedding row that no batch of the steps between touches: no loss and no norm can tell."""
    capsule = written(record(training(), 8, every=4), tmp_path)
    changed = training()
    seen = {int(i) for item in capsule.steps for i in item.batch[0][:, 1]}
    untouched = 500 + next(i for i in range(1000) if i not in seen)  # users come first in the table
    plain = changed.step

    def step(batch: object) -> object:
        with torch.no_grad():
            changed.model.get_parameter("embedding.table.weight")[untouched] += 1e-3
        return plain(batch)

    first = replay(capsule, replace(changed, step=step)).difference  # pyright: ignore[reportArgumentType]
    assert first is not None
    assert (first.step, first.name) == (3, "state['model']['embedding.table.weight'] after the step")


def test_the_weights_after_the_last_step_are_compared(tmp_path: Path):
    capsule = written(record(training(), 3), tmp_path)
    assert capsule.digests is not None
    wrong = replace(capsule, digests={**capsule.digests, "heads.like.bias": 1})
    first = replay(wrong, training()).difference
    assert first is not None
    assert (first.step, first.name) == (2, "heads.like.bias after the step")


def test_what_is_not_as_it_was_is_said(tmp_path: Path):
    capsule = written(record(training(), 3), tmp_path)
    facts = {**capsule.facts, "processor": "abacus", "versions": {**capsule.facts["versions"], "torch": "0.1"}}
    words = replay(replace(capsule, facts=facts), training()).surroundings
    assert [each.split(" and is ")[0] for each in words] == ["torch was 0.1", "processor was abacus"]


def test_a_training_that_does_not_fit(tmp_path: Path):
    capsule = written(record(training(adagrad), 3), tmp_path)
    with pytest.raises(ValueError, match="was saved under NoClip"):
        replay(capsule, training(clippy_adagrad))
    with pytest.raises(ValueError, match="optimizers are 1; expected 2, as in the capsule"):
        replay(capsule, replace(training(), optimizers=training().optimizers[:1]))
    with pytest.raises(ValueError, match=r"model does not fit the capsule: Error\(s\) in loading"):
        replay(capsule, replace(training(), model=nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="step returned no loss 'click'; expected click, like"):
        replay(capsule, replace(training(), step=lambda batch: {}))


def test_what_each_rule_would_have_done_is_what_it_does(tmp_path: Path):
    """The factors told of an unclipped step are those of an optimizer that takes the same step under the rule."""
    capsule = written(record(training(adagrad), 1), tmp_path)
    rules = {"clippy": surefoot.Clippy(1e-3, 1e-4), "agc": surefoot.AdaptiveGradientClip(1e-3)}
    rules |= {"global": surefoot.GlobalGradientClip(0.01)}
    told = replay(capsule, training(adagrad), what_if=rules).steps[0].counterfactual.factors
    for name, rule in rules.items():
        subject = training(lambda params, rule=rule: surefoot.Adagrad(params, lr=0.1, rule=rule))
        go_on(capsule, subject)
        optimizer, params = subject.optimizers[0], dict(subject.model.named_parameters())
        assert isinstance(optimizer, surefoot.Adagrad)
        done = {layer: float(optimizer.clip_factors()[params[layer]].amin()) for layer in told[name]}
        assert told[name] == pytest.approx(done, rel=1e-4)
        assert min(done.values()) < 0.9


@pytest.mark.parametrize("make", [clippy_adagrad, clipped_adam])
def test_what_was_clipped_is_seen_as_it_would_have_been_unclipped(make: MakeOptimizer, tmp_path: Path):
    """Asked of its own step, the rule that clipped it says the factor that it gave."""
    subject = training(make)
    capsule = written(record(subject, 30), tmp_path)
    clipped = training(make)
    own = surefoot.Clippy() if make is clippy_adagrad else surefoot.Clippy(relative=0.05, absolute=1e-3)
    told = replay(capsule, clipped, what_if={"own": own}).steps[-1].counterfactual.factors["own"]
    assert min(told.values()) < 0.9
    again = training(make)
    assert told == pytest.approx(replay(capsule, again, what_if={"own": own}).steps[-1].counterfactual.factors["own"])
    ratios = replay(capsule, training(make), what_if={}).steps[-1].counterfactual.clip_ratios
    if make is clippy_adagrad:
        assert told == pytest.approx({layer: min(1.0, 1 / ratio) for layer, ratio in ratios.items()})


def test_going_on_under_another_rule(tmp_path: Path):
    """The same batches and random numbers, from the oldest snapshot: what training under that rule would have been."""
    capsule = written(record(training(adagrad), 6, every=4), tmp_path)
    with pytest.raises(ValueError, match="was saved under NoClip"):
        replay(capsule, training(clippy_adagrad))
    more = [capsule.steps[0].batch, capsule.steps[1].batch]
    seen = go_on(capsule, training(clippy_adagrad, seed=5), more=more)
    assert [each.step for each in seen] == list(range(8))
    own = written(record(training(clippy_adagrad), 6, every=4), tmp_path)
    assert [each.losses for each in seen[:6]] == [record.losses for record in own.steps]
    assert seen[5].losses != capsule.steps[5].losses


def seen(values: list[float]) -> list[ReplayedStep]:
    return [ReplayedStep(i, {"a": value}, {}, Counterfactual({}, {})) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "relative", "survived"),
    [
        ([0.6] * 20 + [9.0] * 5 + [0.7] * 20, True, True),
        ([0.6] * 20 + [9.0] * 5 + [0.85] * 20, True, False),  # past the middle between 0.6 and 1
        ([0.6] * 20 + [9.0] * 5 + [0.88] * 20, False, True),  # a plain loss may rise by half
        ([0.6] * 20 + [9.0] * 5 + [0.92] * 20, False, False),
        ([0.6] * 20 + [nan] + [0.6] * 20, True, True),
        ([0.6] * 20 + [nan] * 30, True, False),
        ([1.0] * 20 + [1.4] * 30, True, True),  # had learnt nothing
        ([0.6] * 20 + [0.6] * 16, True, False),  # too few to say
    ],
)
def test_survival(values: list[float], relative: bool, survived: bool):
    level = loss_changes(seen(values), 20, names=["a"], relative=relative)["a"]
    assert level.survived is survived
    assert level.worst == (inf if nan in values else max(values[20:]))


def test_numbers_are_compared_bit_for_bit():
    losses = {"not a number": nan, "zero": -0.0, "same": 0.5}
    record = StepRecord(0, None, None, {}, losses=losses, norms={}, observed=True, note={})
    assert _differences(record, ReplayedStep(0, losses, {}, Counterfactual({}, {}))) == []
    (found,) = _differences(record, ReplayedStep(0, {**losses, "zero": 0.0}, {}, Counterfactual({}, {})))
    assert found.name == "loss zero"


@pytest.mark.parametrize("mine", [True, False])
def test_settings_are_as_they_were_after_a_replay(mine: bool):
    facts = {"threads": 1, "matmul_precision": "medium", "deterministic": not mine}
    capsule: Any = SimpleNamespace(facts=facts)
    torch.use_deterministic_algorithms(mine)
    try:
        with as_recorded(capsule):
            assert torch.are_deterministic_algorithms_enabled() is not mine
            assert torch.get_float32_matmul_precision() == "medium"
        assert torch.are_deterministic_algorithms_enabled() is mine
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.use_deterministic_algorithms(False)
