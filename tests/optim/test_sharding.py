"""Parameters that are split among processes are refused at every entry; copies of the whole model are not."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import surefoot
from properties import over
from ranks import run_ranks
from surefoot.capsule.ring import Ring
from surefoot.recover.recovery import Recovery

WORLD = 2


class Case:
    """A model wrapped in some way, an optimizer of its parameters, and a folder."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model, self.folder = model, folder

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def optimizer(self) -> Optimizer:
        return torch.optim.SGD(self.params, lr=0.1)


class Zero(Case):
    def optimizer(self) -> Optimizer:
        return zero(self.params, torch.optim.SGD)


def zero(params: list[nn.Parameter], kind: Any) -> Optimizer:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(params, optimizer_class=kind, lr=0.1)


ENTRIES: dict[str, Callable[[Case], object]] = {
    "Adagrad": lambda case: surefoot.Adagrad(case.params, lr=0.1),
    "Adagrad.add_param_group": lambda case: surefoot.Adagrad([nn.Parameter(torch.ones(1))], lr=0.1).add_param_group(
        {"params": case.params}
    ),
    "ClippyAdagrad": lambda case: surefoot.ClippyAdagrad(case.params, lr=0.1),
    "ClippyAdagrad.for_model": lambda case: surefoot.ClippyAdagrad.for_model(case.model, lr=0.1),
    "parameter_groups": lambda case: surefoot.parameter_groups(case.model, lr=0.1),
    "clip_gradients": lambda case: surefoot.clip_gradients(case.params, surefoot.GradientClip()),
    "clip_updates": lambda case: surefoot.clip_updates(case.optimizer(), surefoot.Clippy()),
    "guard": lambda case: surefoot.guard(case.optimizer(), case.optimizer()),
    "Monitor": lambda case: surefoot.Monitor(case.model, case.optimizer()),
    "Recovery": lambda case: Recovery(case.model, case.optimizer(), case.folder),
    "Ring": lambda case: Ring(case.model, case.optimizer()),
}
BY_PARAMETERS = tuple(ENTRIES)[:6]
WITHIN_ZERO = {kind: getattr(surefoot, kind) for kind in ("Adagrad", "ClippyAdagrad")}
WRAPPED = ("FSDP1", "FSDP1, original parameters", "FSDP2", "replicated DTensor")


def wrapped(how: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    if how.startswith("FSDP1"):
        strategy = ShardingStrategy.FULL_SHARD
        return FullyShardedDataParallel(
            model, sharding_strategy=strategy, use_orig_params="original" in how, device_id=torch.device("cpu")
        )
    mesh = init_device_mesh("cpu", (WORLD,))
    if how == "FSDP2":
        fully_shard(model, mesh=mesh)
        return model
    for layer in model:
        layer.weight = nn.Parameter(distribute_tensor(layer.get_parameter("weight").data, mesh, [Replicate()]))
    return model


def said(call: Callable[[], object]) -> str:
    """Return what is said of a call: nothing if it works."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def train(model: nn.Module, optimizer: Optimizer, rank: int) -> list[list[float]]:
    """Return the weights after some steps, one with a NaN on rank 1 alone."""
    generator = torch.Generator().manual_seed(rank)
    for step in range(6):
        x = torch.randn(16, 4, generator=generator)
        if rank and step == 3:
            x[2, 1] = torch.nan
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach().flatten().tolist() for p in model.parameters()]


def run(rank: int, folder: str) -> None:
    """Try every entry on every kind of model, and train under DistributedDataParallel."""
    warnings.simplefilter("ignore")
    here, found = Path(folder, str(rank)), {}
    for how in WRAPPED:
        case = Case(wrapped(how), here)
        found |= {f"{how}: {entry}": said(lambda call=call, case=case: call(case)) for entry, call in ENTRIES.items()}
    whole = nn.Linear(4, 1)
    for entry, call in ENTRIES.items():
        if entry not in BY_PARAMETERS:
            found[f"ZeRO: {entry}"] = said(lambda call=call: call(Zero(whole, here)))
    for name, kind in WITHIN_ZERO.items():
        found[f"within ZeRO: {name}"] = said(lambda kind=kind: zero(list(whole.parameters()), kind))
    left = here.exists()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)))
    allowed = {entry: said(lambda call=call: call(Case(model, here))) for entry, call in ENTRIES.items()}
    weights = train(model, surefoot.ClippyAdagrad(model.parameters(), lr=0.1), rank)
    Path(folder, f"{rank}.json").write_text(json.dumps([found, allowed, left, weights]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


CELLS = [
    *(f"{how}: {entry}" for how in WRAPPED for entry in ENTRIES),
    *(f"ZeRO: {entry}" for entry in ENTRIES if entry not in BY_PARAMETERS),
    *(f"within ZeRO: {name}" for name in WITHIN_ZERO),
]


@over("cell", CELLS)
def test_parts_are_refused_in_a_sentence(ranks: list[Any], cell: str) -> None:
    for found, *_ in ranks:
        told = found[cell]
        assert told.startswith("TypeError: "), told
        assert "split" in told
        assert told.endswith("surefoot works on whole parameters, alike on every rank; use DistributedDataParallel")
        assert "\n" not in told


def test_nothing_is_left_of_a_refused_call(ranks: list[Any]) -> None:
    assert set(ranks[0][0]) == set(CELLS)
    assert not any(left for _, _, left, _ in ranks)


@over("entry", list(ENTRIES))
def test_copies_of_the_whole_model_are_allowed(ranks: list[Any], entry: str) -> None:
    assert [allowed[entry] for _, allowed, *_ in ranks] == ["", ""]


def test_under_ddp_all_ranks_have_the_bits_of_one_process(ranks: list[Any]) -> None:
    assert ranks[0][3] == ranks[1][3]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = surefoot.ClippyAdagrad(model.parameters(), lr=0.1)
    generators = [torch.Generator().manual_seed(rank) for rank in range(WORLD)]
    for step in range(6):
        grads = []
        for generator in generators:
            optimizer.zero_grad()
            model(torch.randn(16, 4, generator=generator)).square().mean().backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for p, *each in zip(model.parameters(), *grads, strict=True):
            p.grad = torch.stack([grad / WORLD for grad in each]).sum(0)  # as the reducer does
        if step != 3:
            optimizer.step()
    assert [p.detach().flatten().tolist() for p in model.parameters()] == ranks[0][3]
