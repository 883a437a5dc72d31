"""Recorded runs, whole: what benchmarks/detection_record.py has written, a branch joined to its twin."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_labels import Limits, Outcome, Probe, outcome
from detection_record import REFRESH, WINDOW_ROWS
from numpy.typing import NDArray
from torch import Tensor

from surefoot.detect.signals import Signals
from surefoot.observe.streaming_metrics import ABSENT, Kinds, clean, scores

Table = NDArray[np.float64]
SHOWN = ("auc", "auc_error", "calibration", "prediction_std_ratio")  # of the window


@dataclass(frozen=True)
class Run:
    """One run of a set-up.

    Args:
        setup: what its twin shares.
        fault: name, step, steps, harmless.
        first: the first step that is not its twin's; 0 in a twin.
        tasks, binary, layers: names, kinds of the tasks, names (the dense ones, then "embedding").
        steps: (steps, columns), see ``detection_record``.
        outputs, labels: of the batches, (steps, rows, tasks).
        probe, past, twin, served: scores of the probe.
    """

    setup: dict[str, Any]
    fault: dict[str, Any]
    first: int
    tasks: list[str]
    binary: list[bool]
    layers: list[str]
    steps: Table
    outputs: Tensor
    labels: Tensor
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

    def signals(self, step: int, *, window_from: int = 0, scored_from: int = 0) -> Signals:
        """Return what a monitor would show of a step.

        Args:
            step: any.
            window_from: the first step whose rows are in the window.
            scored_from: the first step whose scores are shown.
        """
        row, tasks, dense = self.steps[step].tolist(), len(self.tasks), self.layers[:-1]
        norms = 2 * tasks + len(dense)
        is_finite = all(
            map(math.isfinite, row[norms:-2])
        )  # else the monitor has no ratio: no step was taken, or of NaN
        return Signals(
            losses=dict(zip(self.tasks, row[:tasks], strict=True)),
            relative_losses=dict(zip(self.tasks, row[tasks : 2 * tasks], strict=True)),
            clip_ratios=dict(zip(dense, row[2 * tasks : norms], strict=True)) if is_finite else {},
            grad_norms=dict(zip(dense, row[norms:-2], strict=True)),
            **(self._scores(step, window_from) if step % REFRESH == 0 and step >= scored_from else {}),
        )

    def _scores(self, step: int, window_from: int) -> dict[str, dict[str, float]]:
        """Return AUC and its error, calibration and spread by task, over the rows from a step on."""
        first = max(step + 1 - WINDOW_ROWS // self.outputs.shape[1], window_from)
        kinds = Kinds(tuple(self.binary), torch.tensor(self.binary))
        cleaned = clean(self.outputs[first : step + 1].flatten(0, 1).T, self.labels[first : step + 1].flatten(0, 1).T)
        found = scores(cleaned, kinds)
        each = {name: zip(self.tasks, found[name].tolist(), strict=True) for name in SHOWN}
        return {f"{name}s": {task: value for task, value in of if value != ABSENT} for name, of in each.items()}


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
            arrays = {name: archive[name] for name in archive.files}
        for number, fault in enumerate(about["runs"]):
            yield _run(about, fault, number, arrays)


def _run(about: dict[str, Any], fault: dict[str, Any], number: int, arrays: dict[str, NDArray[np.float32]]) -> Run:
    first = fault["step"]

    def whole(name: str, kind: str = "") -> Table:
        return _joined(arrays[f"0/{kind or name}"][:first], arrays[f"{number}/{name}"]).astype(np.float64)

    def raw(name: str) -> Tensor:
        return torch.from_numpy(_joined(arrays[f"0/{name}"][:first], arrays[f"{number}/{name}"]))

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
        outputs=raw("outputs"),
        labels=raw("labels"),
        probe=probe(whole("probe")),
        past=probe(whole("past")),
        twin=probe(arrays["0/probe"].astype(np.float64)),
        served=probe(whole("served", "probe")) if served else None,
    )


def _joined(before: NDArray[np.float32], since: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([before, since])
