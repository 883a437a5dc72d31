"""A run on a log with masked labels, a column with several values and groups: losses, verdicts, scores, replays."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import own_log
from properties import over
from small_training import record, training, written
from surefoot.capsule.bad_rows import bisect
from surefoot.capsule.batch_rows import row_scores
from surefoot.capsule.counterfactual import Counterfactual
from surefoot.capsule.recovery_test import loss_changes
from surefoot.capsule.replay import ReplayedStep, replay
from surefoot.detect.detector import Detector, Verdict
from surefoot.lab.data.schema import Batch, Log, Task
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.models.ranker import LinearRanker
from surefoot.lab.sources import synthetic
from surefoot.lab.study.config import RunConfig
from surefoot.lab.study.trial import assemble, make_supervisor
from surefoot.lab.training.loop import Run, read, start_reading, take_step, train
from surefoot.observe.streaming_metrics import ENOUGH
from surefoot.tasks import TaskKind

LOG = own_log.make()
CONFIG = RunConfig.model_validate(
    {
        "rate": 0.1,
        "model": {"hidden": [16]},
        "training": {"batch_size": 128, "window_days": 1, "initial_accumulator_value": 0.1},
        "rule": {"name": "naive"},
    }
)
WATCHED = CONFIG.model_copy(
    update={"monitor": RunConfig.model_validate({"monitor": {"capsules": False, "rows": 512}}).monitor}
)


def run(log: Log, config: RunConfig, folder: Path, *, detector: Detector | None = None) -> Run:
    parts = assemble(config, log)
    supervisor, progress = make_supervisor(config, parts, folder) or (None, None)
    return train(
        parts.model,
        parts.window,
        parts.optimizers,
        days=len(log.days) - 1,
        detector=detector or Detector(),
        layers=parts.layers,
        schedulers=[parts.scheduler],
        supervisor=supervisor,
        progress=progress,
    )


def test_it_learns_what_is_observed_and_is_scored_on_it(tmp_path: Path):
    result = run(LOG, CONFIG, tmp_path)
    assert result.verdict is Verdict.HEALTHY
    assert all(math.isfinite(float(row["loss/like"])) for row in result.steps)
    assert float(result.final["auc/like"]) > 0.7
    assert float(result.final["rmse/rating"]) < float(result.final["rmse_constant/rating"])
    assert 0.5 < float(result.final["gauc/like"]) < float(result.final["auc/like"])
    assert {name for name in result.final if name.startswith("gauc/")} == {"gauc/click", "gauc/like", "gauc/share"}


def test_a_day_is_scored_within_its_own_groups(tmp_path: Path):
    assert LOG.groups is not None
    groups = LOG.groups.clone()
    groups[LOG.starts[2] : LOG.starts[3]] = torch.arange(1024)  # none of them has both classes
    result = run(replace(LOG, groups=groups), CONFIG, tmp_path)
    assert [math.isnan(float(row["gauc/click"])) for row in result.next_day] == [False, True, False, False]


def test_a_log_without_groups_has_no_grouped_auc(tmp_path: Path):
    result = run(replace(LOG, groups=None), CONFIG, tmp_path)
    assert not [name for name in result.final if name.startswith("gauc/")]


@over("observed", {"some": 0.02, "few of the days": 0.0})
@over("config", {"plain": CONFIG, "watched": WATCHED})
def test_tasks_that_are_rarely_observed_are_no_divergence(config: RunConfig, observed: float, tmp_path: Path):
    """Two rows of a batch on average, by chance none; or none for days, all of them on the others."""
    log = own_log.make(observed={"like": observed, "rating": observed, "share": observed})
    if observed == 0.0:
        labels = own_log.make(observed={}).rows.labels
        labels[log.starts[1] : log.starts[3]] = log.rows.labels[log.starts[1] : log.starts[3]]
        log = replace(log, rows=log.rows._replace(labels=labels))
    detector = Detector()
    result = run(log, config, tmp_path, detector=detector)
    assert (result.verdict, detector.alarms) == (Verdict.HEALTHY, [])
    assert not (tmp_path / "events.jsonl").exists() or not (tmp_path / "events.jsonl").read_text()
    relative = torch.tensor([float(row["relative_loss/rating"]) for row in result.steps])
    assert (relative == 0).any()
    assert relative.isfinite().all()


@over("config", {"plain": CONFIG, "watched": WATCHED})
def test_a_masked_task_that_breaks_is_told(config: RunConfig, tmp_path: Path):
    labels = LOG.rows.labels.clone()
    labels[LOG.starts[3] :, 4] *= 1e4
    tasks = tuple(replace(task, judged=task.name == "rating") for task in LOG.schema.tasks)
    schema = replace(LOG.schema, tasks=tasks)
    result = run(replace(LOG, schema=schema, rows=LOG.rows._replace(labels=labels)), config, tmp_path)
    assert result.verdict is Verdict.FULL


def one_step(labels: Tensor, tasks: tuple[Task, ...]) -> tuple[Mapping[str, Tensor], Tensor, dict[str, float]]:
    """Return the gradients of a linear model after one step on these labels, the losses, what relative losses told."""
    torch.manual_seed(0)
    schema = replace(LOG.schema, tasks=tasks)
    model = LinearRanker(schema)
    rows = slice(0, len(labels))
    batch = Batch(LOG.rows.categorical[rows], LOG.rows.dense[rows], labels)
    losses = take_step(model, batch, [torch.optim.SGD(model.parameters(), lr=0.0)], tasks).losses
    grads = {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
    told = read(start_reading(losses, labels, tasks), tasks)
    return grads, losses, {name: value for (kind, name), value in told.items() if kind == "relative_loss"}


BOTH = (Task("like", TaskKind.BINARY, masked=True), Task("rating", TaskKind.REGRESSION, masked=True))


@over("count", [ENOUGH, ENOUGH + 1, 100])
def test_the_loss_is_relative_to_a_constants_on_the_rows_that_count(count: int):
    labels = torch.full((100, 2), torch.nan)
    labels[:count] = torch.stack([torch.rand(count).round(), torch.randn(count)], 1)
    plain = tuple(replace(task, masked=False) for task in BOTH)
    expected, found = one_step(labels[:count], plain), one_step(labels, BOTH)
    torch.testing.assert_close(found[1:], expected[1:])
    torch.testing.assert_close(found[0], expected[0])


@over("count", [0, 1, ENOUGH - 1])
def test_of_too_few_rows_there_is_no_relative_loss(count: int):
    labels = torch.full((100, 2), torch.nan)
    labels[:count] = 1.0
    grads, losses, relative = one_step(labels, BOTH)
    assert relative == {}
    assert (losses > 0).tolist() == [count > 0] * 2
    assert all(grad.isfinite().all() for grad in grads.values())
    assert all(bool(grad.any()) == (count > 0) for grad in grads.values())


def test_a_loss_of_too_few_rows_that_is_not_finite_is_still_told():
    labels = torch.full((100, 2), torch.nan)
    labels[0] = torch.tensor([0.0, 1e30])
    assert [math.isnan(value) for value in one_step(labels, BOTH)[2].values()] == [True]


def test_weights_reach_the_gradient():
    tasks = tuple(replace(task, masked=False) for task in BOTH)
    labels = torch.stack([torch.rand(100).round(), torch.randn(100)], 1)
    weighted = tuple(replace(task, weight=weight) for task, weight in zip(tasks, (3, 1), strict=True))  # integers too
    (plain, losses, _), (scaled, same, _) = one_step(labels, tasks), one_step(labels, weighted)
    assert losses.equal(same)  # told as they are
    factors = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(scaled["linear.weight"], factors[:, None] * plain["linear.weight"])
    torch.testing.assert_close(scaled["embedding.table.weight"], factors * plain["embedding.table.weight"])


def odd_label(step: int, batch: Batch) -> None:
    if step == 40:
        row = int(batch.labels[:, 4].isfinite().nonzero()[9])
        batch.labels[row, 4] = 1e6


def test_a_capsule_is_replayed_bit_for_bit_and_the_row_found(tmp_path: Path):
    log = own_log.make(days=4)
    window = MovingWindow(log, 64, width=2)
    capsule = written(record(training(log=log), 43, spoil=odd_label, window=window), tmp_path, alarm={"step": 40})
    assert replay(capsule, training(log=log)).difference is None
    found = bisect(capsule, training(log=log, seed=5))
    batch = capsule.steps[40].batch
    assert batch is not None
    (culprit,) = found.rows
    assert batch[2][culprit.number, 4] == 1e6
    assert culprit.values[0].column == "batch[2][:, 4]"
    assert (found.complete, found.step) == (True, 40)


def test_a_label_that_is_not_observed_is_not_unusual():
    def batch(nan: float) -> tuple[Tensor, Tensor]:
        labels = torch.rand(8, 2)
        labels[::2, 1] = nan
        return torch.rand(8, 1), labels

    names = {"batch[1]": ("like", "rating")}
    before = [batch(math.nan), batch(0.5)]
    assert row_scores(batch(math.nan), before, names).beyond.isfinite().all()
    rare = row_scores(batch(math.nan), [*before, batch(0.5)], names)  # in one of three batches
    assert rare.beyond[:, 2].isinf().tolist() == [True, False] * 4
    assert row_scores(batch(math.inf), before, names).values(0)[0].column == "rating"


def test_steps_that_do_not_show_a_task_are_left_out_of_its_level():
    losses = [0.5 if step % 3 == 0 else 0.0 for step in range(120)]
    seen = [
        ReplayedStep(step, {"relative_loss/like": loss}, {}, Counterfactual({}, {})) for step, loss in enumerate(losses)
    ]
    level = loss_changes(seen, 60, names=["relative_loss/like"], relative=True)["relative_loss/like"]
    assert (level.before, level.end, level.survived) == (0.5, 0.5, True)


def test_a_log_without_ids_has_a_model():
    log = synthetic.make(days=2, rows_per_day=64)
    schema = replace(log.schema, categorical=())
    log = replace(log, schema=schema, rows=log.rows._replace(categorical=log.rows.categorical[:, :0]))
    outputs = assemble(CONFIG, log).model(log.rows.categorical, log.rows.dense)
    assert outputs.shape == log.rows.labels.shape
