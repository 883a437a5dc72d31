"""What a parameter group asks for happens or is refused; what others keep in it stays."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import surefoot
from properties import over
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.rules import Clippy, GradientClip, NoClip, Reduce, Rule


def weights() -> list[Parameter]:
    return [Parameter(torch.ones(3)), Parameter(torch.ones(2))]


def test_a_group_has_its_own_bounds() -> None:
    a, b = weights()
    groups = [{"params": [a], "relative": 0.0, "absolute": 1e-6}, {"params": [b], "absolute": 1e-3}]
    optimizer = ClippyAdagrad(groups, lr=1.0)
    for p in (a, b):
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(1 - a.detach(), torch.full((3,), 1e-6), rtol=0.1, atol=0.0)
    assert [group["rule"] for group in optimizer.param_groups] == [Clippy(0.0, 1e-6), Clippy(0.5, 1e-3)]
    assert not any("absolute" in group for group in optimizer.param_groups)
    again = ClippyAdagrad(
        [{"params": [a], "relative": 0.0, "absolute": 1e-6}, {"params": [b], "absolute": 1e-3}], lr=1.0
    )
    again.load_state_dict(optimizer.state_dict())


def test_tfrs_groups_have_their_own_bounds() -> None:
    (a, b), lr = weights(), 0.1
    groups = [{"params": [a], "accumulator_relative": 0.1}, {"params": [b]}]
    optimizer = ClippyAdagrad.tfrs(groups, lr)
    assert [group["rule"] for group in optimizer.param_groups] == [Clippy(0.1, 1e-7, 0.1), Clippy(0.1, 1e-7)]


REFUSED: dict[str, tuple[type[Adagrad], dict[str, Any], str]] = {
    "a rule's option": (Adagrad, {"absolute": 1e-3}, r"expected it in the group's rule: 'rule': surefoot.Clippy"),
    "another rule's": (
        ClippyAdagrad,
        {"threshold": 1.0},
        r"'rule': surefoot.GradientClip\(threshold=1.0\) or surefoot.GlobalGradientClip\(threshold=1.0\) or "
        r"surefoot.AdaptiveGradientClip\(threshold=1.0\)",
    ),
    "both": (ClippyAdagrad, {"absolute": 1e-3, "rule": NoClip()}, "a group with a rule and absolute; expected one of"),
    "out of range": (ClippyAdagrad, {"absolute": -1.0}, "absolute is -1.0"),
    "for all": (Adagrad, {"nonfinite": "raise"}, "nonfinite='raise', which no step reads; expected it as an argument"),
    "fused": (ClippyAdagrad, {"fused": True}, "fused=True, which no step reads; expected it as an argument"),
    "momentum": (Adagrad, {"momentum": 0.9}, "momentum=0.9, which no step reads; expected an option of this optimizer"),
    "a decaying rate": (Adagrad, {"lr_decay": 0.1}, "lr_decay=0.1, which no step reads"),
    "misspelt": (Adagrad, {"weight_dacay": 0.1}, r"weight_dacay=0.1, which no step reads; expected 'weight_decay'\?"),
    "nearly": (ClippyAdagrad, {"initial_accumulator": 0.1}, r"expected 'initial_accumulator_value'\?"),
    "learning_rate": (
        ClippyAdagrad,
        {"learning_rate": 0.1},
        r"learning_rate=0.1, which no step reads; expected 'lr'\?",
    ),
}


@over("case", REFUSED)
def test_a_key_that_would_be_ignored_is_refused(case: tuple[type[Adagrad], dict[str, Any], str]) -> None:
    kind, keys, message = case
    a, b = weights()
    with pytest.raises(ValueError, match=message):
        kind([{"params": [a], **keys}], 0.1)
    optimizer = kind([a], 0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [b], **keys})
    assert len(optimizer.param_groups) == 1


def test_what_others_keep_in_a_group_stays() -> None:
    notes = {"initial_lr": 0.1, "max_lr": 1.0, "min_lr": 0.0, "base_momentum": 0.8, "swa_lr": 0.1, "name": "heads"}
    notes |= {
        "lr_scale": 0.5,
        "layer_id": 3,
        "group_name": "a",
        "lr_mult": 1.0,
        "foreach": None,
        "differentiable": False,
    }
    a, b = weights()
    optimizer = ClippyAdagrad([{"params": [a], **notes}, {"params": [b], "param_names": ["b"], "lr": 0.2}][:1], lr=0.1)
    assert notes.items() <= optimizer.param_groups[0].items()


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=9, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.3, cycle_momentum=False),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1),
    "SWALR": lambda o: SWALR(o, 0.01),
}


@over("schedule", SCHEDULERS)
def test_groups_that_a_scheduler_has_written_into_are_taken(schedule: Callable[[Any], Any]) -> None:
    a, _ = weights()
    optimizer = ClippyAdagrad([a], lr=0.1)
    schedule(optimizer)
    again = ClippyAdagrad(optimizer.param_groups, lr=0.1)  # as some trainers rebuild one
    again.load_state_dict(optimizer.state_dict())


def test_groups_of_a_plain_torch_adagrad_are_taken() -> None:
    a, _ = weights()
    ClippyAdagrad(torch.optim.Adagrad([a], lr=0.1).param_groups, lr=0.1)


@over("lr", [torch.tensor([0.1]), torch.tensor([[0.1]]), torch.tensor(0.1)])
def test_groups_of_a_rate_in_a_tensor_are_taken(lr: torch.Tensor) -> None:
    model = torch.nn.Linear(2, 1)
    groups = surefoot.parameter_groups(model, lr=lr).dense
    optimizer = ClippyAdagrad(groups, lr=1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"].ndim == 0


@dataclass
class Changeable(Rule):
    """A rule that is not frozen, hence without a hash."""

    limit: float = 1.0
    needs_update = True
    reduce = Reduce.MIN

    def terms(self, weight: Any, grad: Any, update: Any, lr: Any) -> Any:
        return (self.limit / update.abs(),)

    def factor(self, measure: Any) -> Any:
        return measure.clamp(max=1.0)


ENTRIES: dict[str, Callable[[Any], object]] = {
    "Adagrad": lambda rule: Adagrad(weights(), 0.1, rule=rule),
    "a group": lambda rule: Adagrad([{"params": weights(), "rule": rule}], 0.1),
    "clip_updates": lambda rule: surefoot.clip_updates(torch.optim.SGD(weights(), 0.1), rule),
    "parameter_groups": lambda rule: surefoot.parameter_groups(torch.nn.Linear(1, 1), lr=0.1, rule=rule),
    "Monitor": lambda rule: surefoot.Monitor(
        model := torch.nn.Linear(1, 1), torch.optim.SGD(model.parameters(), 0.1), what_if=[rule]
    ),
}


@over("entry", ENTRIES)
def test_a_rule_without_a_hash_is_refused_when_it_is_given(entry: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"which has no hash; expected .* make Changeable a @dataclass\(frozen=True\)"):
        entry(Changeable())


# Loading, copies


def test_hooks_of_loading_may_change_the_accumulator() -> None:
    old, new = ClippyAdagrad(weights(), lr=0.1), ClippyAdagrad(weights(), lr=0.1)
    for p in old.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    old.step()

    def forget(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        rows = {key: {**each, "sum": torch.full_like(each["sum"], 7.0)} for key, each in state["state"].items()}
        return {"state": rows, "param_groups": state["param_groups"]}

    hook = new.register_load_state_dict_pre_hook(forget)
    new.load_state_dict(old.state_dict())
    assert [state["sum"].unique().tolist() for state in new.state.values()] == [[7.0], [7.0]]
    hook.remove()

    def fill(optimizer: Any) -> None:
        for state in optimizer.state.values():
            state["sum"].fill_(5.0)

    new.register_load_state_dict_post_hook(fill)
    new.load_state_dict(old.state_dict())
    assert [state["sum"].unique().tolist() for state in new.state.values()] == [[5.0], [5.0]]
    assert not new._optimizer_load_state_dict_pre_hooks


def test_hooks_of_loading_may_adapt_another_form() -> None:
    old, new = ClippyAdagrad(weights(), lr=0.1), ClippyAdagrad(weights(), lr=0.1)
    saved = {"optimizer": old.state_dict()}
    with pytest.raises(
        ValueError, match=r"state_dict has the keys \['optimizer'\]; expected 'state' and 'param_groups'"
    ):
        new.load_state_dict(saved)
    new.register_load_state_dict_pre_hook(lambda _, state: state["optimizer"])
    new.load_state_dict(saved)
    with pytest.raises(ValueError, match="state_dict is a list; expected a dict"):
        new.load_state_dict([])  # pyright: ignore[reportArgumentType]


@over("copied", {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))})
@over("fused", [None, False])
def test_a_copy_goes_on_counting_and_does_not_tell_again(copied: Callable[[Any], Any], fused: bool | None) -> None:
    (a, _), bad = weights(), torch.full((3,), nan)
    optimizer = Adagrad([a], 0.1, rule=GradientClip(), fused=fused)
    a.grad = bad
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        optimizer.step()
    again = copied(optimizer)
    assert again.skipped_steps == 1
    again.param_groups[0]["params"][0].grad = bad
    again.step()
    assert (again.skipped_steps, optimizer.skipped_steps) == (2, 1)
    again.load_state_dict(optimizer.state_dict())
    assert again.skipped_steps == 2
