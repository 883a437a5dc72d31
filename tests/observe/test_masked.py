"""Tasks that not every step shows: what the monitor says of them, and that a detector takes silence for nothing."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from properties import over
from ranks import run_ranks
from surefoot.detect.detector import Detector, Signals, Verdict
from surefoot.observe.monitor import Monitor
from surefoot.observe.step_record import without_unseen
from surefoot.observe.streaming_metrics import ABSENT, ENOUGH
from surefoot.optim.clippy_adagrad import ClippyAdagrad

KINDS = {"click": "binary", "sales": "regression"}
ROWS = 256


class Loop:
    """A loop whose task sales is masked; the monitor's values are kept."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({task: nn.Linear(3, 1) for task in KINDS})
        self.optimizer = ClippyAdagrad(self.model.parameters(), 0.1)
        self.rows: dict[int, dict[str, float]] = {}
        options = {"tasks": KINDS, "masked": ["sales"], "sinks": [self.keep]} | options
        self.monitor = Monitor(self.model, self.optimizer, **options)

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        self.rows[step] = dict(values)

    def step(self, observed: int, output: float = 0.0) -> Any:
        """Take a step in which the first rows of sales are observed; add ``output`` to what is predicted of sales."""
        x = torch.randn(ROWS, 3)
        labels = {"click": (x[:, 0] > 0).float(), "sales": x[:, 1].clone()}
        labels["sales"][observed:] = torch.nan
        outputs = {task: self.model[task](x)[:, 0] for task in KINDS}
        outputs["sales"] = outputs["sales"] + output
        sales = mse_loss(outputs["sales"][:observed], labels["sales"][:observed]) if observed else outputs["sales"] * 0
        losses = {"click": binary_cross_entropy_with_logits(outputs["click"], labels["click"]), "sales": sales.sum()}
        self.optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        self.optimizer.step()
        return self.monitor.step(losses, outputs=outputs, labels=labels)

    def run(self, observed: Iterator[int]) -> None:
        for count in observed:
            self.step(count)
        self.monitor.close()


def test_a_step_without_a_row_says_nothing_of_the_task() -> None:
    loop = Loop()
    loop.run(iter([ROWS, 0, ROWS]))
    told = [name for name in loop.rows[0] if name not in loop.rows[1]]
    layers = [f"{kind}/sales.{part}" for kind in ("l2_norm/grad", "clip_ratio") for part in ("weight", "bias")]
    names = {"loss/sales", "relative_loss/sales", "label_mean/sales", *layers}
    assert names <= set(told)
    assert names <= set(loop.rows[2])
    assert {"loss/click", "relative_loss/click", "clip_ratio/click.weight"} <= set(loop.rows[1])
    assert (loop.rows[1]["finite/loss"], loop.rows[1]["finite/grad"]) == (1.0, 1.0)


@over("count", [1, ENOUGH - 1])
def test_the_loss_of_a_few_rows_is_written_and_not_shown_to_the_detector(count: int) -> None:
    loop = Loop()
    loop.step(count)
    loop.step(ROWS)
    assert "loss/sales" in loop.rows[0]
    assert "relative_loss/sales" not in loop.rows[0]
    assert loop.monitor.signals is not None
    assert set(loop.monitor.signals.losses) == set(loop.monitor.signals.relative_losses) == {"click"}
    loop.step(ENOUGH)
    assert loop.monitor.signals.losses.keys() == {"click", "sales"}
    assert loop.monitor.signals.relative_losses.keys() == {"click", "sales"}
    assert loop.rows[1]["relative_loss/sales"] == pytest.approx(1.5, abs=1.5)


def test_without_being_told_of_masks_a_step_without_a_row_says_nothing_either() -> None:
    loop = Loop(masked=())
    loop.run(iter([ROWS, 0, 1, 2] * 5))
    assert "relative_loss/sales" not in loop.rows[1]
    assert "relative_loss/sales" not in loop.rows[2]  # a single value does not vary
    assert "relative_loss/sales" in loop.rows[3]
    assert not any(alarm.signal == "non_finite" for alarm in loop.monitor.detector.alarms)


@over("observed", {"never": [0], "now and then": [ROWS, 0, 0, 0, 0, 0, 0], "seldom": [3, 0], "few": [20, 40]})
def test_silence_raises_no_alarm(observed: list[int]) -> None:
    loop = Loop()
    loop.run(iter(observed * (400 // len(observed))))
    assert loop.monitor.detector.alarms == []
    assert loop.monitor.detector.verdict is Verdict.HEALTHY


@pytest.mark.filterwarnings("ignore:ClippyAdagrad. a gradient was NaN or infinite:RuntimeWarning")
@over("output", {"nan": math.nan, "inf": math.inf})
@over("observed", [1, ROWS])
def test_outputs_that_are_not_finite_are_told_all_the_same(observed: int, output: float) -> None:
    loop = Loop()
    for _ in range(20):
        loop.step(ROWS)
    loop.step(observed, output)
    alarm = loop.step(ROWS)
    assert (alarm.step, alarm.task, alarm.signal) == (20, "sales", "non_finite")


LOSSES = {"click": 0.4, "sales": 0.5}


def healthy(step: int) -> Signals:
    losses = {task: loss * (1 + 0.01 * (step % 3)) for task, loss in LOSSES.items()}
    return Signals(losses=losses, relative_losses=losses)


def without_sales(signals: Signals) -> Signals:
    return Signals(losses={"click": signals.losses["click"]}, relative_losses={"click": signals.losses["click"]})


def test_an_alarm_is_not_over_while_its_task_is_not_shown() -> None:
    detector = Detector()
    for step in range(50):
        detector.update(step, healthy(step))
    assert detector.update(50, Signals(losses=LOSSES | {"sales": 3.0}, relative_losses=LOSSES | {"sales": 3.0}))
    for step in range(51, 71):
        detector.update(step, without_sales(healthy(step)))
    assert not detector.healthy
    for step in range(71, 76):
        detector.update(step, healthy(step))
    assert detector.healthy


@over("shown", [1, 20])
def test_patience_counts_the_steps_that_show_the_task(shown: int) -> None:
    """It is given up after as many bad ones, however many steps are between them, and not before."""
    detector, patience = Detector(patience=30), 30
    bad = Signals(losses=LOSSES | {"sales": 9.0}, relative_losses=LOSSES | {"sales": 9.0})
    given_up = None
    for step in range(100 * shown):
        signals = healthy(step) if step < 50 * shown else bad
        detector.update(step, signals if step % shown == 0 else without_sales(signals))
        if given_up is None and detector.verdict is Verdict.FULL:
            given_up = step
    (event,) = detector.events
    assert event.onset // shown in (50, 51, 52)
    assert given_up is not None
    assert patience - 2 <= (given_up - event.onset) // shown <= patience


def test_the_first_loss_of_a_task_is_that_of_the_step_that_shows_it_first() -> None:
    detector = Detector()
    losses = {"click": 0.5, "sales": 100.0}
    for step in range(20):
        shown = losses if step % 4 == 3 else {"click": 0.5}
        assert detector.update(step, Signals(losses=shown)) is None
    again = Detector()
    again.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    for each in (detector, again):
        alarm = each.update(20, Signals(losses={"click": 0.5, "sales": 160.0}))
        assert alarm is not None
        assert "at the first step it was 100" in alarm.reason


NAMES = [("loss", "a"), ("loss", "b"), ("label_count", "a"), ("label_mean", "a"), ("label_variance", "a"), ("auc", "a")]


@over(
    "case",
    {
        "seen": ([1.0, 2.0, 3.0, 0.5, 0.1, 0.7], [1.0, 2.0, 3.0, 0.5, 0.1, 0.7]),
        "unseen": ([0.0, 2.0, 0.0, math.nan, math.nan, 0.7], [ABSENT, 2.0, 0.0, ABSENT, ABSENT, 0.7]),
        "no finite output": ([math.nan, 2.0, 0.0, math.nan, math.nan, 0.7], [math.nan, 2.0, 0.0, ABSENT, ABSENT, 0.7]),
    },
)
def test_what_an_unseen_task_leaves_of_a_rank(case: tuple[list[float], list[float]]) -> None:
    values, expected = case
    assert without_unseen(NAMES, values) == pytest.approx(expected, nan_ok=True)


def train(rank: int, folder: str) -> None:
    """Train one of two ranks; only the first ever observes sales, in every other step."""
    loop = Loop()
    for step in range(12):
        loop.step(0 if rank or step % 2 else ROWS)
    loop.monitor.close()
    if not rank:
        Path(folder, "values.json").write_text(json.dumps(loop.rows))


def test_what_one_rank_observes_is_what_all_of_them_say(tmp_path: Path) -> None:
    run_ranks(train, tmp_path)
    alone = Loop()
    alone.step(ROWS)
    alone.monitor.close()
    rows: dict[str, dict[str, float]] = json.loads((tmp_path / "values.json").read_text())
    for name in ("loss/sales", "relative_loss/sales", "label_mean/sales"):
        assert rows["0"][name] == pytest.approx(alone.rows[0][name])
        assert name not in rows["1"]


def test_the_scores_are_those_of_the_observed_rows() -> None:
    loop = Loop(refresh=1)
    tensors: list[tuple[Tensor, Tensor]] = []
    for count in (ROWS, 0, 5):
        x = torch.randn(ROWS, 3)
        output, label = self_made(loop, x, count)
        tensors.append((output[:count], label[:count]))
    loop.monitor.close()
    outputs, labels = (torch.cat(each) for each in zip(*tensors, strict=True))
    expected = float(outputs.std(correction=0) / labels.std(correction=0))
    assert loop.rows[2]["prediction_std_ratio/sales"] == pytest.approx(expected, rel=1e-5)
    assert loop.rows[1]["prediction_std_ratio/sales"] == loop.rows[0]["prediction_std_ratio/sales"]


def self_made(loop: Loop, x: Tensor, observed: int) -> tuple[Tensor, Tensor]:
    """Show the monitor a step on rows ``x``; return outputs and labels of sales."""
    output, label = loop.model["sales"](x)[:, 0].detach(), x[:, 1].clone()
    label[observed:] = torch.nan
    loop.monitor.step({"sales": torch.zeros(())}, outputs={"sales": output}, labels={"sales": label})
    return output, label
