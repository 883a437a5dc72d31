"""Which runs benchmarks/detection.py trains: set-ups and their faults, all from one seed."""

from collections.abc import Callable
from dataclasses import replace

import faults
import numpy as np
from detection_record import DRIFT_STEP, Setup
from faults import Fault
from numpy.random import Generator

from surefoot.lab.data.schema import Schema

SETUPS, FAULTS_EACH = 72, 6
UNHARMED = 24  # further set-ups without any fault, for healthy steps
FRESH = 24  # further set-ups that nothing was ever chosen by: by turns with a drift, of rare positives, of binary tasks
_SEED = 2302
_HIDDEN = [(64,), (64, 64), (128, 128), (64, 64, 64), (64, 64, 64, 64)]
_RATES = [0.02, 0.05, 0.1, 0.2]
_EARLY_SHARE = 0.15  # of the faults, between the steps 20 and 95; the others lie between 200 and 440

Make = Callable[[Generator, int, Schema], Fault]


def _between(draw: Generator, low: float, high: float) -> float:
    """Return a number between two, uniform in its logarithm."""
    return float(np.exp(draw.uniform(np.log(low), np.log(high))))


def _whole(draw: Generator, low: int, high: int) -> int:
    return int(draw.integers(low, high + 1))


def _row(draw: Generator, schema: Schema) -> int:
    """Return a row of the embedding table from one of the columns of few ids, which many rows share."""
    sizes = [column.rows for column in schema.categorical]
    small = [i for i, rows in enumerate(sizes) if rows <= 50]
    column = small[draw.integers(len(small))]
    return sum(sizes[:column]) + int(draw.integers(sizes[column]))


def _length(draw: Generator) -> int | None:
    return [20, 80, None][draw.integers(3)]


# How often each kind is in the deck that is dealt to the set-ups, and how strong it is.
KINDS: list[tuple[int, Make]] = [
    (16, lambda draw, step, _: faults.nan_batch(step)),
    (10, lambda draw, step, _: faults.inf_batch(step)),
    (28, lambda draw, step, schema: faults.flipped_labels(step, schema)),
    (36, lambda draw, step, _: faults.scaled_feature(step, steps=_whole(draw, 1, 40))),
    (44, lambda draw, step, schema: faults.drift_day(step, schema, factor=_between(draw, 3, 1e4))),
    (30, lambda draw, step, schema: faults.shifted_day(step, schema, by=_between(draw, 0.1, 3))),
    (24, lambda draw, step, schema: faults.damaged_row(step, row=_row(draw, schema), size=_between(draw, 10, 1e6))),
    (60, lambda draw, step, _: faults.rate_spike(step, factor=_between(draw, 10, 3000), steps=_whole(draw, 1, 10))),
    (24, lambda draw, step, schema: faults.heavy_task(step, task=int(draw.integers(len(schema.tasks))))),
    (30, lambda draw, step, _: faults.shuffled_ids(step, steps=_length(draw))),
    (30, lambda draw, step, _: faults.zeroed_features(step, steps=_length(draw))),
    (24, lambda draw, step, _: faults.lost_embeddings(step)),
    (20, lambda draw, step, _: faults.lost_accumulators(step)),
    (70, lambda draw, step, _: faults.rate_ramp(step, factor=_between(draw, 10, 3000), steps=_whole(draw, 40, 160))),
    (70, lambda draw, step, _: faults.rate_step(step, factor=_between(draw, 3, 1000))),
    (40, lambda draw, step, _: faults.rate_step(0, factor=_between(draw, 8, 300))),
    (20, lambda draw, step, _: faults.lower_rate(step, factor=_between(draw, 0.05, 0.5))),
    (20, lambda draw, step, _: faults.warm_restart(step)),
    (24, lambda draw, step, _: faults.higher_rate(step, factor=_between(draw, 1.2, 1.5))),
]  # fmt: skip


def setups() -> list[Setup]:
    """Return all set-ups; the logs, and within each the seeds, take turns."""
    return _setups(0, SETUPS, stream=0) + _setups(SETUPS, UNHARMED, stream=3) + _fresh()


def _fresh() -> list[Setup]:
    draw = np.random.default_rng([_SEED, 8])
    plain = _setups(SETUPS + UNHARMED, FRESH, stream=7)
    kinds: list[Callable[[Setup], Setup]] = [
        lambda setup: replace(setup, drift=_between(draw, 3, 100)),
        lambda setup: replace(setup, rare=True),
        lambda setup: replace(setup, binary_only=True),
    ]
    return [kinds[i % 3](setup) for i, setup in enumerate(plain)]


def _setups(first: int, count: int, stream: int) -> list[Setup]:
    draw = np.random.default_rng([_SEED, stream])
    rates = [_RATES[draw.integers(len(_RATES))] for _ in range(count)]
    return [
        Setup(
            index=i,
            data=("synthetic", "completejourney")[i % 2],
            narrow=bool(draw.random() < 0.5),
            seed=i,
            hidden=_HIDDEN[draw.integers(len(_HIDDEN))],
            cross_layers=int(draw.random() < 0.25),
            binary_only=bool(draw.random() < 0.4),
            rate=rate,
            warmup_steps=60 if rate >= 0.1 else int(draw.choice([0, 60])),  # the twin is to be safe
            clippy=bool(draw.random() < 0.15),
            skips=bool(draw.random() < 0.5),
        )
        for i, rate in enumerate(rates, first)
    ]


def faults_of(setup: Setup, schema: Schema) -> list[Fault]:
    """Return the faults dealt to a set-up; none to the unharmed ones.

    In a fresh one with a drift they come 8 to 40 steps after it, as second troubles; one of rare positives has such as
    leave no doubt of the outcome, which few positives cannot tell.
    """
    if setup.index >= SETUPS + UNHARMED:
        return _fresh_faults(setup, schema)
    if setup.index >= SETUPS:
        return []
    deck = [make for count, make in KINDS for _ in range(count)]
    np.random.default_rng([_SEED, 1]).shuffle(deck)  # pyright: ignore[reportArgumentType]
    draw = np.random.default_rng([_SEED, 2, setup.index])
    dealt = deck[setup.index * FAULTS_EACH : (setup.index + 1) * FAULTS_EACH]
    found = []
    for make in dealt:
        early = draw.random() < _EARLY_SHARE
        step = int(draw.integers(20, 96) if early else draw.integers(200, 441))
        found.append(make(draw, step, schema))
    return found


def _fresh_faults(setup: Setup, schema: Schema) -> list[Fault]:
    draw = np.random.default_rng([_SEED, 9, setup.index])
    clear: list[Make] = [
        lambda draw, step, _: faults.rate_step(step, factor=_between(draw, 100, 1000)),
        lambda draw, step, _: faults.rate_spike(step, factor=_between(draw, 100, 3000), steps=_whole(draw, 3, 10)),
    ]
    second: list[Make] = [
        lambda draw, step, _: faults.rate_spike(step, factor=_between(draw, 20, 300), steps=_whole(draw, 2, 10)),
        lambda draw, step, _: faults.rate_step(step, factor=_between(draw, 10, 300)),
        lambda draw, step, _: faults.scaled_feature(step, column=len(schema.dense) - 1, steps=_whole(draw, 3, 20)),
        lambda draw, step, schema: faults.heavy_task(step, task=int(draw.integers(len(schema.tasks)))),
    ]
    if setup.drift is not None:
        return [make(draw, DRIFT_STEP + _whole(draw, 8, 40), schema) for make in second]
    if setup.rare:
        return [make(draw, _whole(draw, 200, 440), schema) for make in clear]
    deck = [make for count, make in KINDS for _ in range(count)]
    return [deck[draw.integers(len(deck))](draw, _whole(draw, 200, 440), schema) for _ in range(4)]
