"""The monitor in a loop: names, values, lateness, tiers, every way to the clip ratio, memory, no waits."""

import gc
import math
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim import Optimizer

from full_disks import nothing_can_be_written
from properties import over
from surefoot.lab import metrics
from surefoot.observe.attribution import Attribution, attribute
from surefoot.observe.monitor import Monitor
from surefoot.observe.step_stats import Step, clip_ratio
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_updates import clip_updates
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.optim.guard import guard
from surefoot.rules import AdaptiveGradientClip, Clippy, GradientClip, Rule

KINDS = {"click": "binary", "sales": "regression"}
LR = 0.1
Make = Callable[..., Optimizer]


class Model(nn.Module):
    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=sparse)
        self.bottom = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in KINDS})

    def forward(self, ids: Tensor, dense: Tensor) -> dict[str, Tensor]:
        h = self.bottom(torch.cat([self.table(ids), dense], 1)).relu()
        return {task: head(h) for task, head in self.heads.items()}


class Loop:
    """A training loop of some kind, with a monitor that keeps all it writes."""

    def __init__(self, make: Make | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = Model()
        tables = list(self.model.table.parameters())
        dense = [p for p in self.model.parameters() if p is not tables[0]]
        self.optimizers = [(make or (lambda params: ClippyAdagrad(params, LR)))(dense), torch.optim.Adagrad(tables, LR)]
        self.rows: dict[int, dict[str, float]] = {}
        options = {"tasks": KINDS, "sinks": [self.keep]} | options
        self.monitor = Monitor(self.model, self.optimizers, **options)
        self.before: dict[str, Tensor] = {}

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        self.rows[step] = dict(values)

    def batch(self, rows: int = 32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        labels = {"click": (torch.rand(rows) < 0.4).float(), "sales": torch.randn(rows)}
        return torch.randint(20, (rows,)), torch.randn(rows, 2), labels

    def losses(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "click": binary_cross_entropy_with_logits(outputs["click"][:, 0], labels["click"]),
            "sales": mse_loss(outputs["sales"][:, 0], labels["sales"]),
        }

    def step(self, spoil: Callable[[dict[str, Tensor]], None] = lambda labels: None, **more: Any) -> Any:
        ids, dense, labels = self.batch()
        spoil(labels)
        outputs = self.model(ids, dense)
        losses = self.losses(outputs, labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            optimizer.step()
        self.last = outputs, labels, losses
        return self.monitor.step(losses, outputs=outputs, labels=labels, **more)


LAYERS = ["bottom.weight", "bottom.bias", *(f"heads.{task}.{part}" for task in KINDS for part in ("weight", "bias"))]


def test_the_names_of_every_step() -> None:
    loop = Loop()
    for _ in range(3):
        loop.step()
    loop.monitor.close()
    by_layer = ("l2_norm/grad", "clip_factor", "clip_ratio")
    expected = {f"{kind}/{layer}" for kind in by_layer for layer in LAYERS}
    expected |= {f"{kind}/{task}" for kind in ("loss", "relative_loss", "label_mean") for task in KINDS}
    assert set(loop.rows[1]) == expected | {"finite/grad", "finite/loss"}


def test_the_names_of_a_surveyed_step() -> None:
    loop = Loop()
    loop.step()
    loop.monitor.close()
    names = set(loop.rows[0])
    for layer in (*LAYERS, "table.weight"):
        for norm in ("l2_norm", "linf_norm", "rms"):
            assert {f"{norm}/{of}/{layer}" for of in ("grad", "update", "weight")} <= names
        assert {f"dead_units/{layer}", f"update_ratio/{layer}"} <= names
    rules = ("GradientClip", "GlobalGradientClip", "AdaptiveGradientClip", "TrustRatio", "Clippy")
    assert {f"what_if/{rule}/{layer}" for rule in rules for layer in LAYERS} <= names
    assert "what_if_min/AdaptiveGradientClip/bottom.weight" in names
    assert "what_if/Clippy/table.weight" not in names
    assert {
        "auc/click",
        "calibration/click",
        "ne/click",
        "prediction_std_ratio/click",
        "ne/sales",
        "prediction_std_ratio/sales",
    } <= names
    assert not {"auc/sales", "calibration/sales"} & names


def test_values_are_read_one_step_late() -> None:
    loop = Loop()
    assert loop.step() is None
    assert loop.monitor.signals is None
    assert loop.monitor.signals_step is None
    assert loop.rows == {}
    first = {task: loss.item() for task, loss in loop.last[2].items()}
    loop.step()
    assert loop.monitor.signals_step == 0
    assert loop.monitor.signals is not None
    assert loop.monitor.signals.losses == pytest.approx(first)
    assert set(loop.rows) == {0}
    loop.monitor.close()
    assert set(loop.rows) == {0, 1}
    loop.monitor.close()
    assert set(loop.rows) == {0, 1}


def test_the_values_are_right() -> None:
    loop = Loop(every=2)
    for _ in range(5):
        loop.step()
    _, labels, losses = loop.last
    grads = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    loop.monitor.close()
    found = loop.rows[4]
    for task in KINDS:
        assert found[f"loss/{task}"] == pytest.approx(losses[task].item())
    rate = labels["click"].mean()
    entropy = float(-rate * rate.log() - (1 - rate) * (1 - rate).log())
    assert found["relative_loss/click"] == pytest.approx(losses["click"].item() / entropy)
    variance = float(labels["sales"].var(correction=0))
    assert found["relative_loss/sales"] == pytest.approx(losses["sales"].item() / variance)
    for name in LAYERS:
        assert found[f"l2_norm/grad/{name}"] == pytest.approx(float(grads[name].norm()))
        assert found[f"l2_norm/weight/{name}"] == pytest.approx(float(loop.before[name].norm()), rel=1e-5)
    rows = grads["table.weight"].coalesce()
    assert found["l2_norm/grad/table.weight"] == pytest.approx(float(rows.values().norm()))
    weight = loop.before["table.weight"][rows.indices()[0]]
    assert found["linf_norm/weight/table.weight"] == pytest.approx(float(weight.abs().max()), rel=1e-5)
    assert found["finite/grad"] == found["finite/loss"] == 1


def test_the_tiers_come_when_they_should() -> None:
    loop = Loop(every=4, refresh=3)
    for _ in range(10):
        loop.step()
    loop.monitor.close()
    assert [step for step, row in loop.rows.items() if "rms/grad/bottom.weight" in row] == [0, 4, 8]
    assert [step for step, row in loop.rows.items() if "auc/click" in row] == [0, 3, 6, 9]


def test_the_window_scores_the_last_rows() -> None:
    loop = Loop(refresh=3, rows=64)
    seen = []
    for _ in range(4):
        loop.step()
        seen.append((loop.last[0]["click"].detach()[:, 0], loop.last[1]["click"]))
    loop.monitor.close()
    outputs, labels = (torch.cat(column) for column in zip(*seen[-2:], strict=True))
    assert loop.rows[3]["auc/click"] == pytest.approx(metrics.auc(outputs, labels))
    assert loop.rows[3]["ne/click"] == pytest.approx(metrics.normalised_entropy(outputs, labels))


def attached(optimizer: Optimizer, rule: Any) -> Optimizer:
    clip_updates(optimizer, rule)
    return optimizer


RATIOS: dict[str, Make] = {
    "Clippy, clips": lambda params: ClippyAdagrad(params, LR),
    "no rule": lambda params: Adagrad(params, LR),
    "another rule": lambda params: Adagrad(params, LR, rule=GradientClip(1e-3)),
    "no rule, eager": lambda params: Adagrad(params, LR, fused=False),
    "torch Adagrad": lambda params: torch.optim.Adagrad(params, LR, initial_accumulator_value=0.1),
    "SGD": lambda params: torch.optim.SGD(params, LR),
    "SGD, Clippy attached": lambda params: attached(torch.optim.SGD(params, LR), Clippy()),
    "SGD, another rule attached": lambda params: attached(torch.optim.SGD(params, LR), GradientClip(1e-3)),
}


@over("make", RATIOS)
def test_the_clip_ratio_is_that_of_the_unclipped_step(make: Make) -> None:
    loop = Loop(make)
    for _ in range(3):
        loop.step()
    grads = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    loop.monitor.close()
    params = dict(loop.model.named_parameters())
    for name in LAYERS:
        update = grads[name]
        if isinstance(loop.optimizers[0], Adagrad | torch.optim.Adagrad):
            update = update / loop.optimizers[0].state[params[name]]["sum"].sqrt()
        expected = float(clip_ratio(Step(loop.before[name], grads[name], update, LR)))
        assert loop.rows[2][f"clip_ratio/{name}"] == pytest.approx(expected, rel=1e-3)


@over("rule", {"Clippy": Clippy(), "by unit": AdaptiveGradientClip(1e-1), "by tensor": GradientClip(0.2)})
def test_the_clip_factor_is_the_optimizers(rule: Rule) -> None:
    loop = Loop(lambda params: Adagrad(params, LR, rule=rule))
    loop.step()
    factors = loop.optimizers[0].clip_factors()  # pyright: ignore[reportAttributeAccessIssue]
    expected = {name: float(factors[loop.model.get_parameter(name)].mean()) for name in LAYERS}
    loop.monitor.close()
    assert {name: loop.rows[0][f"clip_factor/{name}"] for name in LAYERS} == pytest.approx(expected)
    assert min(expected.values()) < max(expected.values()) == 1


def test_a_clippy_of_other_thresholds_has_its_own_ratio() -> None:
    loop = Loop(lambda params: ClippyAdagrad(params, LR, relative=0.1, absolute=1e-3))
    loop.step()
    measures = loop.optimizers[0].measures()  # pyright: ignore[reportAttributeAccessIssue]
    loop.monitor.close()
    expected = 1 / float(measures[loop.model.bottom.weight])
    assert loop.rows[0]["clip_ratio/bottom.weight"] == pytest.approx(expected)


def test_a_rate_that_is_lowered_for_the_step_alone_is_the_rate_of_the_step() -> None:
    for first in (True, False):
        optimizer_of: list[Optimizer] = []

        def make(params: Any, first: bool = first, made: list[Optimizer] = optimizer_of) -> Optimizer:
            made.append(torch.optim.Adagrad(params, LR, initial_accumulator_value=0.1))
            if first:
                lower(made[0])
            return made[0]

        loop = Loop(make)
        if not first:
            lower(optimizer_of[0])
        loop.step()
        grads = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
        loop.monitor.close()
        name = "bottom.weight"
        update = grads[name] / (0.1 + grads[name].square()).sqrt()
        expected = float(clip_ratio(Step(loop.before[name], grads[name], update, 0.01 * LR)))
        assert loop.rows[0][f"clip_ratio/{name}"] == pytest.approx(expected, rel=1e-3)


def lower(optimizer: Optimizer) -> None:
    def scale(factor: float) -> Callable[..., None]:
        def hook(optimizer: Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= factor

        return hook

    optimizer.register_step_pre_hook(scale(0.01))
    optimizer.register_step_post_hook(scale(100.0))


def test_a_scheduler_that_steps_before_the_monitor_does_not_change_the_rate() -> None:
    loop = Loop(lambda params: Adagrad(params, LR))
    optimizer = loop.optimizers[0]
    optimizer.register_step_post_hook(lambda opt, *_: None)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    loop.step()
    update = loop.model.bottom.weight.grad
    assert update is not None
    ids, dense, labels = loop.batch()
    losses = loop.losses(loop.model(ids, dense), labels)
    for each in loop.optimizers:
        each.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    before = loop.model.bottom.weight.detach().clone()
    optimizer.step()
    schedule.step()
    loop.monitor.step(losses)
    loop.monitor.close()
    grad = loop.model.bottom.weight.grad
    assert grad is not None
    expected = clip_ratio(Step(before, grad, grad / optimizer.state[loop.model.bottom.weight]["sum"].sqrt(), LR))
    assert loop.rows[1]["clip_ratio/bottom.weight"] == pytest.approx(float(expected), rel=1e-3)


def test_gradients_that_a_scaler_has_scaled_are_seen_without_the_scale() -> None:
    model = nn.Linear(4, 1)
    optimizer = ClippyAdagrad(model.parameters(), LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    rows: list[dict[str, float]] = []
    monitor = Monitor(model, optimizer, sinks=[lambda step, values: rows.append(dict(values))], every=1)
    loss = model(torch.ones(3, 4)).square().mean()
    scaler.scale(loss).backward()
    grad = model.weight.grad
    assert grad is not None
    expected = float(grad.norm()) / 1024
    scaler.step(optimizer)
    scaler.update()
    monitor.step({"loss": loss})
    monitor.close()
    assert rows[0]["l2_norm/grad/weight"] == pytest.approx(expected)
    assert rows[0]["linf_norm/grad/weight"] == pytest.approx(float(grad.abs().max()) / 1024)


def test_a_gradient_that_is_not_finite_is_flagged() -> None:
    loop = Loop()
    guard(*loop.optimizers)

    def spoil(labels: dict[str, Tensor]) -> None:
        labels["sales"][3] = math.inf

    loop.step()
    with pytest.warns(RuntimeWarning, match="skipped"):
        loop.step(spoil)
    loop.step()
    loop.monitor.close()
    bad = loop.rows[1]
    assert (bad["finite/grad"], bad["finite/loss"]) == (0, 0)
    assert math.isinf(bad["loss/sales"])
    assert math.isfinite(bad["loss/click"])
    assert not math.isfinite(bad["l2_norm/grad/bottom.weight"])
    assert math.isfinite(bad["l2_norm/grad/heads.click.weight"])
    assert not any(name.startswith("clip_ratio") for name in bad)  # there was no step
    assert loop.rows[2]["finite/grad"] == 1


def test_a_layer_without_a_gradient_has_no_values() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "spare": nn.Linear(2, 1), "frozen": nn.Linear(2, 1)})
    model["frozen"].requires_grad_(False)
    optimizer = ClippyAdagrad([*model["used"].parameters(), *model["spare"].parameters()], LR)
    monitor = Monitor(model, optimizer)
    loss = model["used"](torch.ones(4, 2)).square().mean()
    loss.backward()
    optimizer.step()
    monitor.step({"a": loss})
    monitor.close()
    layers = {name.rpartition("/")[2] for name in monitor.values}
    assert layers == {"used.weight", "used.bias", "a", "grad", "loss"}


def test_without_a_step_of_the_optimizer_there_is_no_ratio() -> None:
    loop = Loop(lambda params: Adagrad(params, LR, rule=GradientClip(1e-3)))
    loop.step()
    loop.monitor.step(loop.last[2])  # gradients are being accumulated, or a scaler has skipped the step
    loop.monitor.close()
    kinds = [{name.partition("/")[0] for name in loop.rows[step]} for step in (0, 1)]
    assert {"clip_ratio", "clip_factor"} <= kinds[0]
    assert not {"clip_ratio", "clip_factor"} & kinds[1]
    assert "l2_norm/grad/bottom.weight" in loop.rows[1]


def test_losses_alone_are_enough() -> None:
    loop = Loop(tasks=None)
    ids, dense, labels = loop.batch()
    losses = loop.losses(loop.model(ids, dense), labels)
    sum(losses.values(), torch.zeros(())).backward()
    loop.optimizers[0].step()
    loop.monitor.step(losses)
    loop.monitor.close()
    assert loop.monitor.signals is not None
    assert loop.monitor.signals.relative_losses == {}
    assert set(loop.monitor.signals.clip_ratios) == set(LAYERS)


def test_labels_without_outputs_give_relative_losses_and_no_scores() -> None:
    loop = Loop()
    ids, dense, labels = loop.batch()
    losses = loop.losses(loop.model(ids, dense), labels)
    sum(losses.values(), torch.zeros(())).backward()
    loop.optimizers[0].step()
    loop.monitor.step(losses, labels={"sales": labels["sales"]})
    loop.monitor.close()
    found = loop.rows[0]
    expected = losses["sales"].item() / float(labels["sales"].var(correction=0))
    assert found["relative_loss/sales"] == pytest.approx(expected)
    assert "relative_loss/click" not in found
    assert not {"auc/click", "prediction_std_ratio/sales"} & set(found)


@over("layers", {"glob": ["bottom.*"], "two": ["bottom.weight", "bottom.bias"]})
def test_layers_are_chosen_by_pattern(layers: list[str]) -> None:
    loop = Loop(layers=layers)
    loop.step()
    loop.monitor.close()
    assert loop.monitor.signals is not None
    assert set(loop.monitor.signals.grad_norms) == {"bottom.weight", "bottom.bias"}


@pytest.mark.parametrize("make", [ClippyAdagrad, Adagrad, torch.optim.AdamW], ids=lambda make: make.__name__)
def test_a_group_that_is_added_in_the_middle_of_a_run_is_looked_at(make: Make) -> None:
    loop = Loop(lambda params: make(params, LR))
    head = nn.Linear(8, 1)
    loop.model.heads["share"] = head
    for step in range(6):
        ids, dense, labels = loop.batch()
        losses = loop.losses(loop.model(ids, dense), labels)
        for optimizer in loop.optimizers:
            optimizer.zero_grad()
        (sum(losses.values()) + head(torch.ones(1, 8)).square().sum()).backward()
        for optimizer in loop.optimizers:
            optimizer.step()
        if step == 2:
            loop.optimizers[0].add_param_group({"params": head.parameters(), "lr": LR / 10})
        loop.monitor.step(losses)
    loop.monitor.close()
    for name in ("clip_ratio/heads.share.weight", "l2_norm/grad/heads.share.weight"):
        assert [step for step, row in loop.rows.items() if name in row][-2:] == [4, 5]
        assert name not in loop.rows[1]
    assert all("clip_ratio/bottom.weight" in row for row in loop.rows.values())


class Batches:
    """A task whose batches have different numbers of rows; what the detector is shown is kept."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(8, 1)
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), 0.02)
        self.monitor = Monitor(self.model, self.optimizer, tasks={"click": "binary"}, **options)
        self.shown: list[Any] = []
        self.alarms: list[Any] = []

    def run(self, rows: list[int], scale: float = 1.0) -> None:
        weight = torch.linspace(-1, 1, 8)
        for count in rows:
            x = torch.randn(count, 8)
            labels = ((x @ weight + torch.randn(count)) > 1.5).float()
            logits = self.model(x * scale)[:, 0]
            loss = binary_cross_entropy_with_logits(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            alarm = self.monitor.step({"click": loss}, outputs={"click": logits}, labels={"click": labels})
            self.alarms += [] if alarm is None else [alarm]
            if self.monitor.signals is not None:
                self.shown.append(self.monitor.signals)


def test_the_last_batch_of_an_epoch_raises_no_alarm() -> None:
    """16 rows of 1,024: what they show is chance."""
    loop = Batches()
    loop.run(([1024] * 20 + [16]) * 12)
    loop.monitor.close()
    assert loop.alarms == []
    few = loop.shown[20]
    assert [few.losses, few.relative_losses, few.grad_norms, few.clip_ratios] == [{}, {}, {}, {}]
    assert loop.monitor.signals is not None
    assert loop.monitor.values["loss/click"] > 0


def test_a_few_rows_that_are_not_finite_are_told_all_the_same() -> None:
    loop = Batches()
    loop.run([1024] * 20)
    loop.run([16], scale=math.nan)
    loop.run([1024])
    assert [alarm.signal for alarm in loop.alarms] == ["non_finite"]


def test_batches_that_stay_small_are_shown_once_they_are_usual() -> None:
    loop = Batches()
    loop.run([16] * 20)
    assert all(signals.losses for signals in loop.shown)
    loop = Batches()
    loop.run([1024] * 20 + [16] * 40)
    assert [bool(signals.losses) for signals in loop.shown[20:]] == [False] * 21 + [True] * 18
    again = Batches()
    again.monitor.load_state_dict(loop.monitor.state_dict())
    again.run([1024, 16])
    assert again.shown[0].losses


def test_the_window_starts_anew_when_an_alarm_is_over() -> None:
    """What one bad batch has left in it would be what is usual."""
    loop = Batches(rows=8192)
    loop.run([256] * 40)
    loop.run([256], scale=1e4)
    loop.run([256] * 24)
    assert loop.alarms
    assert loop.monitor.detector.healthy
    ratios = [signals.prediction_std_ratios["click"] for signals in loop.shown if signals.prediction_std_ratios]
    assert ratios[5] > 1.1 * max(ratios[:5])
    assert ratios[-1] < 1.1 * max(ratios[:5])  # the batch would be in the window for 32 steps


def test_memory_is_constant_over_a_run() -> None:
    loop = Loop(sinks=[], every=10, rows=128)

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    for _ in range(150):  # the detector's histories fill
        loop.step()
    tracemalloc.start()
    try:
        for _ in range(20):
            loop.step()
        start = held()
        for _ in range(100):
            loop.step()
        assert held() - start < 100_000  # a step's values, kept, would be 2 kB each
    finally:
        tracemalloc.stop()


DEVICE = "cuda" if torch.backends.cuda.is_built() else "cpu"


@over("make", {name: RATIOS[name] for name in ("Clippy, clips", "no rule, eager", "torch Adagrad", "another rule")})
def test_no_number_is_read_in_the_step_that_it_is_of(make: Make) -> None:
    """On fake tensors, which have no values: whatever reads one on the host raises. Step 0 has every tier."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(DEVICE):
            model = Model(sparse=False)
        optimizer = make(model.parameters())
        monitor = Monitor(model, optimizer, tasks=KINDS)
        labels = {task: torch.empty(9, device=DEVICE) for task in KINDS}
        outputs = model(torch.zeros(9, dtype=torch.int64, device=DEVICE), torch.empty(9, 2, device=DEVICE))
        losses = {task: (output[:, 0] - labels[task]).square().mean() for task, output in outputs.items()}
        sum(losses.values(), torch.zeros((), device=DEVICE)).backward()
        optimizer.step()
        monitor.step(losses, outputs=outputs, labels=labels)


def test_a_state_goes_on_where_it_was() -> None:
    loop = Loop(every=4)
    for _ in range(6):
        loop.step()
    state = loop.monitor.state_dict()
    other = Loop(every=4)
    other.monitor.load_state_dict(state)
    for _ in range(4):
        other.step()
    other.monitor.close()
    assert list(other.rows) == [6, 7, 8, 9]
    assert [step for step, row in other.rows.items() if "rms/grad/bottom.weight" in row] == [8]


def test_what_was_pending_is_forgotten_when_a_state_is_loaded() -> None:
    loop = Loop()
    state = loop.monitor.state_dict()
    loop.step()
    loop.monitor.load_state_dict(state)
    loop.step()
    loop.monitor.close()
    assert list(loop.rows) == [0]


@pytest.mark.filterwarnings("ignore:.*step was skipped:RuntimeWarning")
def test_the_batch_of_an_alarm_is_attributed() -> None:
    batches: list[Any] = []

    def apart(batch: Any) -> Attribution:
        batches.append(batch)
        return attribute(loop.model, batch, lambda model, batch: loop.losses(model(*batch[:2]), batch[2]))

    loop = Loop(attribute=apart)
    guard(*loop.optimizers)
    for step in range(6):
        ids, dense, labels = batch = loop.batch()
        if step == 3:
            dense[5, 1] = math.nan
        outputs = loop.model(ids, dense)
        losses = loop.losses(outputs, labels)
        for optimizer in loop.optimizers:
            optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        for optimizer in loop.optimizers:
            optimizer.step()
        alarm = loop.monitor.step(losses, batch=batch)
        assert (alarm is not None) == (step == 4)
    assert len(batches) == 1
    assert batches[0][1].isnan().any()
    assert loop.monitor.attribution is not None
    assert loop.monitor.attribution.columns[0].name == "dense[1]"


def test_hooks_are_taken_off() -> None:
    loop = Loop(lambda params: torch.optim.SGD(params, LR))
    assert loop.optimizers[0]._optimizer_step_pre_hooks
    loop.monitor.close()
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in loop.optimizers)
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in loop.optimizers)


def test_training_is_the_same_with_and_without_a_monitor() -> None:
    def train(watched: bool) -> list[Tensor]:
        loop = Loop(lambda params: torch.optim.AdamW(params, LR), every=2)
        if not watched:
            loop.monitor.close()
        for _ in range(6):
            loop.step()
        return [p.detach() for p in loop.model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "every": (ValueError, "every is 0; expected a whole number, 1 or above", {"every": 0}),
    "refresh": (ValueError, "refresh is 2.5", {"refresh": 2.5}),
    "rows": (ValueError, "rows is -1", {"rows": -1}),
    "kind": (ValueError, "'ranking' is not a valid TaskKind", {"tasks": {"a": "ranking"}}),
    "rule": (TypeError, "what_if is the class Clippy; expected an object", {"what_if": [Clippy]}),
    "layers": (ValueError, "layers has the pattern 'botom.*', which matches no parameter", {"layers": ["botom.*"]}),
    "optimizers": (ValueError, "optimizers is empty", {"optimizers": []}),
    "an optimizer": (TypeError, "optimizers has 'sgd'; expected torch.optim.Optimizer", {"optimizers": ["sgd"]}),
    "model": (TypeError, "model is 1; expected a torch.nn.Module", {"model": 1}),
    "other model": (ValueError, "optimizers hold no parameter of the model", {"model": nn.Linear(1, 1)}),
}


@over("wrong", WRONG)
def test_wrong_arguments_are_refused(wrong: tuple[type[Exception], str, dict[str, Any]]) -> None:
    kind, message, options = wrong
    model = Model()
    arguments = {"model": model, "optimizers": ClippyAdagrad(model.bottom.parameters(), LR)} | options
    with pytest.raises(kind, match=message):
        Monitor(**arguments)


def test_labels_of_an_unknown_kind_are_refused() -> None:
    loop = Loop(tasks={"click": "binary"})
    with pytest.raises(ValueError, match="'sales', whose kind is not known"):
        loop.step()


def test_rows_that_differ_are_refused() -> None:
    loop = Loop()

    def spoil(labels: dict[str, Tensor]) -> None:
        labels["sales"] = labels["sales"][:1]

    with pytest.warns(UserWarning, match="target size"), pytest.raises(ValueError, match=r"have \[1, 32\] rows"):
        loop.step(spoil)


# What fails around it ends no training


class Failing:
    """A sink of somebody's own that never works."""

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("the server is away")

    flush = rewind = close = __call__


def watched_to_the_end(loop: Loop) -> None:
    for _ in range(4):
        loop.step()
    loop.monitor.load_state_dict(loop.monitor.state_dict())
    loop.monitor.close()


def test_a_sink_that_fails_is_told_once_and_ends_no_training() -> None:
    loop = Loop()
    loop.step()  # torch's own warning comes here
    loop.monitor = Monitor(loop.model, loop.optimizers, tasks=KINDS, sinks=[Failing(), loop.keep])
    with pytest.warns(RuntimeWarning) as told:
        watched_to_the_end(loop)
    assert [str(warning.message).split(" failed")[0] for warning in told] == [
        "writing to Failing",
        "flush of Failing",
        "rewind of Failing",
        "close of Failing",
    ]
    assert "training goes on without it: the server is away" in str(told[0].message)
    assert list(loop.rows) == [0, 1, 2, 3]


def test_an_attribution_that_fails_ends_no_training() -> None:
    def fails(batch: Any) -> Attribution:
        raise RuntimeError("out of memory")

    loop = Loop()
    loop.monitor = Monitor(loop.model, loop.optimizers, tasks=KINDS, sinks=[], attribute=fails)

    def spoil(labels: dict[str, Tensor]) -> None:
        labels["sales"].fill_(math.inf)

    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        loop.step(spoil, batch=1)
    with pytest.warns(RuntimeWarning, match="attribution failed, training goes on without it: out of memory"):
        assert loop.step() is not None


def test_a_full_disk_under_a_monitor_ends_no_training(tmp_path: Path) -> None:
    loop = Loop()
    loop.monitor = Monitor(loop.model, loop.optimizers, tasks=KINDS, folder=tmp_path, every=2)
    for _ in range(4):
        loop.step()
    loop.monitor.flush()
    with nothing_can_be_written(), pytest.warns(RuntimeWarning, match="File too large"):
        watched_to_the_end(loop)
    assert len(pl.read_parquet(tmp_path / "metrics.parts" / "00000000.parquet")) == 4


def test_a_checkpoint_finds_the_rows_before_it_on_the_disk_and_going_on_from_it_has_them_once(tmp_path: Path) -> None:
    loop = Loop()
    loop.monitor = Monitor(loop.model, loop.optimizers, tasks=KINDS, folder=tmp_path)
    for _ in range(4):
        loop.step()
    state = loop.monitor.state_dict()
    assert len(pl.read_parquet(tmp_path / "metrics.parts" / "*.parquet")) == 4  # the last one's, not read yet, too
    for _ in range(3):
        loop.step()
    loop.monitor.flush()  # and then it is killed
    again = Loop()
    again.monitor = Monitor(again.model, again.optimizers, tasks=KINDS, folder=tmp_path)
    again.monitor.load_state_dict(state)
    for _ in range(4):
        again.step()
    again.monitor.close()
    assert pl.read_parquet(tmp_path / "metrics.parquet")["step"].to_list() == list(range(8))
