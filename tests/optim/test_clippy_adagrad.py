"""One optimizer for a whole ranking model: tables unclipped at their own rate, all other layers clipped."""

import copy

import pytest
import torch
from torch import Tensor, nn

from properties import over
from surefoot import Adagrad, ClippyAdagrad, NoClip, parameter_groups

LR, TABLE_LR = 0.8, 0.05


class Client(nn.Module):
    """A model as foreign libraries make them: tables in dictionaries, sparse and dense, and one without a class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict({"user": nn.Embedding(20, 4), "item": nn.Embedding(30, 4, sparse=True)})
        self.bags = nn.ModuleDict({"tags": nn.EmbeddingBag(10, 4, sparse=True), "words": nn.EmbeddingBag(10, 4)})
        self.lookup = nn.Parameter(torch.randn(7, 4))
        self.tower = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, ids: Tensor) -> Tensor:
        plain = [table(ids) for table in self.embedding_dict.values()]
        bags = [bag(ids[:, None]) for bag in self.bags.values()]
        return self.tower(torch.cat([*plain, *bags, self.lookup[ids]], dim=1))


TABLES = {f"embedding_dict.{name}.weight" for name in ("user", "item")} | {"bags.tags.weight", "bags.words.weight"}


def client() -> Client:
    torch.manual_seed(0)
    return Client()


def train(model: Client, optimizers: list[torch.optim.Optimizer], steps: int, *, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(7, (16,), generator=draw)
        loss = (model(ids).squeeze(1) - 10 * ids).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def one(model: Client) -> ClippyAdagrad:
    return ClippyAdagrad.for_model(model, LR, embedding_lr=TABLE_LR, tables=["lookup"])


def assert_same(model: Client, other: Client) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.equal(q), name


def test_it_finds_the_tables_of_dictionaries_of_bags_and_those_named() -> None:
    names = {name: group for group in one(client()).param_groups for name in group["param_names"]}
    tables = {name for name, group in names.items() if group["rule"] == NoClip()}
    assert tables == TABLES | {"lookup"}
    assert {names[name]["lr"] for name in tables} == {TABLE_LR}
    assert {group["lr"] for name, group in names.items() if name not in tables} == {LR}
    assert {group["initial_accumulator_value"] for group in names.values()} == {1e-6}


def test_it_is_two_optimizers_in_one() -> None:
    ours, theirs = client(), client()
    dense = list(theirs.tower.parameters())
    tables = [p for p in theirs.parameters() if all(p is not q for q in dense)]
    apart = [ClippyAdagrad(dense, LR), Adagrad(tables, TABLE_LR, initial_accumulator_value=1e-6)]
    train(ours, [optimizer := one(ours)], 20)
    train(theirs, apart, 20)
    assert_same(ours, theirs)
    factors = {name: float(optimizer.clip_factors()[p]) for name, p in ours.named_parameters()}
    assert {factors[name] for name in TABLES | {"lookup"}} == {1.0}
    assert min(factors.values()) < 1


def test_a_gradient_that_is_not_finite_stops_both_parts() -> None:
    model, before = client(), client()
    optimizer = one(model)
    model(torch.arange(7)).sum().backward()
    assert model.lookup.grad is not None
    model.lookup.grad[3] = torch.nan
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        optimizer.step()
    assert_same(model, before)


def test_it_goes_on_from_its_state_dict() -> None:
    model = client()
    train(model, [optimizer := one(model)], 10)
    resumed = copy.deepcopy(model)
    (other := one(resumed)).load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, [optimizer], 20, seed=2)
    train(resumed, [other], 20, seed=2)
    assert_same(model, resumed)


def test_a_model_without_tables_is_clipped_whole() -> None:
    model = nn.Linear(3, 1)
    (group,) = ClippyAdagrad.for_model(model, LR, weight_decay=0.1).param_groups
    assert (group["lr"], group["weight_decay"]) == (LR, 0.1)


def test_tables_have_no_weight_decay() -> None:
    dense, tables = ClippyAdagrad.for_model(
        nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1)), LR, weight_decay=0.1
    ).param_groups
    assert (dense["weight_decay"], tables["weight_decay"]) == (0.1, 0.0)


@over(
    "tables",
    {
        "no name": (["lokup"], ValueError, r"tables has the pattern 'lokup', which matches no parameter; the closest"),
        "one string": ("lookup", TypeError, r"tables is 'lookup'; expected a sequence of patterns"),
        "no pattern": ([3], TypeError, r"a pattern in tables is 3; expected a glob"),
    },
)
def test_tables_that_cannot_be(tables: tuple[list[str], type[Exception], str]) -> None:
    patterns, error, message = tables
    with pytest.raises(error, match=message):
        ClippyAdagrad.for_model(client(), LR, tables=patterns)


def test_groups_say_what_their_tables_get() -> None:
    groups = parameter_groups(
        client(), lr=LR, embedding_rule=NoClip(), embedding_initial_accumulator_value=1e-3, tables=["lookup"]
    )
    (tables,) = groups.embedding
    assert (tables["rule"], tables["initial_accumulator_value"]) == (NoClip(), 1e-3)
    assert set(tables["param_names"]) == TABLES | {"lookup"}
    assert all("rule" not in group and "initial_accumulator_value" not in group for group in groups.dense)
    assert [group["param_names"] for group in groups.all] == [g["param_names"] for g in groups.dense + groups.embedding]
    state = Adagrad(groups.all, LR)
    train(model := client(), [], 0)
    assert state.param_groups[-1]["initial_accumulator_value"] == 1e-3
    with pytest.raises(TypeError, match=r"embedding_rule is 'none'; expected a rule object"):
        parameter_groups(model, lr=LR, embedding_rule="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"embedding_initial_accumulator_value is -1"):
        parameter_groups(model, lr=LR, embedding_initial_accumulator_value=-1)
