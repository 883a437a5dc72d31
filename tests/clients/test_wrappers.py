# pyright: reportMissingImports=false
"""Other libraries' wrappers of optimizers: what surefoot does to the one within reaches the steps taken without."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

import surefoot
from surefoot.capsule import storage
from surefoot.capsule.replay import Training, replay
from surefoot.optim.unwrap import in_backward, unwrapped

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient was NaN or infinite, and the step was skipped:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:This API is deprecated:DeprecationWarning"),  # of apply_optimizer_in_backward
]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.bottom, self.head = nn.EmbeddingBag(50, 4), nn.Linear(7, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.head(torch.relu(self.bottom(torch.cat([self.table(ids), dense], 1))))[:, 0]


class Wrapped(NamedTuple):
    """A wrapper, the optimizers that it should be seen through to, and a step of it."""

    given: Any
    within: list[Optimizer]


def keyed(model: Model, make: Callable[..., Optimizer] = Adam) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(dict(model.named_parameters()), lambda params: make(params, lr=0.01))


def of_keyed(model: Model) -> Wrapped:
    optimizer = keyed(model)
    return Wrapped(optimizer, [optimizer._optimizer])


def of_warm_up(model: Model) -> Wrapped:
    inner = keyed(model)
    stage = WarmupStage(WarmupPolicy.LINEAR, max_iters=20, value=0.1)
    return Wrapped(WarmupOptimizer(inner, [stage], lr=0.01), [inner._optimizer])


def of_combined(model: Model) -> Wrapped:
    parts = {"tables": dict(model.table.named_parameters()), "dense": {}}
    parts["dense"] = {name: p for name, p in model.named_parameters() if not name.startswith("table")}
    several = [(key, KeyedOptimizerWrapper(params, lambda ps: Adam(ps, lr=0.01))) for key, params in parts.items()]
    return Wrapped(CombinedOptimizer(several), [optimizer._optimizer for _, optimizer in several])


def of_accelerate(model: Model) -> Wrapped:
    optimizer = Adam(model.parameters(), lr=0.01)
    return Wrapped(Accelerator(cpu=True).prepare(optimizer), [optimizer])


class Strategy:
    """What Lightning's wrapper asks of its trainer."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        return optimizer.step(closure)


STRATEGY = Strategy()


def of_lightning(model: Model) -> Wrapped:
    optimizer = Adam(model.parameters(), lr=0.01)
    return Wrapped(LightningOptimizer._to_lightning_optimizer(optimizer, STRATEGY), [optimizer])  # pyright: ignore[reportArgumentType]


def of_fabric(model: Model) -> Wrapped:
    optimizer = Adam(model.parameters(), lr=0.01)
    return Wrapped(Fabric(accelerator="cpu").setup_optimizers(optimizer), [optimizer])


WRAPPERS = {
    "keyed": of_keyed,
    "warm-up": of_warm_up,
    "combined": of_combined,
    "accelerate": of_accelerate,
    "lightning": of_lightning,
    "fabric": of_fabric,
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def batch(step: int, bad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids, dense = torch.randint(50, (32, 3), generator=generator), torch.randn(32, 3, generator=generator)
    if bad:
        dense[3, 1] = math.nan
    return ids, dense, dense.nan_to_num().sum(1)


def backward(model: Model, ids: Tensor, dense: Tensor, y: Tensor) -> Tensor:
    for param in model.parameters():
        param.grad = None
    loss = (model(ids, dense) - y).square().mean()
    loss.backward()
    return loss


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@each_wrapper
def test_the_optimizers_within_are_found(wrap: Callable[[Model], Wrapped]) -> None:
    given, within = wrap(Model())
    found = unwrapped(given)
    assert len(found) == len(within)
    assert all(one is other for one, other in zip(found, within, strict=True))


@each_wrapper
def test_clip_updates_reaches_the_steps(wrap: Callable[[Model], Wrapped]) -> None:
    model = Model()
    given, within = wrap(model)
    if len(within) > 1:
        with pytest.raises(TypeError, match="optimizer is a CombinedOptimizer of 2 optimizers; expected one: clip"):
            surefoot.clip_updates(given, surefoot.Clippy())
        return
    handle = surefoot.clip_updates(given, surefoot.Clippy(relative=0.0, absolute=1e-6))
    before = weights(model)
    backward(model, *batch(0))
    given.step()
    moved = max(float((p - before[name]).abs().max()) for name, p in model.named_parameters())
    assert 0 < moved <= 1.1e-6  # Adam alone moves each by the rate
    assert max(float(sigma) for sigma in handle.clip_factors().values()) < 1


@each_wrapper
def test_a_guard_keeps_a_nan_away(wrap: Callable[[Model], Wrapped]) -> None:
    model = Model()
    given, _ = wrap(model)
    other = nn.Parameter(torch.ones(1))
    partner = SGD([other], lr=0.1)
    guard = surefoot.guard(given, partner)
    backward(model, *batch(0))
    other.grad = torch.tensor([math.nan])  # in the partner alone
    before = weights(model)
    given.step()
    partner.step()
    assert same(weights(model), before)
    assert guard.skipped_steps == 1


@each_wrapper
def test_the_monitor_sees_what_it_sees_of_the_bare_optimizer(wrap: Callable[[Model], Wrapped]) -> None:
    def values(bare: bool) -> dict[str, float]:
        torch.manual_seed(0)
        model = Model()
        given, within = wrap(model)
        monitor = surefoot.Monitor(model, within if bare else given, tasks={"rating": "regression"})
        for step in range(3):
            ids, dense, y = batch(step)
            loss = backward(model, ids, dense, y)
            given.step()
            monitor.step({"rating": loss}, labels={"rating": y})
        monitor.close()
        return dict(monitor.values)

    seen = values(bare=False)
    assert sum(name.startswith("clip_ratio/") for name in seen) == 4
    assert seen == values(bare=True)


def bad_weather(wrap: Callable[[Model], Wrapped], folder: Path) -> tuple[Model, Any, list[str]]:
    """A run in which one batch is NaN and a stretch of labels is wild, so that it rolls back."""
    torch.manual_seed(0)
    model = Model()
    given, _ = wrap(model)
    monitor = surefoot.Monitor(model, given, tasks={"rating": "regression"})
    recovery = surefoot.Recovery(model, given, folder, monitor=monitor, every=10)
    actions: list[str] = []
    for step in range(150):
        ids, dense, y = batch(step, bad=step == 40)
        if 60 <= step < 90:
            y = y + 1e4
        loss = backward(model, ids, dense, y)
        given.step()
        alarm = monitor.step({"rating": loss}, labels={"rating": y})
        actions.append(recovery.step(alarm).value)
    monitor.close()
    recovery.close()
    return model, given, actions


@each_wrapper
def test_recovery_rolls_back_through_it(wrap: Callable[[Model], Wrapped], tmp_path: Path) -> None:
    model, given, actions = bad_weather(wrap, tmp_path)
    assert "rolled_back" in actions
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    for optimizer in unwrapped(given):  # the wrapper has not lost the state, nor the groups whose rate it sets
        for group in optimizer.param_groups:
            assert any(group is its for its in given.param_groups)
            for param in group["params"]:
                assert given.state[param]["exp_avg"] is optimizer.state[param]["exp_avg"]


@pytest.mark.parametrize("wrap", [wrap for wrap in WRAPPERS.values() if wrap is not of_warm_up])  # it keeps its place
def test_a_capsule_runs_again(wrap: Callable[[Model], Wrapped], tmp_path: Path) -> None:
    def made() -> tuple[Model, Any, Callable[[Any], dict[str, Tensor]]]:
        model = Model()
        given, _ = wrap(model)

        def step(rows: Any) -> dict[str, Tensor]:
            loss = backward(model, *rows)
            given.step()
            return {"rating": loss.detach()}

        return model, given, step

    model, given, step = made()
    ring = surefoot.Ring(model, given, every=4)
    for number in range(12):
        ring.record(number, batch(number))
        ring.observe(number, step(batch(number)))
    path = ring.write(tmp_path)
    assert path is not None
    model, given, step = made()
    result = replay(storage.read(path), Training(model, [given], step))
    assert result.difference is None
    assert result.states >= 3


# Optimizers that step within the backward pass


def with_tables_in_backward(make: type[Optimizer] = Adagrad) -> tuple[Model, Optimizer]:
    torch.manual_seed(0)
    model = Model()
    apply_optimizer_in_backward(make, model.table.parameters(), {"lr": 0.1})
    return model, Adam([*model.bottom.parameters(), *model.head.parameters()], lr=0.01)


def test_recovery_keeps_a_nan_from_tables_that_step_within_backward(tmp_path: Path) -> None:
    model, optimizer = with_tables_in_backward()
    recovery = surefoot.Recovery(model, optimizer, tmp_path)
    backward(model, *batch(0))
    optimizer.step()
    recovery.step()
    before = weights(model)
    backward(model, *batch(1, bad=True))
    optimizer.step()
    recovery.step()
    assert same(weights(model), before)
    backward(model, *batch(2))
    optimizer.step()
    assert not torch.equal(model.table.weight, before["table.weight"])
    recovery.close()


def test_a_loss_that_is_not_finite_is_refused_before_backward(tmp_path: Path) -> None:
    """A bad loss with a finite gradient for the table: only the whole batch can be refused."""
    model, optimizer = with_tables_in_backward()
    recovery = surefoot.Recovery(model, optimizer, tmp_path)
    before = weights(model)
    for step in range(3):
        loss = (model(*batch(step)[:2])).square().mean() + (math.inf if step == 1 else 0.0)
        if recovery.before_backward(loss):
            loss.backward()
            optimizer.step()
        assert same(weights(model), before) == (step == 1)
        before = weights(model)
        recovery.step()
    assert "skipped" in (tmp_path / "events.jsonl").read_text()


def test_a_refused_batch_leaves_buffers_as_they_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    recovery = surefoot.Recovery(model, SGD(model.parameters(), lr=0.1), tmp_path)
    for step in range(3):
        assert recovery.before_backward(model(batch(step, bad=step == 1)[1]).square().mean()) == (step != 1)
        recovery.step()
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers())


def test_tables_within_backward_are_saved_and_restored(tmp_path: Path) -> None:
    model, optimizer = with_tables_in_backward()
    (table,) = in_backward(model)
    recovery = surefoot.Recovery(model, optimizer, tmp_path / "run", every=2)
    for step in range(2):
        backward(model, *batch(step))
        optimizer.step()
        recovery.step()
    total, weight = table.state[model.table.weight]["sum"].clone(), model.table.weight.detach().clone()
    recovery.close()
    model, optimizer = with_tables_in_backward()
    (table,) = in_backward(model)
    recovery = surefoot.Recovery(model, optimizer, tmp_path / "run", every=2)
    assert recovery.resume() == 2
    assert torch.equal(table.state[model.table.weight]["sum"], total)
    assert torch.equal(model.table.weight, weight)
    recovery.close()


def test_recovery_holds_tables_within_backward_too(tmp_path: Path) -> None:
    model, optimizer = with_tables_in_backward()
    recovery = surefoot.Recovery(model, optimizer, tmp_path)
    recovery._lr_scale.held = True
    before = weights(model)
    backward(model, *batch(0))
    optimizer.step()
    assert same(weights(model), before)
    recovery.close()


def test_a_capsule_with_tables_within_backward_runs_again(tmp_path: Path) -> None:
    def stepping(model: Model, optimizer: Optimizer) -> Callable[[Any], dict[str, Tensor]]:
        def step(rows: Any) -> dict[str, Tensor]:
            loss = backward(model, *rows)
            optimizer.step()
            return {"rating": loss.detach()}

        return step

    model, optimizer = with_tables_in_backward()
    ring, step = surefoot.Ring(model, optimizer, every=4), stepping(model, optimizer)
    for number in range(10):
        ring.record(number, batch(number))
        ring.observe(number, step(batch(number)))
    path = ring.write(tmp_path)
    assert path is not None
    model, optimizer = with_tables_in_backward()
    result = replay(storage.read(path), Training(model, [optimizer], stepping(model, optimizer)))
    assert result.difference is None


def test_clip_updates_on_an_optimizer_within_backward() -> None:
    model, _ = with_tables_in_backward(SGD)
    (table,) = in_backward(model)
    surefoot.clip_updates(table, surefoot.Clippy(relative=0.0, absolute=1e-6))
    before = model.table.weight.detach().clone()
    backward(model, *batch(0))
    assert 0 < float((model.table.weight - before).abs().max()) <= 1.1e-6


# What is refused


def fused() -> Optimizer:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["f"])]
    return FusedEmbeddingBagCollection(tables, SGD, {"lr": 0.1}).fused_optimizer()


REFUSING: dict[str, Callable[[Model, Any, Path], Any]] = {
    "clip_updates": lambda model, given, folder: surefoot.clip_updates(given, surefoot.Clippy()),
    "guard": lambda model, given, folder: surefoot.guard(given, SGD(model.parameters(), lr=0.1)),
    "gradient_operations": lambda model, given, folder: surefoot.gradient_operations(
        given, {"*": torch.zeros_like}, model=model
    ),
    "Monitor": lambda model, given, folder: surefoot.Monitor(model, given),
    "Recovery": lambda model, given, folder: surefoot.Recovery(model, given, folder),
    "Ring": lambda model, given, folder: surefoot.Ring(model, given),
}


@pytest.mark.parametrize("use", REFUSING.values(), ids=REFUSING)
def test_fused_tables_are_refused_in_a_sentence(use: Callable[[Model, Any, Path], Any], tmp_path: Path) -> None:
    given = fused()
    with pytest.raises(TypeError, match=r"has a \w*Fused\w*, whose step runs no hooks; expected an optimizer of"):
        use(Model(), given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_state_of_fused_tables_goes_along_by_name(tmp_path: Path) -> None:
    model = Model()
    recovery = surefoot.Recovery(model, SGD(model.parameters(), lr=0.1), tmp_path, more={"tables": fused()})
    recovery.close()


def test_nothing_warns_of_wrappers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrap in WRAPPERS.values():
            unwrapped(wrap(Model()).given)
