"""The batch norms' running averages as a signal: what a batch did to them, which no loss shows."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import surefoot
from properties import over
from surefoot.observe.batch_norms import BatchNorms
from surefoot.observe.streaming_metrics import ABSENT


def warm(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    for _ in range(5):
        norm(3 + 2 * torch.randn(64, 4))
    return norm


@over("momentum", {"0.1": 0.1, "0.01": 0.01, "cumulative": None})
def test_the_shift_is_the_batch_mean_in_running_deviations(momentum: float | None):
    norm = warm(nn.BatchNorm1d(4, momentum=momentum))
    mean, variance = (copy.deepcopy(getattr(norm, name)) for name in ("running_mean", "running_var"))
    seen, batch = BatchNorms(nn.Sequential(norm)), 3 + 2 * torch.randn(64, 4)
    batch[:, 2] *= 100
    norm(batch)
    expected = ((batch.mean(0) - mean).abs() / (variance + norm.eps).sqrt()).max()
    assert seen.names == ["0"]
    torch.testing.assert_close(seen.shifts()["0"], expected, rtol=1e-3, atol=0)
    assert seen.shifts()["0"] == ABSENT  # no batch since then


def test_averages_that_were_put_back_have_seen_no_batch():
    norm = warm(nn.BatchNorm1d(4))
    kept, seen = copy.deepcopy(norm.state_dict()), BatchNorms(norm)
    norm(1e6 * torch.randn(64, 4))
    assert seen.shifts()[""] > 1e3
    norm.load_state_dict(kept)
    norm(3 + 2 * torch.randn(64, 4))
    assert seen.shifts()[""] == ABSENT
    norm(3 + 2 * torch.randn(64, 4))
    assert 0 < seen.shifts()[""] < 2


def test_a_monitor_that_loads_a_state_begins_with_the_averages_as_they_are():
    norm = warm(nn.BatchNorm1d(4))
    monitor = surefoot.Monitor(norm, torch.optim.SGD(norm.parameters(), lr=0.1), sinks=[])
    state = monitor.state_dict()
    norm(1e6 * torch.randn(64, 4))  # as weights that are loaded have seen other batches
    monitor.load_state_dict(state)
    monitor.step({"task": torch.tensor(1.0)})
    monitor.close()
    assert not any(name.startswith("batch_shift") for name in monitor.values)


def test_a_model_in_evaluation_or_without_averages_shows_nothing():
    assert not BatchNorms(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    norm = warm(nn.BatchNorm1d(4)).eval()
    seen = BatchNorms(norm)
    norm(1e6 * torch.randn(64, 4))
    assert seen.shifts()[""] == ABSENT


@over("dtype", {"bf16": torch.bfloat16, "float64": torch.float64})
def test_other_types(dtype: torch.dtype):
    norm = warm(nn.BatchNorm1d(4)).to(dtype)
    seen = BatchNorms(norm)
    norm(100 * torch.ones(8, 4, dtype=dtype) + torch.randn(8, 4, dtype=dtype))
    assert 10 < float(seen.shifts()[""]) < 1000


def alarms(spoil: float, steps: int = 120) -> list[surefoot.Alarm]:
    """Train a model whose features pass a batch norm; multiply one of them in step 80."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = surefoot.ClippyAdagrad(model.parameters(), 0.05)
    monitor = surefoot.Monitor(model, optimizer, tasks={"click": "binary"})
    told: list[surefoot.Alarm | None] = []
    for step in range(steps):
        x = torch.randn(128, 4)
        y = (x.sum(1) + torch.randn(128) > 0).float()
        if step == 80:
            x[:, 1] *= spoil
        logits: Tensor = model(x).squeeze(1)
        loss = binary_cross_entropy_with_logits(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(monitor.step({"click": loss}, outputs={"click": logits}, labels={"click": y}))
    monitor.close()
    return [alarm for alarm in told if alarm is not None]


def test_a_wild_feature_behind_a_batch_norm_is_told_and_named():
    (alarm,) = alarms(1e4)
    assert (alarm.step, alarm.signal, alarm.layer, alarm.task) == (80, "batch_shift", "0", None)
    assert alarm.reason.startswith("the batch's mean shifted at 0 from 0.")


def test_usual_batches_raise_no_alarm():
    assert alarms(1.0) == []


def test_the_run_is_as_it_would_be_without_the_batch(tmp_path_factory: pytest.TempPathFactory):
    """Recovery puts the averages back: scores in evaluation mode are near those of a run without the fault."""

    def trained(spoil: float) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = surefoot.ClippyAdagrad(model.parameters(), 0.05)
        with surefoot.Supervisor(
            model, optimizer, tmp_path_factory.mktemp("run"), tasks={"click": "binary"}, on_alarm=lambda _: None
        ) as supervisor:
            for step in range(100):
                x = torch.randn(128, 4)
                y = (x.sum(1) + torch.randn(128) > 0).float()
                if step == 80:
                    x[:, 1] *= spoil
                logits = model(x).squeeze(1)
                loss = binary_cross_entropy_with_logits(logits, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                supervisor.step({"click": loss}, outputs={"click": logits}, labels={"click": y}, batch=(x, y))
        x = torch.randn(4096, 4)
        with torch.no_grad():
            return float(binary_cross_entropy_with_logits(model.eval()(x).squeeze(1), (x.sum(1) > 0).float()))

    assert trained(1e4) == pytest.approx(trained(1.0), rel=0.1)


FEATURES = {
    "offset": lambda z: z + 5,
    "heavy tails": lambda z: (2 * z).exp(),
    "large counts": lambda z: 100 * torch.poisson((1.5 * z).exp()),
    "hardly any small": lambda z: z / (0.5 * torch.rand_like(z) + 0.02),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@over("features", FEATURES)
def test_no_usual_feature_a_drift_day_or_a_new_rate_raises_an_alarm(features: Callable[[Tensor], Tensor], seed: int):
    """2,000 steps each: the features move by .3 of their deviation at 1,000, the rate doubles at 1,500."""
    torch.manual_seed(seed)
    sizes = (12, 32, 16)
    hidden = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in pairwise(sizes)]
    model = nn.Sequential(nn.BatchNorm1d(12), *(layer for each in hidden for layer in each), nn.Linear(16, 1))
    optimizer, truth = torch.optim.Adam(model.parameters(), lr=3e-3), torch.randn(12)
    monitor = surefoot.Monitor(model, optimizer, tasks={"click": "binary"})
    for step in range(2000):
        z = torch.randn(128 if seed % 2 else 512, 12)
        x = features(z)
        x = x + 0.3 * x.std() if step >= 1000 else x
        optimizer.param_groups[0]["lr"] = 6e-3 if step >= 1500 else 3e-3
        y = (torch.rand(len(x)) < torch.sigmoid(z @ truth / 2 - 1)).float()
        logits = model(x).squeeze(1)
        loss = binary_cross_entropy_with_logits(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alarm = monitor.step({"click": loss}, outputs={"click": logits}, labels={"click": y})
        assert alarm is None or alarm.signal != "batch_shift", alarm
