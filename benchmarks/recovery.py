"""How many runs with a survivable fault end as well as their unharmed twins: the policy on, off, and its stages alone.

    python benchmarks/recovery.py [--look] [--workers 2] [--seeds 3] [--faults nan_batch ...] [--policies on off ...]

A set-up is a log, a model, a rule and a seed. Its twin trains unharmed; every other run has one fault, at a step drawn
from its seed, and is otherwise the same. A fault is survivable if it passes, or has harmed only what training can put
right: what the twin reaches can then be reached. Faults that change the world for good are shown apart.

A run ends well if its AUC on the days after the last one trained on, the mean over the judged binary tasks, is below
its twin's by no more than 0.5 points, or two standard deviations over the twins' seeds if that is more. A run that was
stopped did not end well. Intervals are Clopper-Pearson, 95 %.

``--look`` uses other seeds, for whoever changes the policy or the detector: the figures reported were not looked at.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faults
import torch
from faults import Fault
from torch import nn

from surefoot.lab.data.schema import Log, Schema
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.metrics import evaluate
from surefoot.lab.models.layers import FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import Ranker, task_losses
from surefoot.lab.sources import completejourney, synthetic
from surefoot.observe.monitor import Monitor
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.embedding_tables import split_parameters
from surefoot.recover import journal
from surefoot.recover.policy import Action, RecoveryPolicy
from surefoot.recover.recovery import Recovery
from surefoot.rules import Clippy, NoClip, Rule
from surefoot.tasks import TaskKind

DAYS, STEPS_PER_DAY, BATCH = 20, 25, 256  # 500 steps
SCORED_DAYS = 2
DATA = ("synthetic", "completejourney")
RULES: dict[str, tuple[Rule, float]] = {"naive": (NoClip(), 0.05), "Clippy": (Clippy(), 0.1)}  # and a safe rate
POLICIES: dict[str, RecoveryPolicy | None] = {
    "on": RecoveryPolicy(),
    "skip only": RecoveryPolicy(slow=None, roll_back=None, stop=False),
    "off": None,
}
SEEDS, LOOKING_SEEDS = 100, 0
Make = Callable[[int, Schema], Fault]
SURVIVABLE: dict[str, Make] = {
    "nan_batch": lambda step, _: faults.nan_batch(step),
    "inf_batch": lambda step, _: faults.inf_batch(step),
    "flipped_labels": lambda step, schema: faults.flipped_labels(step, schema),
    "scaled_feature": lambda step, _: faults.scaled_feature(step),
    "damaged_row": lambda step, _: faults.damaged_row(step, row=1),
    "rate_spike": lambda step, _: faults.rate_spike(step),
    "heavy_task": lambda step, _: faults.heavy_task(step),
    "shuffled_ids": lambda step, _: faults.shuffled_ids(step, steps=20),
    "zeroed_features": lambda step, _: faults.zeroed_features(step, steps=20),
    "lost_embeddings": lambda step, _: faults.lost_embeddings(step),
    "lost_accumulators": lambda step, _: faults.lost_accumulators(step),
}
FOR_GOOD: dict[str, Make] = {
    "drift_day": lambda step, schema: faults.drift_day(step, schema),
    "rate_step": lambda step, _: faults.rate_step(step, factor=30.0),
    "rate_ramp": lambda step, _: faults.rate_ramp(step, factor=30.0),
}


@dataclass(frozen=True)
class Case:
    """One run."""

    data: str
    rule: str
    seed: int
    fault: str | None  # None: the twin
    policy: str

    @property
    def twin(self) -> "Case":
        return replace(self, fault=None, policy="off")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    auc: float
    stopped: bool
    events: tuple[str, ...]
    peak: float  # largest relative loss


@lru_cache(maxsize=2)
def load(data: str, world: int) -> Log:
    """Return a log of the days to train on and those to score; the seeds of a table share a world."""
    if data == "completejourney":
        return completejourney.load(DAYS + SCORED_DAYS)
    return synthetic.make(days=DAYS + SCORED_DAYS, rows_per_day=2048, seed=world)


def make_model(log: Log) -> nn.Module:
    rows, tasks = [column.rows for column in log.schema.categorical], log.schema.tasks
    width = 8 * len(rows) + len(log.schema.dense)
    return Ranker(
        embedding=FeatureEmbedding(rows, 8),
        interaction=nn.Identity(),
        bottom=SharedBottom(width, (64, 64), len(tasks)),
        heads=nn.ModuleDict({task.name: nn.Linear(64, 1) for task in tasks}),
    )


def fault_of(case: Case, schema: Schema) -> Fault:
    """Return the case's fault, at a step between two fifths and four fifths of the run."""
    if case.fault is None:
        return faults.none()
    steps = DAYS * STEPS_PER_DAY
    place = torch.randint(
        steps * 2 // 5, steps * 4 // 5, (), generator=torch.Generator().manual_seed(1_000_003 * case.seed)
    )
    return replace((SURVIVABLE | FOR_GOOD)[case.fault](int(place), schema), seed=case.seed)


def run(case: Case) -> Outcome:
    """Train one case; return how it ended."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    log = load(case.data, case.seed // SEEDS)
    torch.manual_seed(case.seed)
    model = make_model(log)
    parameters, (rule, rate) = split_parameters(model), RULES[case.rule]
    optimizers = [
        Adagrad(parameters.dense.values(), rate, rule=rule, nonfinite="propagate"),
        torch.optim.Adagrad(parameters.embedding.values(), 0.1, initial_accumulator_value=1e-6),
    ]
    rates = [rate, 0.1]
    stream = MovingWindow(log, BATCH, 3, STEPS_PER_DAY, case.seed).stream(DAYS)
    tasks = [task for task in log.schema.tasks if task.judged]
    columns = [i for i, task in enumerate(log.schema.tasks) if task.judged]
    names, fault, policy = [task.name for task in tasks], fault_of(case, log.schema), POLICIES[case.policy]
    peak, stopped, events = 0.0, False, ()
    with tempfile.TemporaryDirectory() as folder:
        watch = None
        if policy is not None:
            kinds = {task.name: task.kind for task in tasks}
            monitor = Monitor(model, optimizers, tasks=kinds, what_if=(), rows=8 * BATCH, refresh=4)
            watch = (
                monitor,
                Recovery(model, optimizers, folder, policy=policy, monitor=monitor, loader=stream, every=20),
            )
        for step, (_, batch) in enumerate(stream):
            fault.on_state(step, model, optimizers)
            batch = fault.on_batch(step, batch)
            outputs = model(batch.categorical, batch.dense)
            losses = fault.on_losses(step, task_losses(outputs, batch.labels, log.schema.tasks))
            for optimizer, base in zip(optimizers, rates, strict=True):
                optimizer.zero_grad()
                optimizer.param_groups[0]["lr"] = base * fault.rate(step)
            losses.sum().backward()
            for optimizer in optimizers:
                optimizer.step()
            peak = max(peak, float(losses.detach().sum()))
            if watch is not None:
                shown = (
                    dict(zip(names, x[..., columns].unbind(-1), strict=True)) for x in (losses, outputs, batch.labels)
                )
                by_task = list(shown)
                alarm = watch[0].step(by_task[0], outputs=by_task[1], labels=by_task[2])
                if watch[1].step(alarm) is Action.STOP:
                    stopped = True
                    break
        path = Path(folder) / "events.jsonl"
        if path.exists():
            events = tuple(_short(event) for event in journal.read(path))
    return Outcome(_score(model, log, fault), stopped, events, peak)


def _short(event: dict[str, object]) -> str:
    cause = f"({event['signal']} {event['task'] or event['layer']})" if "signal" in event else ""
    return f"{event['event']}@{event['step']}{cause}"


@torch.no_grad()
def _score(model: nn.Module, log: Log, fault: Fault) -> float:
    """Return the mean AUC of the judged binary tasks on the scored days; 0.5 where outputs are not finite.

    Where the fault has changed the world, the days are scored as they arrive then.
    """
    rows = log.window(DAYS, DAYS + SCORED_DAYS - 1)
    rows = fault.on_batch(DAYS * STEPS_PER_DAY, rows) if fault.world else rows
    outputs = model(rows.categorical, rows.dense)
    if not bool(outputs.isfinite().all()):
        return 0.5
    scores = evaluate(outputs, rows.labels, log.schema.tasks)
    return statistics.fmean(
        scores[f"auc/{task.name}"] for task in log.schema.tasks if task.judged and task.kind is TaskKind.BINARY
    )


def cases(chosen: Sequence[str], policies: Sequence[str], seeds: Sequence[int]) -> Iterator[Case]:
    """Yield the twins, then every fault under every policy."""
    for data, rule, seed in product(DATA, RULES, seeds):
        yield Case(data, rule, seed, None, "off")
    for fault, policy, data, rule, seed in product(chosen, policies, DATA, RULES, seeds):
        yield Case(data, rule, seed, fault, policy)


def interval(count: int, total: int) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share, 95 %, by bisection of the binomial's tails."""

    def tail(p: float, low: int, high: int) -> float:
        return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(low, high + 1))

    def solve(goes_up: Callable[[float], float]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if goes_up(middle) < 0.025 else (low, middle)
        return low

    lower = 0.0 if count == 0 else solve(lambda p: tail(p, count, total))
    upper = 1.0 if count == total else 1 - solve(lambda q: tail(1 - q, 0, count))
    return lower, upper


class Table:
    """The outcomes, and what they say."""

    def __init__(self, outcomes: dict[Case, Outcome]) -> None:
        self.outcomes = outcomes
        self.tolerance = {(data, rule): max(0.005, 2 * self._spread(data, rule)) for data, rule in product(DATA, RULES)}

    def _spread(self, data: str, rule: str) -> float:
        """Return the standard deviation over the twins' seeds; 0 of a single one, which has none."""
        twins = self._twins(data, rule)
        return statistics.stdev(twins) if len(twins) > 1 else 0.0

    def _twins(self, data: str, rule: str) -> list[float]:
        return [o.auc for c, o in self.outcomes.items() if (c.data, c.rule, c.fault) == (data, rule, None)]

    def loss(self, case: Case) -> float:
        """Return how far below its twin the run ended, in AUC."""
        return self.outcomes[case.twin].auc - self.outcomes[case].auc

    def well(self, case: Case) -> bool:
        return not self.outcomes[case].stopped and self.loss(case) <= self.tolerance[case.data, case.rule]

    def share(self, chosen: Sequence[str], policy: str, **only: str) -> str:
        """Return the share of runs that ended well, with its interval."""
        runs = [c for c in self.outcomes if c.fault in chosen and c.policy == policy]
        runs = [c for c in runs if all(getattr(c, key) == value for key, value in only.items())]
        count = sum(map(self.well, runs))
        low, high = interval(count, len(runs))
        return f"{count / len(runs):.2f} ({low:.2f} to {high:.2f}) {count:4d} / {len(runs)}"

    def lines(self, chosen: Sequence[str], policies: Sequence[str]) -> Iterator[str]:
        for data, rule in product(DATA, RULES):
            twins = self._twins(data, rule)
            yield (
                f"twins {data:16s} {rule:7s} AUC {100 * statistics.fmean(twins):.2f}, "
                f"tolerance {100 * self.tolerance[data, rule]:.2f} points"
            )
        groups = {"survivable faults": SURVIVABLE, "changes for good": FOR_GOOD}
        for title, table in groups.items():
            among = [fault for fault in chosen if fault in table]
            for policy in policies if among else ():
                yield f"{title:18s} policy {policy:10s} {self.share(among, policy)}"
                for key, values in (("data", DATA), ("rule", tuple(RULES))):
                    for value in values:
                        yield f"    {value:33s} {self.share(among, policy, **{key: value})}"
        for fault in chosen:
            yield f"{fault:18s} " + "; ".join(f"{policy}: {self.share([fault], policy)}" for policy in policies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", action="store_true", help="the seeds for changing things")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--faults", nargs="+", default=[*SURVIVABLE, *FOR_GOOD], choices=[*SURVIVABLE, *FOR_GOOD])
    parser.add_argument("--policies", nargs="+", default=[*POLICIES], choices=[*POLICIES])
    parser.add_argument("--each", action="store_true", help="a line for each run, as it ends")
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    first = LOOKING_SEEDS if options.look else SEEDS
    todo = list(cases(options.faults, options.policies, range(first, first + options.seeds)))
    outcomes: dict[Case, Outcome] = {}
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for case, outcome in zip(todo, pool.map(run, todo), strict=True):
            outcomes[case] = outcome
            if options.each:
                lost = f"lost {outcomes[case.twin].auc - outcome.auc:+.4f}{', stopped' if outcome.stopped else ''}"
                print(
                    f"{case.fault} {case.policy} {case.data} {case.rule} {case.seed}: AUC {outcome.auc:.4f}, "
                    f"{lost}, peak {outcome.peak:.3g} {' '.join(outcome.events)}",
                    flush=True,
                )
    table = Table(outcomes)
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, seeds {first} to {first + options.seeds - 1}, "
        f"{DAYS * STEPS_PER_DAY} steps of {BATCH} rows",
        *table.lines(options.faults, options.policies),
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
