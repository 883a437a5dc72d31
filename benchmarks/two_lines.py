"""What a rule costs and saves where nothing is tuned: AUC at seven rates, by the rule and by the accumulator's start.

    python benchmarks/two_lines.py [--out two_lines.jsonl] [--seeds 5] [--set-ups ...] [--show]
    python benchmarks/two_lines.py --why [--out two_lines_why.jsonl]

Six set-ups: the study's two ranking models on the two logs of the demos (``quick``'s and ``drift``'s), whose embeddings
are trained by an Adagrad of their own as in the paper; and two models of deepctr-torch 0.3.0, trained by its own
``fit`` for one epoch, all parameters in the one optimizer that replaces torch's: the two lines as a new user writes
them. (deepctr-torch also needs scikit-learn, tqdm and requests; without it, its set-ups are left out and it is said.)

Every run appends one line of JSON to ``--out``; what is there is not run again. ``--show`` prints the tables of what is
there, in which each seed's run is compared with the same seed's run of the reference: torch's Adagrad as it comes
(no clipping, accumulator from 0) at its best rate. Intervals are of the mean over the seeds, Student's t, 95 %.
``--why`` isolates the cause where Clippy loses: deepctr-torch's models with hidden layers that start from a normal
deviation of 0.05 in place of its 0.0001; the small model on the drifting log, day by day, and without the drift.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from two_lines_table import tables, why

import surefoot
from surefoot.lab.data.schema import Log
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.metrics import auc, evaluate
from surefoot.lab.sources import completejourney, synthetic
from surefoot.lab.study.config import ModelConfig
from surefoot.lab.study.model import build_model, fit_label_units
from surefoot.lab.training.loop import take_step
from surefoot.optim.embedding_tables import embedding_tables, split_parameters
from surefoot.rules import AdaptiveGradientClip, Clippy, GradientClip, NoClip, Rule, TrustRatio
from surefoot.tasks import TaskKind

RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FEW_RATES = RATES[::3]  # where a line of seven would tell no more
LOWER_RATES = (0.003125, 0.00625, 0.0125, 0.025)  # of the reference alone: its best rate must not be the grid's edge
TABLE_RATE = 0.1  # of embedding tables that have an Adagrad of their own, from 1e-6, unclipped
APART = "Clippy, tables apart"
APART_WIDE = "Clippy(absolute=0.03), tables apart"
LOW = "Clippy(absolute=0.003)"
STARTS = (0.1, 1e-3, 1e-6, 0.0)
RULES: dict[str, Rule] = {
    "naive": NoClip(),
    "Clippy": Clippy(),
    LOW: Clippy(absolute=0.003),
    APART: Clippy(),
    APART_WIDE: Clippy(absolute=0.03),
    "GC(1)": GradientClip(1.0),
    "AGC(.1)": AdaptiveGradientClip(0.1),
    "LAMB(.1)": TrustRatio(0.1),
}
SET_UPS = """\
completejourney: 13 days, batches of 512; drift: 19 days of 1,024 rows, batches of 128, 2 of 8 features change their
unit on day 14; both: AUC of the next day, the mean over the last third of the days. deepctr: one epoch of 12 days of
4,096 rows, batches of 256; AUC of the two days after. It is the AUC of the first judged binary task.
"""
OURS = ("completejourney small", "completejourney large+dcn", "drift small", "drift large+dcn")
THEIRS = ("deepctr MMOE", "deepctr SharedBottom")
STD = ", std "  # of the hidden layers' start, where it is not deepctr-torch's
STEADY = "steady small"  # drift's log without the drift
WIDER = tuple(f"{setup}{STD}0.05" for setup in THEIRS)
MODELS = {
    "small": ModelConfig(name="small", hidden=(128, 128)),
    "large+dcn": ModelConfig(name="large+dcn", hidden=(256, 256, 256, 256), cross_layers=1),
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    setup: str
    rule: str
    start: float | None  # of the accumulator; Adam has none
    rate: float
    seed: int


def cells(seeds: int, setups: list[str]) -> Iterator[Cell]:
    """Yield every run, those that decide the default first.

    Two seeds of everything; then the other seeds of what the paired differences are taken of, Clippy at all rates and
    the reference at those near its best; then three seeds, at fewer rates, of Adam and of the other rules.
    """
    for seed, setup in product(range(1, seeds + 1), setups):
        full = seed <= 2
        for rate in RATES:
            yield Cell(setup, "Clippy", 1e-6, rate, seed)
            yield Cell(setup, "Clippy", 0.1, rate, seed)
            if setup in THEIRS:
                yield Cell(setup, APART, 1e-6, rate, seed)
            if full:
                yield Cell(setup, "Clippy", 0.0, rate, seed)
        for rate in (*LOWER_RATES, *RATES) if full else (*LOWER_RATES, 0.05, 0.1):
            if rate > 0.01 or setup in OURS:
                yield Cell(setup, "naive", 0.0, rate, seed)
        for rate in RATES if full else (0.05, 0.1, 0.2):
            yield Cell(setup, "naive", 0.1, rate, seed)
        for rate in FEW_RATES if full else ():
            yield Cell(setup, "Clippy", 1e-3, rate, seed)
    others = (("Adam/10", (None,)), ("Adam/10 + Clippy", (None,)), ("naive", (1e-3, 1e-6)))
    others += tuple((rule, (1e-6, 0.1)) for rule in ("GC(1)", "AGC(.1)", "LAMB(.1)"))
    for seed, setup, (rule, starts) in product(range(1, min(seeds, 3) + 1), setups, others):
        for start, rate in product(starts, FEW_RATES):
            yield Cell(setup, rule, start, rate, seed)


def cells_of_why() -> Iterator[Cell]:
    """Yield the runs of ``--why``: five seeds, and more on the drifting log, where they differ more."""
    plan: tuple[tuple[tuple[str, ...], int, dict[tuple[str, float], tuple[float, ...]]], ...] = (
        (THEIRS, 5, {("naive", 0.0): (0.05, 0.1), (APART, 1e-6): (0.1, 0.8), (APART_WIDE, 1e-6): (0.1, 0.8)}),
        (WIDER, 5, {("naive", 0.0): (0.025, 0.05, 0.1), (APART, 1e-6): RATES, ("Clippy", 1e-6): FEW_RATES}),
        ((STEADY,), 5, {("naive", 0.0): (0.0125, 0.025, 0.05), ("Clippy", 1e-6): RATES, (LOW, 1e-6): FEW_RATES}),
        (
            ("drift small",),
            16,
            {
                ("naive", 0.0): (0.00625, 0.0125, 0.025),
                ("Clippy", 1e-6): (0.0125, *FEW_RATES),
                (LOW, 1e-6): FEW_RATES,
            },
        ),
    )
    for setups, seeds, tried in plan:
        for setup, ((rule, start), rates), seed in product(setups, tried.items(), range(1, seeds + 1)):
            yield from (Cell(setup, rule, start, rate, seed) for rate in rates)


def optimizer_of(cell: Cell, params: list[nn.Parameter], tables: set[nn.Parameter]) -> Optimizer:
    """Return what a cell steps with: torch's own Adagrad where nothing is clipped."""
    if cell.start is None:
        adam = torch.optim.Adam(params, cell.rate / 10)
        if cell.rule.endswith("Clippy"):
            surefoot.clip_updates(adam, Clippy())
        return adam
    if cell.rule in (APART, APART_WIDE):
        dense, apart = [p for p in params if p not in tables], [p for p in params if p in tables]
        table_group = {"params": apart, "lr": TABLE_RATE, "rule": NoClip(), "initial_accumulator_value": 1e-6}
        groups = [{"params": dense}, table_group]
        return surefoot.Adagrad(groups, cell.rate, rule=RULES[cell.rule], initial_accumulator_value=cell.start)
    if cell.rule == "naive":
        return torch.optim.Adagrad(params, cell.rate, initial_accumulator_value=cell.start)
    return surefoot.Adagrad(params, cell.rate, rule=RULES[cell.rule], initial_accumulator_value=cell.start)


# The study's models, day after day


@lru_cache(maxsize=2)
def load(name: str) -> Log:
    if name == "completejourney":
        return completejourney.load(14)
    return synthetic.make(days=20, rows_per_day=1024, drift_day=14 if name == "drift" else None)


def run_ours(cell: Cell) -> dict[str, Any]:
    """Train day after day; return the next day's scores, the mean over the last third of the days.

    ``days``: the AUC of each of them, and of the three days before.
    """
    name, model_name = cell.setup.split()
    log = load(name)
    torch.manual_seed(cell.seed)
    model = build_model(MODELS[model_name], log)
    fit_label_units(model, log)
    params = split_parameters(model)
    optimizers = [
        optimizer_of(cell, list(params.dense.values()), set()),
        torch.optim.Adagrad(params.embedding.values(), TABLE_RATE, initial_accumulator_value=1e-6),
    ]
    last = len(log.days) - 1
    window = MovingWindow(log, 512 if name == "completejourney" else 128, 3, seed=cell.seed)
    scores, today, first = list[dict[str, float]](), 0, last - last // 3
    for day, batch in window.stream(last):
        if day != today:
            if day > first - 3:
                scores.append(score_day(model, log, day))
            today = day
        take_step(model, batch, optimizers, log.schema.tasks)
    scores.append(score_day(model, log, last))
    means = {key: float(np.mean([score[key] for score in scores[3:]])) for key in scores[0]}
    return means | {"days": [score["auc"] for score in scores]}


@torch.no_grad()
def score_day(model: nn.Module, log: Log, day: int) -> dict[str, float]:
    """Return the AUC of the first judged binary task and the RMSE of the first judged regression."""
    rows = log.day(day)
    outputs = model(rows.categorical, rows.dense).nan_to_num(0.0, 0.0, 0.0)
    found = evaluate(outputs, rows.labels, log.schema.tasks, None)
    judged = [task for task in log.schema.tasks if task.judged]
    binary = next(task.name for task in judged if task.kind is TaskKind.BINARY)
    real = next(task.name for task in judged if task.kind is TaskKind.REGRESSION)
    return {"auc": float(found[f"auc/{binary}"]), "rmse": float(found[f"rmse/{real}"])}


# deepctr-torch's models, by its own fit


@lru_cache(maxsize=1)
def deepctr_data() -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return inputs and labels (click, like) of twelve days to train on and the two days after."""
    log, train = synthetic.make(days=14, rows_per_day=4096), 12
    rows, cut = log.rows, log.starts[train]
    columns = {column.name: rows.categorical[:, i].numpy() for i, column in enumerate(log.schema.categorical)}
    columns |= {name: rows.dense[:, i].numpy() for i, name in enumerate(log.schema.dense)}
    labels = rows.labels[:, :2].numpy()
    before, after = ({name: c[part] for name, c in columns.items()} for part in (slice(cut), slice(cut, None)))
    return before, labels[:cut], after, labels[cut:]


def run_theirs(cell: Cell) -> dict[str, Any]:
    """Train one epoch by deepctr-torch's own loop; return the AUC of the first task on the days after.

    ``train_auc`` is that of the last 8,192 rows that it was trained on; ``alike`` the share of a hidden layer's squared
    weights along its first singular direction, the mean over these layers: 1 where all units look at the same.
    """
    from deepctr_torch.inputs import DenseFeat, SparseFeat  # pyright: ignore[reportMissingImports]
    from deepctr_torch.models import multitask  # pyright: ignore[reportMissingImports]

    log = synthetic.make(days=1, rows_per_day=1)
    columns: list[Any] = [SparseFeat(c.name, c.rows, embedding_dim=8) for c in log.schema.categorical]
    columns += [DenseFeat(name, 1) for name in log.schema.dense]
    name, _, std = cell.setup.removeprefix("deepctr ").partition(STD)
    make: Callable[..., Any] = getattr(multitask, name)
    init_std = float(std or 1e-4)  # its default
    model = make(columns, task_types=["binary"] * 2, task_names=["click", "like"], seed=cell.seed, init_std=init_std)
    x, y, test_x, test_y = deepctr_data()
    optimizer = optimizer_of(cell, list(model.parameters()), embedding_tables(model))
    model.compile(optimizer, loss=["binary_crossentropy"] * 2)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            model.fit(dict(x), y, batch_size=256, epochs=1, verbose=0)
        except (RuntimeError, ValueError) as error:  # its loss refuses outputs that are NaN
            if "between 0 and 1" not in str(error):
                raise
            return {"auc": 0.5}
        scores = Tensor(model.predict(dict(test_x), 4096))[:, 0].nan_to_num(0.5)
        fitted = Tensor(model.predict({key: c[-8192:] for key, c in x.items()}, 4096))[:, 0].nan_to_num(0.5)
    layers = [p.detach().nan_to_num(0.0) for name, p in model.named_parameters() if "linears" in name and p.ndim == 2]
    squares = [torch.linalg.svdvals(layer).square() for layer in layers]
    return {
        "auc": float(auc(scores, Tensor(test_y[:, 0]))),
        "train_auc": float(auc(fitted, Tensor(y[-8192:, 0]))),
        "alike": float(np.mean([float(each[0] / each.sum()) for each in squares])),
    }


def run(cell: Cell) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.process_time()
    scores = run_theirs(cell) if cell.setup.startswith("deepctr") else run_ours(cell)
    return asdict(cell) | scores | {"cpu_seconds": round(time.process_time() - started, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="AUC at seven rates by rule and accumulator start")
    parser.add_argument("--out", type=Path, help="two_lines.jsonl, with --why two_lines_why.jsonl")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set-ups", nargs="+", default=[*OURS, *THEIRS], choices=[*OURS, *THEIRS])
    parser.add_argument("--show", action="store_true", help="print the tables of what has been run, run nothing")
    parser.add_argument("--why", action="store_true", help="run and print what isolates the cause of Clippy's losses")
    options = parser.parse_args()
    out = options.out or Path("two_lines_why.jsonl" if options.why else "two_lines.jsonl")
    torch.sparse.check_sparse_tensor_invariants.disable()
    if not options.show:
        installed = find_spec("deepctr_torch") is not None
        if not installed:
            print("deepctr-torch is not installed: its set-ups are left out")
        done = {Cell(**{k: row[k] for k in Cell.__dataclass_fields__}) for row in read(out)}
        with out.open("a") as file:
            for cell in cells_of_why() if options.why else cells(options.seeds, options.set_ups):
                if cell not in done and (installed or not cell.setup.startswith("deepctr")):
                    print(json.dumps(run(cell)), file=file, flush=True)
    print(f"torch {torch.__version__}, deepctr-torch 0.3.0, {platform.machine()}, one thread a run")
    print(SET_UPS)
    rows = read(out)
    if options.why:
        print(why(rows), end="\n\n")
        rows = [row for row in rows if row["setup"] in (*WIDER, STEADY)]
    print(tables(rows))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
