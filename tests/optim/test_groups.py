"""Parameter groups: which parameter goes where, at which rate, and that optimizers and schedulers honour it."""

import re
from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from properties import over
from surefoot import Adagrad, Clippy, ClippyAdagrad, GradientClip, NoClip
from surefoot.lab.models.layers import FeatureEmbedding, MixtureOfExperts, SharedBottom
from surefoot.lab.models.ranker import Ranker
from surefoot.optim.groups import GroupSpec, ParameterGroups, named_parameters, parameter_groups

LR = 0.125  # a power of two: scaling by powers of two rounds nothing
Specs = Sequence[GroupSpec]
Rows = list[tuple[list[str], float]]  # of each group: names, rate


class EmbeddingBagCollection(nn.Module):
    """What TorchRec calls so, as far as names go; a table in a module of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.t1 = nn.Linear(2, 5, bias=False)


class ShardedEmbeddingCollection(nn.Linear): ...


class AUsersOwn(ShardedEmbeddingCollection): ...


class Tower(nn.Module):
    """An embedding, a bottom of two layers, a head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 2, sparse=True)
        self.bottom = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
        self.heads = nn.ModuleDict({"like": nn.Linear(3, 1), "share": nn.Linear(3, 1)})

    def forward(self, ids: Tensor) -> Tensor:
        x = self.bottom(self.embedding(ids))
        return torch.cat([head(x) for head in self.heads.values()], dim=1)


def rows_of(groups: Sequence[dict[str, Any]]) -> Rows:
    return [(group["param_names"], group["lr"]) for group in groups]


def rates_of(groups: ParameterGroups) -> dict[str, float]:
    return {name: rate for names, rate in rows_of([*groups.dense, *groups.embedding]) for name in names}


# Patterns

BOTTOM = ["bottom.0.weight", "bottom.0.bias", "bottom.2.weight", "bottom.2.bias"]
HEADS = ["heads.like.weight", "heads.like.bias", "heads.share.weight", "heads.share.bias"]
TABLE = ["embedding.weight"]


def by(*patterns: str | re.Pattern[str]) -> list[GroupSpec]:
    """Return a spec for each pattern: half the rate, a quarter, and so on."""
    return [GroupSpec(pattern, lr_multiplier=0.5 ** (i + 1)) for i, pattern in enumerate(patterns)]


PATTERNS: dict[str, tuple[Specs, Rows, dict[str, tuple[str, ...]]]] = {
    "none": ([], [([*BOTTOM, *HEADS], LR)], {}),
    "a glob": (by("heads.*"), [(BOTTOM, LR), (HEADS, LR / 2)], {}),
    "a star crosses dots": (
        by("*.bias"),
        [([*BOTTOM[::2], *HEADS[::2]], LR), ([*BOTTOM[1::2], *HEADS[1::2]], LR / 2)],
        {},
    ),
    "a glob of the whole name": (by("bottom.[!2].weight"), [(BOTTOM[:1], LR / 2), ([*BOTTOM[1:], *HEADS], LR)], {}),
    "a regular expression": (by(re.compile(r"bottom\.\d\..*")), [(BOTTOM, LR / 2), (HEADS, LR)], {}),
    "the first wins": (
        by("heads.like.*", "heads.*"),
        [(BOTTOM, LR), (HEADS[:2], LR / 2), (HEADS[2:], LR / 4)],
        dict.fromkeys(HEADS[:2], ("heads.like.*", "heads.*")),
    ),
    "the first wins, of a regular expression and a glob": (
        by("*.0.bias", re.compile("bottom.*"), "*.bias"),
        [
            ([BOTTOM[0], *BOTTOM[2:]], LR / 4),
            ([BOTTOM[1]], LR / 2),
            (HEADS[::2], LR),
            (HEADS[1::2], LR / 8),
        ],
        {"bottom.0.bias": ("*.0.bias", "bottom.*", "*.bias"), "bottom.2.bias": ("bottom.*", "*.bias")},
    ),
    "all": (by("*"), [([*BOTTOM, *HEADS], LR / 2)], {}),
    "two with equal options stay apart": (
        [GroupSpec("bottom.*"), GroupSpec("heads.*")],
        [(BOTTOM, LR), (HEADS, LR)],
        {},
    ),
}


@over("case", PATTERNS)
def test_parameters_go_where_the_first_pattern_says(
    case: tuple[Specs, Rows, dict[str, tuple[str, ...]]],
) -> None:
    overrides, expected, doubly = case
    model = Tower()
    groups = parameter_groups(model, lr=LR, overrides=overrides)
    assert rows_of(groups.dense) == expected
    found = groups.doubly_matched
    assert {name: tuple(getattr(p, "pattern", p) for p in found[name]) for name in found} == doubly
    named = dict(model.named_parameters())
    for group in [*groups.dense, *groups.embedding]:
        assert [id(p) for p in group["params"]] == [id(named[name]) for name in group["param_names"]]
        assert set(group) == {"params", "param_names", "lr"}


def test_names_that_no_pattern_matches_are_reported() -> None:
    assert parameter_groups(Tower(), lr=LR).unmatched == (*TABLE, *BOTTOM, *HEADS)
    assert parameter_groups(Tower(), lr=LR, overrides=by("bottom.*", "embedding.*")).unmatched == tuple(HEADS)
    assert parameter_groups(Tower(), lr=LR, overrides=by("*")).unmatched == ()


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a pattern that matches nothing": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=by("heads.*", "botom.0.weight")),
        ValueError,
        r"overrides has the pattern 'botom.0.weight', which matches no parameter; .* 'bottom.0.weight'",
    ),
    "a glob that matches only the beginning": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=by("heads.like")),
        ValueError,
        "matches no parameter; the closest name is 'heads.like.(bias|weight)'",
    ),
    "an expression that matches only the beginning": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=by(re.compile(r"heads\.like"))),
        ValueError,
        "matches no parameter; the closest name is 'heads.like.(bias|weight)'",
    ),
    "a pattern that never wins": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=by("heads.*", "heads.like.*")),
        ValueError,
        r"'heads.like.\*', which never wins: 'heads.\*' stands before it and also matches 'heads.like.weight'",
    ),
    "a pattern twice": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=by("heads.*", "heads.*")),
        ValueError,
        "which never wins",
    ),
    "a layer that matches nothing": (
        lambda: parameter_groups(Tower(), lr=LR, depth_decay=0.5, layers=["bottom.*", "had.*"]),
        ValueError,
        r"layers has the pattern 'had.\*', which matches no parameter; the closest name is 'heads",
    ),
    "layers as one string": (
        lambda: parameter_groups(Tower(), lr=LR, depth_decay=0.5, layers="bottom.*"),
        TypeError,
        r"layers is 'bottom.\*'; expected a sequence",
    ),
    "layers of another kind": (
        lambda: parameter_groups(Tower(), lr=LR, depth_decay=0.5, layers=[3]),  # pyright: ignore
        TypeError,
        "a pattern in layers is 3; expected a glob",
    ),
    "layers without a decay": (
        lambda: parameter_groups(Tower(), lr=LR, layers=["bottom.*"]),
        ValueError,
        "layers is .* without depth_decay",
    ),
    "no model": (lambda: parameter_groups([], lr=LR), TypeError, r"model is \[\]; expected"),  # pyright: ignore
    "a model of nothing": (lambda: parameter_groups(nn.ReLU(), lr=LR), ValueError, "model has no parameter"),
    "a frozen model": (
        lambda: parameter_groups(nn.Linear(1, 1).requires_grad_(False), lr=LR),
        ValueError,
        "model has no parameter that requires a gradient",
    ),
    "a negative rate": (lambda: parameter_groups(Tower(), lr=-1.0), ValueError, "^lr is -1.0"),
    "a rate of NaN": (lambda: parameter_groups(Tower(), lr=nan), ValueError, "^lr is nan"),
    "a rate in words": (lambda: parameter_groups(Tower(), lr="0.1"), TypeError, "^lr is '0.1'"),  # pyright: ignore
    "rates": (lambda: parameter_groups(Tower(), lr=torch.ones(2)), ValueError, r"^lr is a tensor of shape \(2,\)"),
    "an embedding rate": (
        lambda: parameter_groups(Tower(), lr=LR, embedding_lr=-1.0),
        ValueError,
        "embedding_lr is -1.0",
    ),
    "a decay": (lambda: parameter_groups(Tower(), lr=LR, weight_decay=-1.0), ValueError, "weight_decay is -1.0"),
    "a depth decay of 0": (lambda: parameter_groups(Tower(), lr=LR, depth_decay=0.0), ValueError, "depth_decay is 0.0"),
    "a depth decay above 1": (
        lambda: parameter_groups(Tower(), lr=LR, depth_decay=1.5),
        ValueError,
        "depth_decay is 1.5",
    ),
    "a rule in words": (
        lambda: parameter_groups(Tower(), lr=LR, rule="clippy"),  # pyright: ignore
        TypeError,
        r"rule is 'clippy'; expected a rule object, such as surefoot.Clippy\(\)",
    ),
    "a class of rules": (
        lambda: GroupSpec("*", rule=Clippy),  # pyright: ignore
        TypeError,
        r"rule is the class Clippy; expected an object, such as surefoot.Clippy\(\)",
    ),
    "a spec's multiplier": (lambda: GroupSpec("*", lr_multiplier=-0.5), ValueError, "lr_multiplier is -0.5"),
    "a spec's weight decay": (lambda: GroupSpec("*", weight_decay=nan), ValueError, "weight_decay is nan"),
    "a spec's pattern": (lambda: GroupSpec(3), TypeError, "pattern is 3; expected a glob"),  # pyright: ignore
    "overrides of another kind": (
        lambda: parameter_groups(Tower(), lr=LR, overrides=["heads.*"]),  # pyright: ignore
        TypeError,
        r"overrides has 'heads.\*'; expected objects such as surefoot.GroupSpec",
    ),
}


@over("case", REFUSED)
def test_a_mistake_is_refused_by_name_and_value(case: tuple[Callable[[], object], type[Exception], str]) -> None:
    make, error, message = case
    with pytest.raises(error, match=message):
        make()


# Embedding tables, tied and frozen parameters

TABLES: dict[str, Callable[[], nn.Module]] = {
    "Embedding": lambda: nn.Embedding(5, 2),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 2),
    "EmbeddingBagCollection": EmbeddingBagCollection,
    "ShardedEmbeddingCollection": lambda: ShardedEmbeddingCollection(2, 5, bias=False),
    "a class derived from one": lambda: AUsersOwn(2, 5, bias=False),
    "FeatureEmbedding": lambda: FeatureEmbedding([3, 2], 2),
    "deep inside": lambda: nn.Sequential(nn.ModuleList([nn.Embedding(5, 2)])),
}


@over("make", TABLES)
def test_embedding_tables_are_set_apart(make: Callable[[], nn.Module]) -> None:
    model = nn.ModuleDict({"table": make(), "linear": nn.Linear(2, 1)})
    groups = parameter_groups(model, lr=LR, embedding_lr=1.0, weight_decay=0.1, rule=Clippy(), depth_decay=0.5)
    (dense,), (embedding,) = groups.dense, groups.embedding
    assert dense["param_names"] == ["linear.weight", "linear.bias"]
    assert (dense["lr"], dense["weight_decay"], dense["rule"]) == (LR, 0.1, Clippy())
    assert [name.startswith("table.") for name in embedding["param_names"]] == [True]
    assert embedding["lr"] == 1.0
    assert set(embedding) == {"params", "param_names", "lr"}  # neither clipped nor decayed


def test_what_only_resembles_a_table_is_dense() -> None:
    class MyEmbeddingCollectionHead(nn.Linear): ...

    model = nn.Sequential(nn.Linear(2, 2), MyEmbeddingCollectionHead(2, 2))
    assert parameter_groups(model, lr=LR).embedding == []


def test_an_override_reaches_a_table() -> None:
    spec = GroupSpec("embedding.*", lr_multiplier=2.0, weight_decay=0.5, rule=NoClip())
    (group,) = parameter_groups(Tower(), lr=LR, embedding_lr=1.0, overrides=[spec]).embedding
    assert (group["lr"], group["weight_decay"], group["rule"]) == (2.0, 0.5, NoClip())


def test_a_tied_weight_appears_once_and_answers_to_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    for pattern in ("a.weight", "b.weight"):
        groups = parameter_groups(model, lr=LR, overrides=[GroupSpec(pattern, lr_multiplier=0.5)])
        assert rows_of(groups.dense) == [(["a.weight"], LR / 2), (["b.bias"], LR)]
    torch.optim.SGD(groups.dense)
    assert [names for _, names in named_parameters(model)] == [("a.weight", "b.weight"), ("b.bias",)]


@over("table_first", [True, False])
def test_a_weight_tied_to_a_table_is_a_table(table_first: bool) -> None:
    parts = {"table": nn.Embedding(5, 2), "out": nn.Linear(2, 5)}
    parts["out"].weight = parts["table"].weight
    model = nn.ModuleDict(parts if table_first else dict(reversed(parts.items())))
    groups = parameter_groups(model, lr=LR)
    assert [group["params"] for group in groups.embedding] == [[parts["table"].weight]]
    assert [group["param_names"] for group in groups.dense] == [["out.bias"]]


def test_frozen_parameters_are_left_out_and_listed() -> None:
    model = Tower()
    model.bottom[0].requires_grad_(False)
    groups = parameter_groups(model, lr=LR, overrides=by("bottom.0.*"))  # names the frozen ones only: no mistake
    assert groups.frozen == tuple(BOTTOM[:2])
    assert groups.unmatched == (*TABLE, *BOTTOM[2:], *HEADS)
    assert rows_of(groups.dense) == [([*BOTTOM[2:], *HEADS], LR)]
    assert re.search(r"^bottom.0.bias +frozen", str(groups), re.MULTILINE)


def test_the_report_reads_as_a_table() -> None:
    heads = GroupSpec(re.compile("heads.like.*"), weight_decay=0.01, rule=GradientClip(threshold=0.5))
    groups = parameter_groups(Tower(), lr=torch.tensor(LR), overrides=[heads, GroupSpec("*.bias", lr_multiplier=2.0)])
    wanted = """
        parameter          kind       lr     weight_decay  rule                         pattern        also matched by
        embedding.weight   embedding  0.125  -             -                            -
        bottom.0.bias      dense      0.25   -             -                            *.bias
        heads.like.weight  dense      0.125  0.01          GradientClip(threshold=0.5)  heads.like.*
        heads.like.bias    dense      0.125  0.01          GradientClip(threshold=0.5)  heads.like.*   *.bias
    """
    table = [line.split() for line in str(groups).splitlines()]
    for line in wanted.strip().splitlines():
        assert line.split() in table
    assert len(table) == 10


# Depth


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))


def test_rates_fall_with_depth() -> None:
    groups = parameter_groups(mlp(), lr=1.0, depth_decay=0.5)
    assert rows_of(groups.dense) == [
        (["0.weight", "0.bias"], 0.25),
        (["2.weight", "2.bias"], 0.5),
        (["4.weight", "4.bias"], 1.0),
    ]
    assert set(rates_of(parameter_groups(mlp(), lr=LR, depth_decay=1.0)).values()) == {LR}


def test_an_override_multiplies_the_rate_of_its_depth() -> None:
    groups = parameter_groups(mlp(), lr=1.0, depth_decay=0.5, overrides=[GroupSpec("*.bias", lr_multiplier=8.0)])
    assert list(rates_of(groups).values()) == [0.25, 2.0, 0.5, 4.0, 1.0, 8.0]


def test_a_frozen_layer_still_counts() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    assert list(rates_of(parameter_groups(model, lr=1.0, depth_decay=0.5)).values()) == [0.25, 0.25, 1.0, 1.0]


def test_a_tied_weight_lies_where_it_is_first_registered() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[2].weight = model[0].weight  # the third owns nothing of its own
    groups = parameter_groups(model, lr=1.0, depth_decay=0.5)
    assert list(rates_of(groups).values()) == [0.5, 0.5, 1.0, 1.0]


def test_tables_have_no_depth_unless_a_layer_names_them() -> None:
    groups = parameter_groups(Tower(), lr=1.0, depth_decay=0.5)
    rates = [rates_of(groups)[name] for name in (*TABLE, *BOTTOM[::2], *HEADS[::2])]
    assert rates == [1.0, 0.125, 0.25, 0.5, 1.0]  # the heads too, one above the other
    layers = ["embedding.*", "bottom.0.*", re.compile(r"bottom\.2\..*"), "heads.*"]
    groups = parameter_groups(Tower(), lr=1.0, depth_decay=0.5, layers=layers)
    rates = [rates_of(groups)[name] for name in (*TABLE, *BOTTOM[::2], *HEADS[::2])]
    assert rates == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_layers_name_the_depth_of_parallel_branches() -> None:
    model = MixtureOfExperts(2, [3, 3], tasks=2, experts=2)
    layers = ["experts.*.0.*", "experts.*"]  # the first match wins
    groups = parameter_groups(model, lr=1.0, depth_decay=0.5, layers=layers)
    assert rates_of(groups) == {
        **{f"experts.{i}.0.{kind}": 0.5 for i in range(2) for kind in ("weight", "bias")},
        **{f"experts.{i}.2.{kind}": 1.0 for i in range(2) for kind in ("weight", "bias")},
        **{f"gates.{i}.weight": 1.0 for i in range(2)},  # in no layer: the full rate
    }


# In optimizers

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, weight_decay=0.0),
    "SGD, foreach": lambda groups: torch.optim.SGD(groups, foreach=True),
    "SGD, fused": lambda groups: torch.optim.SGD(groups, fused=True),
    "torch Adagrad": torch.optim.Adagrad,
    "Adagrad": lambda groups: Adagrad(groups, lr=7.0),  # each group's own rate wins
    "ClippyAdagrad": lambda groups: ClippyAdagrad(groups, lr=7.0, relative=1e9),
}


@over("make", OPTIMIZERS)
@over("tensor", [False, True])
def test_optimizers_step_at_the_rates_that_a_scheduler_sets(
    make: Callable[[list[dict[str, Any]]], Optimizer], tensor: bool
) -> None:
    """Each parameter moves as it does alone in an optimizer at its own rate."""
    model = mlp()
    specs = [GroupSpec("4.*", lr_multiplier=0.25), GroupSpec("*.bias", lr_multiplier=2.0)]
    groups = parameter_groups(model, lr=torch.tensor(LR) if tensor else LR, depth_decay=0.5, overrides=specs)
    assert {name: float(rate) for name, rate in rates_of(groups).items()} == {
        "0.weight": LR / 4,
        "0.bias": LR / 2,
        "2.weight": LR / 2,
        "2.bias": LR,
        "4.weight": LR / 4,
        "4.bias": LR / 4,
    }
    optimizer = make(groups.dense)
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    alone = {name: make([{"params": [twins[name]], "lr": float(rate)}]) for name, rate in rates_of(groups).items()}
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    for step in range(4):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            twins[name].grad = p.grad.clone()
            alone[name].param_groups[0]["lr"] = float(rates_of(groups)[name]) * 0.5**step
            alone[name].step()
        optimizer.step()
        scheduler.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, twins[name], rtol=1e-6, atol=1e-7)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(twins)
    fresh = make(groups.dense)
    fresh.load_state_dict(optimizer.state_dict())
    assert [group["param_names"] for group in fresh.param_groups] == [g["param_names"] for g in optimizer.param_groups]


def test_adagrad_honours_a_rule_for_each_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    specs = [GroupSpec("1.*", rule=GradientClip(threshold=1.0)), GroupSpec("2.*", rule=NoClip())]
    tight = Clippy(relative=0.0, absolute=0.001)
    optimizer = Adagrad(parameter_groups(model, lr=LR, rule=tight, overrides=specs).dense, lr=LR)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, 5.0)  # a norm of 10
    optimizer.step()
    factors = [optimizer.clip_factors()[p] for p in model.parameters()]
    update = 5.0 / 25.1**0.5
    expected = torch.tensor([0.001 / (LR * update), 0.1, 1.0])
    torch.testing.assert_close(torch.stack(factors), expected)
    for p, old, sigma in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, LR * update) * sigma, rtol=1e-4, atol=1e-7)


def test_a_model_trains_with_its_tables_in_an_optimizer_of_their_own() -> None:
    model = Tower()
    groups = parameter_groups(model, lr=LR, weight_decay=0.1, embedding_lr=1.0)
    optimizers = [Adagrad(groups.dense, lr=LR), torch.optim.Adagrad(groups.embedding)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.tensor([0, 0, 3])).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()


def test_groups_are_made_anew_for_each_optimizer() -> None:
    groups = parameter_groups(mlp(), lr=torch.tensor(LR), depth_decay=0.5)
    torch.optim.AdamW(groups.dense, weight_decay=0.5)  # writes its defaults into what it is given
    optimizer = torch.optim.SGD(groups.dense)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0, 0]
    rates = [group["lr"] for group in [*groups.dense, *groups.dense]]
    assert len({rate.data_ptr() for rate in rates}) == 6


def test_the_paper_s_ranker_falls_into_groups() -> None:
    heads = nn.ModuleDict({"buys": nn.Linear(3, 1), "spends": nn.Linear(3, 1)})
    bottom = SharedBottom(6, [3], 2)
    model = Ranker(embedding=FeatureEmbedding([4, 4], 2), interaction=nn.Identity(), bottom=bottom, heads=heads)
    groups = parameter_groups(model, lr=LR, rule=Clippy(), overrides=[GroupSpec("heads.*", lr_multiplier=0.5)])
    assert rows_of(groups.embedding) == [(["embedding.table.weight"], LR)]
    assert [len(group["params"]) for group in groups.dense] == [2, 4]
    assert {group["rule"] for group in groups.dense} == {Clippy()}
