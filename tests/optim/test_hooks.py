"""What is put around a step is innermost, and gone after it, also after one that raised."""

import copy
import pickle
import warnings
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Linear, ModuleList, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import surefoot
from properties import over
from surefoot.optim.hooks import around, parts_of
from surefoot.recover.recovery import Recovery

pytestmark = pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")

Make = Callable[[list[Parameter]], Optimizer]
KINDS: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "ClippyAdagrad": lambda params: surefoot.ClippyAdagrad(params, lr=0.1),
}


class Everything:
    """Two optimizers with all parts on them, and recovery's rate lowered."""

    def __init__(self, kind: Make, folder: Path) -> None:
        self.model = ModuleList([Linear(3, 2), Linear(4, 1)])
        self.optimizers = [kind(list(layer.parameters())) for layer in self.model]
        surefoot.guard(*self.optimizers)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, surefoot.Adagrad):
                surefoot.clip_updates(optimizer, surefoot.Clippy())
        self.recovery = Recovery(self.model, self.optimizers, folder)
        self.recovery._lr_scale.factor = 0.5
        self.monitor = surefoot.Monitor(self.model, self.optimizers)

    def give(self, bad: float = 0.0) -> None:
        for i, p in enumerate(self.model.parameters()):
            p.grad = torch.full_like(p, 0.5) + (bad if i == 0 else 0.0)

    def outside(self) -> list[object]:
        """Return all that a step may change for its own time, by identity."""
        groups = [{**group, "params": None} for optimizer in self.optimizers for group in optimizer.param_groups]
        found_inf = [getattr(optimizer, "found_inf", None) for optimizer in self.optimizers]
        return [groups, found_inf, [id(p.grad) for p in self.model.parameters()]]


def fails(*_: object) -> None:
    raise ZeroDivisionError("a hook, a closure or a step of somebody else's")


@over("bad", [0.0, nan])
@over("where", ["pre hook", "post hook", "closure", "step"])
@over("kind", KINDS)
def test_a_step_that_raised_leaves_nothing_behind(
    kind: Make, where: str, bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_parts = Everything(kind, tmp_path)
    optimizer = all_parts.optimizers[1]
    all_parts.give()
    for each in all_parts.optimizers:
        each.step()
    all_parts.give(bad)
    before = all_parts.outside()
    closure, registered = None, None
    if where == "closure":
        closure = fails
    elif where == "step":
        monkeypatch.setattr(optimizer, "_optimizer_step_code", fails)  # between the update and the hooks after it
    else:
        registered = getattr(optimizer, f"register_step_{where.replace(' ', '_')}")(fails)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert all_parts.outside() == before
    monkeypatch.undo()
    if registered is not None:
        registered.remove()
    all_parts.give()
    weights = [p.detach().clone() for p in all_parts.model.parameters()]
    for each in all_parts.optimizers:
        each.step()
    assert not any(p.equal(old) for p, old in zip(all_parts.model.parameters(), weights, strict=True))


@over("kind", KINDS)
def test_other_hooks_see_the_gradients_of_a_skipped_step(kind: Make, tmp_path: Path) -> None:
    seen: list[object] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        seen.append((optimizer.param_groups[0]["params"][0].grad is None, hasattr(optimizer, "found_inf")))

    params = [Parameter(torch.ones(2)), Parameter(torch.ones(3))]
    a, b = kind(params[:1]), kind(params[1:])
    a.register_step_pre_hook(look)
    a.register_step_post_hook(look)
    surefoot.guard(a, b)
    a.register_step_pre_hook(look)
    a.register_step_post_hook(look)
    params[0].grad, params[1].grad = torch.ones(2), torch.full((3,), nan)
    a.step()
    assert params[0].tolist() == [1.0, 1.0]
    assert seen == [(False, False)] * 4


def test_schedulers_and_hooks_wrap_the_same_step_in_any_order() -> None:
    """A scheduler warns when somebody has replaced ``step`` since; taking a part off must not bring an old one back."""
    params = [Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    first = LambdaLR(optimizer, lambda step: 1.0)
    handle = surefoot.clip_updates(optimizer, surefoot.Clippy(0.0, 0.1))
    second = LambdaLR(optimizer, lambda step: 1.0)
    for clipped in (True, False, True):
        params[0].grad = torch.ones(2)
        before = params[0].detach().clone()
        with warnings.catch_warnings(action="error"):
            optimizer.step()
            first.step()
            second.step()
        torch.testing.assert_close(before - params[0].detach(), torch.full((2,), 0.1 if clipped else 1.0))
        if clipped:
            handle.remove()
        else:
            handle = surefoot.clip_updates(optimizer, surefoot.Clippy(0.0, 0.1))


def test_with_the_last_part_goes_our_wrapper_and_no_other() -> None:
    optimizer = torch.optim.SGD([Parameter(torch.ones(2))], lr=1.0)
    LambdaLR(optimizer, lambda step: 1.0)
    theirs = vars(optimizer)["step"]
    surefoot.clip_updates(optimizer, surefoot.Clippy()).remove()
    assert vars(optimizer)["step"] is theirs


@over("copied", {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))})
def test_a_copy_has_nothing_around_its_step(copied: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD([Parameter(torch.ones(2))], lr=1.0)
    surefoot.clip_updates(optimizer, surefoot.Clippy(0.0, 0.1))
    again = copied(optimizer)
    assert not parts_of(again)
    assert "step" not in vars(again)
    again.param_groups[0]["params"][0].grad = torch.ones(2)
    again.step()
    assert again.param_groups[0]["params"][0].tolist() == [0.0, 0.0]


def test_one_around_serves_all_parts_and_goes_with_the_last() -> None:
    optimizers = [torch.optim.SGD([Parameter(torch.ones(2))], lr=1.0) for _ in range(2)]
    before = [dict(vars(optimizer)) for optimizer in optimizers]
    guards = [surefoot.guard(*optimizers) for _ in range(2)]
    handle = surefoot.clip_updates(optimizers[0], surefoot.Clippy())
    assert around(optimizers[0]) is around(optimizers[0])
    assert parts_of(optimizers[0]) == [handle, *guards]
    for each in (guards[1], handle, guards[0], guards[0]):
        each.remove()
    assert [dict(vars(optimizer)) for optimizer in optimizers] == before
