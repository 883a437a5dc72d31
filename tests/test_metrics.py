"""Metrics: closed forms, what is undefined, and what happens to numbers that are not finite."""

import math

import pytest
import torch

from surefoot import metrics
from surefoot.data.schema import Task, TaskKind


def test_auc_counts_pairs():
    scores, labels = torch.randn(200), (torch.rand(200) < 0.3).float()
    scores = scores.round(decimals=1)  # ties
    positive, negative = scores[labels == 1], scores[labels == 0]
    difference = positive[:, None] - negative[None, :]
    by_hand = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    assert metrics.auc(scores, labels) == pytest.approx(by_hand, abs=1e-6)


def test_auc_sees_differences_that_a_sigmoid_would_merge():
    assert metrics.auc(torch.tensor([100.0, 101.0, 102.0]), torch.tensor([0.0, 0.0, 1.0])) == 1.0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_undefined_not_a_half(label: float):
    labels = torch.full((5,), label)
    assert math.isnan(metrics.auc(torch.rand(5), labels))
    assert math.isnan(metrics.normalised_entropy(torch.rand(5), labels))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_have_no_auc(bad: float):
    assert math.isnan(metrics.auc(torch.tensor([0.1, bad, 0.3]), torch.tensor([0.0, 1.0, 0.0])))


def test_the_interval_narrows_with_rows_and_holds_the_value():
    few, many = metrics.auc_interval(0.9, 50, 500), metrics.auc_interval(0.9, 500, 5000)
    assert few.low < many.low < 0.9 < many.high < few.high <= 1


def test_normalised_entropy_of_the_base_rate_is_one():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert metrics.normalised_entropy(torch.full((4,), 0.25).logit(), labels) == pytest.approx(1.0, abs=1e-6)


def test_evaluate_gives_every_task_its_metrics():
    tasks = (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))
    scores = metrics.evaluate(torch.tensor([[1.0, 2.0], [-1.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 2.0]]), tasks)
    assert scores["auc/click"] == 1.0
    assert scores["rmse/time"] == pytest.approx(math.sqrt(2))
    assert scores["rmse_constant/time"] == 0.0
