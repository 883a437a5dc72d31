"""Two processes that see different batches see the same values and decide alike."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from properties import over
from ranks import run_ranks
from surefoot.observe.monitor import Monitor
from surefoot.observe.step_record import Combine, over_ranks
from surefoot.observe.streaming_metrics import ABSENT
from surefoot.optim.clippy_adagrad import ClippyAdagrad

WORLD, STEPS = 2, 40


def train(rank: int, folder: str) -> None:
    """Train one rank, and write down what its monitor saw. Rank 1 alone meets a NaN in step 30."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = ClippyAdagrad(model.parameters(), 0.1)
    sinks = [lambda step, values: Path(folder, f"run{rank}").touch()]
    monitor = Monitor(model.module, optimizer, tasks={"click": "binary"}, sinks=sinks, every=10)
    torch.manual_seed(rank)
    seen: list[dict[str, Any]] = []
    for step in range(STEPS):
        x = torch.randn(16, 4)
        y = (torch.rand(16) < (0.0 if rank else 0.5)).float()  # rank 1 has no positive: no AUC of its own
        if rank == 1 and step == 30:
            x[3, 2] = math.nan
        logits = model(x)[:, 0]
        loss = binary_cross_entropy_with_logits(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alarm = monitor.step({"click": loss}, outputs={"click": logits}, labels={"click": y})
        told = None if alarm is None else [alarm.step, alarm.task, alarm.layer, alarm.signal, alarm.reason]
        seen.append({"own": loss.item(), "alarm": told, "values": dict(monitor.values)})
    verdict = monitor.close()
    Path(folder, f"{rank}.json").write_text(json.dumps([seen, verdict]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(train, folder)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_the_ranks_have_different_losses_and_equal_values(ranks: tuple[Path, list[Any]]) -> None:
    (first, verdict), (second, other_verdict) = ranks[1]
    assert [row["own"] for row in first] != [row["own"] for row in second]
    assert str([row["values"] for row in first]) == str([row["values"] for row in second])  # as text: NaN is NaN
    assert verdict == other_verdict
    means = [(a["own"] + b["own"]) / 2 for a, b in zip(first, second, strict=True)]
    assert [row["values"]["loss/click"] for row in first[1:31]] == pytest.approx(means[:30], rel=1e-6)


def test_what_one_rank_meets_alarms_all_of_them_in_the_same_step(ranks: tuple[Path, list[Any]]) -> None:
    (first, _), (second, _) = ranks[1]
    alarms = [[row["alarm"] for row in rows] for rows in (first, second)]
    assert alarms[0] == alarms[1]
    assert [alarm[0] for alarm in alarms[0] if alarm and alarm[0] >= 30][:1] == [30]
    assert alarms[0][31] is not None  # one step late


def test_a_score_that_one_rank_does_not_have_is_the_others(ranks: tuple[Path, list[Any]]) -> None:
    assert 0 < ranks[1][1][0][9]["values"]["auc/click"] < 1


def test_only_the_first_rank_writes(ranks: tuple[Path, list[Any]]) -> None:
    assert {path.name for path in ranks[0].glob("run*")} == {"run0"}


NAN, NO = math.nan, ABSENT
CASES: dict[str, tuple[Combine, list[float], float]] = {
    "mean": (Combine.MEAN, [1.0, 3.0], 2.0),
    "mean of one": (Combine.MEAN, [NO, 3.0], 3.0),
    "mean, nan": (Combine.MEAN, [1.0, NAN], NAN),
    "mean, inf": (Combine.MEAN, [1.0, math.inf], math.inf),
    "max": (Combine.MAX, [1.0, 3.0], 3.0),
    "max of one": (Combine.MAX, [NO, 1.0], 1.0),
    "max, nan": (Combine.MAX, [NAN, 1.0], NAN),
    "min": (Combine.MIN, [1.0, 3.0], 1.0),
    "min of one": (Combine.MIN, [NO, 3.0], 3.0),
    "min, nan": (Combine.MIN, [NAN, 1.0], NAN),
    "none": (Combine.MEAN, [NO, NO], NO),
}


@over("case", CASES)
def test_ranks_are_combined(case: tuple[Combine, list[float], float]) -> None:
    combine, values, expected = case
    found = float(over_ranks(torch.tensor(values)[:, None], torch.tensor([combine])))
    assert found == pytest.approx(expected, nan_ok=True)
