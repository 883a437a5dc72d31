"""Metrics: closed forms, groups, masks, what is undefined, and what happens to numbers that are not finite."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from properties import over
from surefoot.lab import metrics
from surefoot.lab.data.schema import Task
from surefoot.tasks import TaskKind


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


def slow_grouped_auc(scores: Tensor, labels: Tensor, groups: Tensor) -> float:
    """Return the mean of the groups' AUCs by their rows, each pair looked at."""
    areas, rows = [], []
    for group in groups.unique():
        inside = groups == group
        positive, negative = (scores[inside & (labels == label)].double() for label in (1, 0))
        if len(positive) and len(negative):
            difference = positive[:, None] - negative[None, :]
            areas.append(((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item())
            rows.append(int(inside.sum()))
    return sum(a * n for a, n in zip(areas, rows, strict=True)) / sum(rows) if rows else math.nan


FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda scores: scores,
    "ties": lambda scores: scores.round(decimals=1),
    "constant": torch.zeros_like,
    "both zeros": lambda scores: torch.where(scores > 0, 0.0, -0.0),
    "huge": lambda scores: scores * 1e30,
    "tiny": lambda scores: scores * 1e-42,
    "bfloat16": lambda scores: scores.bfloat16(),
}


@over("family", FAMILIES)
@over("groups", [1, 7, 100, 10_000])
def test_the_grouped_auc_agrees_with_the_slow_one(family: Callable[[Tensor], Tensor], groups: int):
    scores, labels = family(torch.randn(300)), (torch.rand(300) < 0.3).float()
    owners = 3 * torch.randint(-groups, groups, (300,))
    expected = slow_grouped_auc(scores, labels, owners)
    assert metrics.grouped_auc(scores, labels, owners) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert metrics.grouped_auc(scores, labels, owners.int()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_grouped_auc_of_one_group_is_the_auc():
    scores, labels = torch.randn(300).round(decimals=1), (torch.rand(300) < 0.3).float()
    same = torch.full((300,), 5)
    assert metrics.grouped_auc(scores, labels, same) == pytest.approx(metrics.auc(scores, labels), abs=1e-6)


def test_what_tells_groups_apart_does_not_help_within_them():
    """A score that knows the group's rate only is worth much to the AUC and nothing to the grouped one."""
    groups = torch.arange(50).repeat_interleave(20)
    labels = (torch.rand(1000) < groups / 50).float()
    assert metrics.auc(groups.float(), labels) > 0.7
    assert metrics.grouped_auc(groups.float(), labels, groups) == 0.5


@over(
    "case",
    {
        "no rows": ([], [], []),
        "one class": ([0.1, 0.2], [1.0, 1.0], [0, 0]),
        "no group with both": ([0.1, 0.2], [0.0, 1.0], [0, 1]),
        "nan": ([0.1, math.nan], [0.0, 1.0], [0, 0]),
        "inf": ([0.1, math.inf], [0.0, 1.0], [0, 0]),
    },
)
def test_the_grouped_auc_that_is_not_defined(case: tuple[list[float], list[float], list[int]]):
    scores, labels, groups = (torch.tensor(each) for each in case)
    assert math.isnan(metrics.grouped_auc(scores, labels, groups.long()))


def test_evaluate_gives_every_task_its_metrics():
    tasks = (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))
    scores = metrics.evaluate(torch.tensor([[1.0, 2.0], [-1.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 2.0]]), tasks)
    assert scores["auc/click"] == 1.0
    assert scores["rmse/time"] == pytest.approx(math.sqrt(2))
    assert scores["rmse_constant/time"] == 0.0


TASKS = (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))


def test_groups_add_a_metric_of_binary_tasks_and_change_no_other():
    outputs, labels = torch.randn(200, 2), torch.randint(2, (200, 2)).float()
    groups = torch.randint(9, (200,))
    without, scores = metrics.evaluate(outputs, labels, TASKS), metrics.evaluate(outputs, labels, TASKS, groups)
    expected = slow_grouped_auc(outputs[:, 0], labels[:, 0], groups)
    assert scores.pop("gauc/click") == pytest.approx(expected, abs=1e-12)
    assert scores == without


def test_of_a_masked_task_only_the_rows_with_a_label_count():
    outputs, labels, groups = torch.randn(200, 2), torch.randint(2, (200, 2)).float(), torch.randint(9, (200,))
    seen = torch.rand(200) < 0.5
    masked = (replace(TASKS[0], masked=True), TASKS[1])
    expected = metrics.evaluate(outputs[seen], labels[seen], TASKS, groups[seen])
    hidden = torch.where(seen[:, None] | torch.tensor([False, True]), labels, torch.nan)
    scores = metrics.evaluate(outputs, hidden, masked, groups)
    for name, value in scores.items():
        assert value == (expected if name.endswith("click") else metrics.evaluate(outputs, labels, TASKS))[name]


def test_a_masked_task_without_a_row_has_no_metric():
    masked = tuple(replace(task, masked=True) for task in TASKS)
    scores = metrics.evaluate(torch.randn(9, 2), torch.full((9, 2), torch.nan), masked, torch.zeros(9).long())
    assert len(scores) == 8
    assert all(math.isnan(value) for value in scores.values())
