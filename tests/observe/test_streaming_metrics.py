"""Scores of recent rows: against torchmetrics, ties, rows that are not there, the ring."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from properties import over
from surefoot.lab import metrics
from surefoot.lab.data.schema import Task
from surefoot.lab.models.ranker import task_losses
from surefoot.observe.streaming_metrics import (
    ABSENT,
    Kinds,
    Window,
    auc,
    auc_error,
    clean,
    constant_loss,
    label_moments,
    scores,
)
from surefoot.tasks import TaskKind


def draw(rows: int = 500) -> tuple[Tensor, Tensor]:
    """Return outputs and labels, (2, rows): a binary task and a regression."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, rows, generator=generator)
    labels = torch.stack(
        [(torch.rand(rows, generator=generator) < 0.3).float(), torch.randn(rows, generator=generator)]
    )
    return outputs, labels


KINDS = Kinds((True, False), torch.tensor([True, False]))
ONE = Kinds((True,), torch.tensor([True]))

FAMILIES = {
    "plain": lambda s: s,
    "ties": lambda s: s.round(),
    "constant": lambda s: torch.zeros_like(s),
    "both zeros": lambda s: torch.where(s > 0, 0.0, -0.0),
    "huge": lambda s: s * 1e30,
    "tiny": lambda s: s * 1e-42,
    "bfloat16": lambda s: s.bfloat16(),
}


@over("family", FAMILIES)
def test_auc_agrees_with_torchmetrics(family) -> None:
    outputs, labels = draw()
    values = family(outputs[0])
    expected = metrics.auc(values.float() + 0.0, labels[0])
    assert float(auc(values, labels[0], torch.ones(500))) == pytest.approx(expected, abs=1e-6)


def test_the_scores_are_those_of_the_metrics() -> None:
    outputs, labels = draw()
    found = scores(clean(outputs, labels), KINDS)
    assert float(found["auc"][0]) == pytest.approx(metrics.auc(outputs[0], labels[0]))
    assert float(found["ne"][0]) == pytest.approx(metrics.normalised_entropy(outputs[0], labels[0]))
    assert float(found["calibration"][0]) == pytest.approx(metrics.calibration(outputs[0], labels[0]))
    spread = outputs[0].sigmoid().std(correction=0) / labels[0].std(correction=0)
    assert float(found["prediction_std_ratio"][0]) == pytest.approx(float(spread))
    assert float(found["ne"][1]) == pytest.approx(
        float((outputs[1] - labels[1]).square().mean() / labels[1].var(correction=0))
    )
    assert float(found["prediction_std_ratio"][1]) == pytest.approx(
        float(outputs[1].std(correction=0) / labels[1].std(correction=0))
    )
    assert found["auc"][1] == found["calibration"][1] == ABSENT


def test_rows_that_were_not_observed_are_left_out() -> None:
    outputs, labels = draw()
    gone = torch.arange(500) % 3 == 0
    expected = scores(clean(outputs[:, ~gone], labels[:, ~gone]), KINDS)
    for where in (labels, outputs):
        spoilt = where.clone()
        spoilt[:, gone] = math.nan
        pair = (outputs, spoilt) if where is labels else (spoilt, labels)
        for name, value in scores(clean(*pair), KINDS).items():
            torch.testing.assert_close(value, expected[name])


@over("labels", {"negatives": torch.zeros(2, 9), "positives": torch.ones(2, 9), "none": torch.full((2, 9), math.nan)})
def test_what_is_not_defined_is_absent(labels: Tensor) -> None:
    found = scores(clean(torch.randn(2, 9), labels), KINDS)
    assert all(bool((value == ABSENT).all()) for value in found.values())


def constant(outputs: Tensor, labels: Tensor, kinds: Kinds) -> list[float]:
    columns = [column.tolist() for column in label_moments(clean(outputs, labels), kinds.binary).values()]
    return [constant_loss(*each, binary=kind) for *each, kind in zip(*columns, kinds.binary, strict=True)]


def test_the_constant_loss_is_that_of_the_best_constant() -> None:
    outputs, labels = draw()
    tasks = (Task("a", TaskKind.BINARY), Task("b", TaskKind.REGRESSION))
    mean = labels.mean(1)
    best = torch.stack([mean[0].logit().expand(500), mean[1].expand(500)])
    expected = task_losses(best.T, labels.T, tasks)
    assert constant(outputs, labels, KINDS) == pytest.approx(expected.tolist(), rel=1e-5)
    assert constant(outputs[:1], labels[:1], ONE) == pytest.approx(expected.tolist()[:1], rel=1e-5)


def test_a_batch_without_a_positive_still_has_a_constant_loss() -> None:
    one, none, all_of_them = torch.eye(64)[:1], torch.zeros(1, 64), torch.ones(1, 64)
    assert constant(one, one, ONE) == constant(none, none, ONE) == pytest.approx(constant(none, all_of_them, ONE))
    assert constant(one[:, :1], one[:, :1], ONE)[0] > 0
    same = torch.full((2, 9), 3.0)
    assert 0 < constant(same, same - 2, KINDS)[1] < 1e-30


def test_without_labels_the_constant_loss_is_nan() -> None:
    assert all(map(math.isnan, constant(torch.zeros(2, 9), torch.full((2, 9), math.nan), KINDS)))


@over("batch", {"parts": 7, "exactly": 20, "larger": 33})
def test_the_window_holds_the_last_rows(batch: int) -> None:
    outputs, labels = draw(700)
    window = Window(20)
    assert window.scores(KINDS) == {}
    for start in range(0, 10 * batch, batch):
        window.add(clean(outputs[:, start : start + batch], labels[:, start : start + batch]))
        seen = slice(max(0, start + batch - 20), start + batch)
        expected = scores(clean(outputs[:, seen], labels[:, seen]), KINDS)
        for name, value in window.scores(KINDS).items():
            torch.testing.assert_close(value, expected[name])


def test_no_number_is_read() -> None:
    with FakeTensorMode():
        window, kinds = Window(16), Kinds((True, False), torch.tensor([True, False]))
        for _ in range(3):
            window.add(clean(torch.empty(2, 9), torch.empty(2, 9)))
            assert {value.shape for value in window.scores(kinds).values()} == {(2,)}


def test_a_perfect_auc_over_few_rows_is_not_certain() -> None:
    few = auc_error(torch.tensor([1.0, 0.0]), torch.tensor([2, 2]), torch.tensor([254, 254]))
    assert few[0] == few[1]
    assert few[0] > 0.1
