"""The sequential run: order, next-day scores, warm-up, early stop, and the same numbers twice."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import surefoot
from surefoot.detect.detector import Detector, Verdict
from surefoot.lab.data.schema import Log
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.models.layers import FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import Ranker
from surefoot.lab.sources import synthetic
from surefoot.lab.training.loop import Run, _Recorder, start_reading, train, warm_up  # pyright: ignore[reportPrivateUsage]
from surefoot.optim.embedding_tables import split_parameters
from surefoot.rules import NoClip, Rule

LOG = synthetic.make(days=5, rows_per_day=256)


def run(
    *,
    log: Log = LOG,
    rule: Rule = NoClip(),
    rate: float = 0.05,
    seed: int = 0,
    days: int = 3,
    warmup: int = 0,
    curve_day: int | None = None,
    patience: int = 60,
    spoil: Callable[[nn.Module], None] = lambda model: None,
) -> Run:
    torch.manual_seed(seed)
    tasks = log.schema.tasks
    rows = [column.rows for column in log.schema.categorical]
    width = 4 * len(rows) + len(log.schema.dense)
    model = Ranker(
        embedding=FeatureEmbedding(rows, 4),
        interaction=nn.Identity(),
        bottom=SharedBottom(width, [16], len(tasks)),
        heads=nn.ModuleDict({task.name: nn.Linear(16, 1) for task in tasks}),
    )
    spoil(model)
    dense, embedding = split_parameters(model)
    optimizer = surefoot.Adagrad(dense.values(), rate, rule=rule, nonfinite="propagate")
    return train(
        model,
        MovingWindow(log, 64, width=2, seed=seed),
        [optimizer, torch.optim.Adagrad(embedding.values(), 0.1, initial_accumulator_value=1e-6)],
        days=days,
        detector=Detector(patience=patience),
        layers=dense,
        schedulers=[warm_up(optimizer, warmup)],
        curve_day=curve_day,
    )


def test_every_day_is_scored_before_it_is_trained_on_and_the_next_one_last():
    result = run(days=3)
    assert [row["day"] for row in result.next_day] == ["day-01", "day-02", "day-03"]
    assert [row["day"] for row in result.steps] == [0] * 4 + [1] * 4 + [2] * 4
    assert result.final["day"] == "day-03"


def test_a_days_labels_do_not_reach_its_own_score():
    """With the last trained day's and the scored day's labels turned over, the scores before them stay."""
    labels = LOG.rows.labels.clone()
    labels[LOG.starts[2] :, 3:] *= -1
    changed = replace(LOG, rows=LOG.rows._replace(labels=labels))
    plain, turned = run(days=3), run(days=3, log=changed)
    assert plain.next_day[0] == turned.next_day[0]
    assert plain.steps[:8] == turned.steps[:8]
    assert plain.next_day[2] != turned.next_day[2]


def test_the_curve_scores_one_day_after_every_day_and_changes_nothing():
    plain, drawn = run(days=3), run(days=3, curve_day=4)
    assert [(row["after"], row["day"]) for row in drawn.curve] == [(f"day-0{i}", "day-04") for i in range(3)]
    assert plain.steps == drawn.steps
    assert plain.next_day == drawn.next_day


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    assert run(seed=1) == run(seed=1)
    assert run(seed=1) != run(seed=2)


def test_it_learns():
    result = run(rate=0.1, days=4)
    assert float(result.final["auc/click"]) > 0.6  # 0.5 is chance
    assert result.verdict is Verdict.HEALTHY


def test_warm_up_is_linear():
    rates = [row["lr"] for row in run(rate=0.1, warmup=4, days=2).steps]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_clip_factors_are_recorded_by_layer():
    unclipped, clipped = run(rate=0.5), run(rate=0.5, rule=surefoot.Clippy(relative=0.01, absolute=1e-3))
    assert {row["clip_factor/bottom.layers.0.weight"] for row in unclipped.steps} == {1.0}
    assert all(0 < float(row["clip_factor/bottom.layers.0.weight"]) < 1 for row in clipped.steps)


def test_a_diverged_run_stops_early_says_so_and_is_scored():
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("heads.rating.bias").fill_(torch.inf)

    result = run(spoil=spoil, days=4, patience=5)
    assert (result.verdict, result.stopped_early) == (Verdict.FULL, True)
    assert len(result.steps) == 7  # noticed at the sixth, read one step late
    assert result.final["day"] == "day-04"


@pytest.mark.parametrize("days", [0, 5])
def test_a_day_must_be_left_to_score(days: int):
    with pytest.raises(ValueError, match=f"days is {days}; expected 1 to 4"):
        run(days=days)


def test_a_task_with_one_class_on_the_scored_day_is_undefined():
    labels = LOG.rows.labels.clone()
    labels[LOG.starts[3] :, 0] = 0.0
    result = run(log=replace(LOG, rows=LOG.rows._replace(labels=labels)))
    assert result.final["auc/click"] != result.final["auc/click"]
    assert result.final["auc/like"] == result.final["auc/like"]


def test_a_task_that_never_learns_is_told_and_makes_no_verdict():
    log = synthetic.make(days=6, rows_per_day=2048)
    labels = log.rows.labels.clone()
    labels[:, 1] = (torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) < 0.01).float()
    noise = replace(log, rows=log.rows._replace(labels=labels))
    (name,) = [task.name for task in log.schema.tasks][1:2]
    result = run(log=noise, days=5)
    assert result.never_learnt == [name]
    assert result.verdict is Verdict.HEALTHY
    assert run(log=log, days=5).never_learnt == []


def test_a_task_that_ranks_in_the_end_has_learnt(monkeypatch: pytest.MonkeyPatch):
    """Whatever the losses of its batches told the detector."""
    monkeypatch.setattr(Detector, "never_learnt", property(lambda detector: ["click", "like"]))
    log = synthetic.make(days=3, rows_per_day=2048)
    labels = log.rows.labels.clone()
    labels[:, 1] = (torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) < 0.01).float()
    assert run(log=replace(log, rows=log.rows._replace(labels=labels)), days=2).never_learnt == ["like"]


def test_days_are_scored_in_evaluation_mode_and_steps_taken_in_training_mode():
    modes = set[tuple[int, bool]]()

    def look(model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda model, inputs: modes.add((len(inputs[0]), model.training)))

    run(days=2, spoil=look)
    assert modes == {(64, True), (256, False)}


def test_the_last_few_rows_of_a_day_are_no_divergence():
    """A batch of 3 rows of 64, of which a relative loss of 30 is chance."""
    detector, tasks = Detector(), LOG.schema.tasks
    recorder = _Recorder(tasks, [], [], detector)

    def take(step: int, rows: int, loss: float) -> None:
        labels = torch.arange(rows)[:, None].remainder(2).float().expand(rows, len(tasks))
        reading = start_reading(torch.full((len(tasks),), loss), labels, tasks)
        recorder.exchange({"step": step, "day": 0, "lr": 0.1}, reading)

    for step in range(40):
        take(step, 64, 0.1)
    for step in range(40, 60):
        take(step, 3, 30.0)
    take(60, 3, math.nan)
    assert (len(recorder.rows), detector.alarms) == (60, [])
    recorder.flush()
    assert [alarm.signal for alarm in detector.alarms] == ["non_finite"]
