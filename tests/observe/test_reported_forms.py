"""What outputs and losses are: found out from the losses of the first steps, said once, and taken so."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, mse_loss

from properties import over
from surefoot.observe.monitor import Monitor

KINDS = {"click": "binary", "sales": "regression"}
ROWS = 256


class Loop:
    """A loop that gives its outputs and losses in one of their forms; the monitor's values are kept."""

    def __init__(
        self, outputs: str, losses: str, *, weight: float = 1.0, telling: dict[str, Any] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({task: nn.Linear(3, 1) for task in KINDS})
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3)
        self.outputs, self.losses, self.weight = outputs, losses, weight
        self.rows: list[dict[str, float]] = []
        self.monitor = Monitor(
            self.model,
            self.optimizer,
            tasks=KINDS,
            sinks=[lambda _, row: self.rows.append(dict(row))],
            **(telling or {}),
        )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(ROWS, 3)
            labels = {"click": (x[:, 0] > 0).float(), "sales": x[:, 1]}
            outputs = {task: self.model[task](x)[:, 0] for task in KINDS}
            losses = {
                "click": self._log_loss(outputs["click"], labels["click"]),
                "sales": self.weight * mse_loss(outputs["sales"], labels["sales"], reduction=self.losses),
            }
            if self.outputs == "probabilities":
                outputs["click"] = outputs["click"].sigmoid()
            self.optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            self.optimizer.step()
            self.monitor.step(losses, outputs=outputs, labels=labels)
        self.monitor.close()

    def _log_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.outputs == "probabilities":
            return self.weight * binary_cross_entropy(logits.sigmoid(), labels, reduction=self.losses)
        return self.weight * binary_cross_entropy_with_logits(logits, labels, reduction=self.losses)


def expected() -> list[dict[str, float]]:
    loop = Loop("logits", "mean")
    loop.run(17)
    return loop.rows


def said(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in seen]


def test_logits_and_means_need_no_word() -> None:
    assert said(expected) == []


@over("losses", ["mean", "sum"])
@over("outputs", ["logits", "probabilities"])
@over("told", [True, False])
def test_each_form_gives_the_same_values(told: bool, outputs: str, losses: str) -> None:
    loop = Loop(outputs, losses, telling={"outputs": outputs, "losses": losses} if told else {})
    words = said(lambda: loop.run(17))
    odd = [outputs == "probabilities", losses == "sum"]
    assert len(words) == (0 if told else sum(odd))
    assert all("Monitor(..., " in word for word in words)
    names = ["loss/click", "relative_loss/click", "relative_loss/sales"]
    names += ["prediction_std_ratio/click", "ne/click", "calibration/click", "auc/click"] if told else []
    first = expected()[0]  # later ones differ: the gradient of a sum is larger
    assert [loop.rows[0][name] for name in names] == pytest.approx([first[name] for name in names], rel=1e-4)


def test_scores_taken_for_something_else_are_not_told() -> None:
    loop = Loop("probabilities", "mean")
    said(lambda: loop.run(17))
    assert not [name for name in loop.rows[0] if name.startswith(("prediction_std_ratio/", "calibration/", "ne/"))]
    reference = expected()
    for name in ("prediction_std_ratio/click", "ne/click", "calibration/click", "auc/click"):
        assert loop.rows[16][name] == pytest.approx(reference[16][name], rel=0.1)


def test_a_loss_that_tells_nothing_leaves_logits_and_says_so_where_they_may_be_probabilities() -> None:
    """A weighted loss is neither form's."""
    loop = Loop("probabilities", "mean", weight=3.0)
    (word,) = said(lambda: loop.run(12))
    assert "outputs of click all lie between 0 and 1" in word
    assert said(lambda: Loop("logits", "mean", weight=3.0).run(12)) == []


def test_a_restored_monitor_knows_the_form() -> None:
    loop = Loop("probabilities", "sum")
    said(lambda: loop.run(3))
    state = json.loads(json.dumps(loop.monitor.state_dict()))
    again = Loop("probabilities", "sum")
    again.monitor.load_state_dict(state)
    assert said(lambda: again.run(3)) == []
    assert again.rows[-1]["loss/click"] < 1.0


@over("argument", ["outputs", "losses"])
def test_a_form_that_does_not_exist_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 'scores'; expected '.*' or '.*', or None"):
        Loop("logits", "mean", telling={argument: "scores"})
