"""Recorded runs, whole: what benchmarks/detection_record.py has written, a branch joined to its twin."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detection_labels import Limits, Outcome, Probe, outcome
from detection_record import SCORES
from numpy.typing import NDArray

from surefoot.monitor.signals import Signals
from surefoot.monitor.window import ABSENT

Table = NDArray[np.float64]
RAW = ("outputs", "labels")  # in the files for other windows; not read here


@dataclass(frozen=True)
class Run:
    """One run of a set-up.

    Args:
        setup: what its twin shares.
        fault: name, step, steps, harmless.
        first: the first step that is not its twin's; 0 in a twin.
        tasks, binary, layers: names, kinds of the tasks, names (the dense ones, then "embedding").
        steps: (steps, columns), see ``detection_record``.
        window: (steps, 3 * tasks) likewise.
        probe, past, twin, served: scores of the probe.
    """

    setup: dict[str, Any]
    fault: dict[str, Any]
    first: int
    tasks: list[str]
    binary: list[bool]
    layers: list[str]
    steps: Table
    window: Table
    probe: Probe
    past: Probe
    twin: Probe
    served: Probe | None

    @property
    def name(self) -> str:
        return f"{self.setup['index']:03d}/{self.fault['name']}@{self.fault['step']}"

    @property
    def is_twin(self) -> bool:
        return self.fault["name"] == "none"

    @property
    def loss(self) -> Table:
        """The summed loss that was trained on, (steps,)."""
        return self.steps[:, : len(self.tasks)].sum(1)

    @property
    def norm(self) -> Table:
        """The norm of all gradients, (steps,)."""
        return np.sqrt(np.square(self.steps[:, -1 - len(self.layers) : -1]).sum(1))

    def outcome(self, limits: Limits = Limits()) -> Outcome:
        """Return what became of it."""
        if self.is_twin:
            return Outcome("healthy")
        for_good = self.fault["steps"] is None
        return outcome(
            self.probe, self.twin, self.past, start=self.first, served=self.served, for_good=for_good, limits=limits
        )

    def signals(self) -> Iterator[Signals]:
        """Yield what a monitor would have shown at each step."""
        tasks, dense = len(self.tasks), self.layers[:-1]
        for step, row in enumerate(self.steps.tolist()):
            norms = 2 * tasks + len(dense)
            # a monitor has no ratio of a step whose gradients are not finite: none is taken of it
            ratios = row[2 * tasks : norms] if all(map(math.isfinite, row[norms:-2])) else []
            yield Signals(
                losses=dict(zip(self.tasks, row[:tasks], strict=True)),
                relative_losses=dict(zip(self.tasks, row[tasks : 2 * tasks], strict=True)),
                clip_ratios=dict(zip(dense, ratios, strict=True)) if ratios else {},
                grad_norms=dict(zip(dense, row[norms:-2], strict=True)),
                **self._windowed(step),
            )

    def _windowed(self, step: int) -> dict[str, dict[str, float]]:
        """Return AUC, calibration and spread by task, on a step on which they were looked at."""
        row, tasks = self.window[step].tolist(), len(self.tasks)
        each = (zip(self.tasks, row[i * tasks : (i + 1) * tasks], strict=True) for i in range(len(SCORES)))
        return {
            f"{name}s": {t: v for t, v in of.items() if v != ABSENT}
            for name, of in zip(SCORES, map(dict, each), strict=True)
        }


def load(folder: Path, wanted: Callable[[int], bool] = lambda setup: True) -> Iterator[Run]:
    """Yield the recorded runs of the wanted set-ups, set-up by set-up, the twin first.

    Raises:
        SystemExit: if there are none.
    """
    files = sorted(folder.glob("[0-9]*.json"))
    if not files:
        raise SystemExit(f"{folder} has no records; run: python benchmarks/detection.py record")
    for path in files:
        if not wanted(int(path.stem)):
            continue
        about = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as archive:
            arrays = {name: archive[name].astype(np.float64) for name in archive.files if name.split("/")[1] not in RAW}
        for number, fault in enumerate(about["runs"]):
            yield _run(about, fault, number, arrays)


def _run(about: dict[str, Any], fault: dict[str, Any], number: int, arrays: dict[str, Table]) -> Run:
    first = fault["step"]

    def whole(name: str, kind: str = "") -> Table:
        return np.concatenate([arrays[f"0/{kind or name}"][:first], arrays[f"{number}/{name}"]])

    binary = [i for i, is_binary in enumerate(about["binary"]) if is_binary]
    tasks = len(about["tasks"])

    def probe(table: Table) -> Probe:
        return Probe(table[:, binary], table[:, tasks:])

    served = f"{number}/served" in arrays
    return Run(
        setup=about["setup"],
        fault=fault,
        first=first,
        tasks=about["tasks"],
        binary=about["binary"],
        layers=about["layers"],
        steps=whole("steps"),
        window=whole("window"),
        probe=probe(whole("probe")),
        past=probe(whole("past")),
        twin=probe(arrays["0/probe"]),
        served=probe(whole("served", "probe")) if served else None,
    )
