"""What a loop has reported, in one or more calls, of the step that has not ended yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surefoot.capsule.snapshot import Plain


@dataclass
class ReportedStep:
    """What has been told of the step that has not ended yet."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    parts: list[tuple[Plain, Tensor | None]] = field(default_factory=list)  # of an accumulated batch: batch and rows
    reported: bool = False
    _told: set[str] = field(default_factory=set)  # tasks of the last part

    def add(
        self,
        losses: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor] | None,
        labels: Mapping[str, Tensor] | None,
        batch: Plain,
        rows: Tensor | None,
    ) -> None:
        """Take in what is told of one batch, of all tasks or of some."""
        if not self.parts or self._told & losses.keys():
            self.parts.append((None, None))
            self._told = set()
        self._told |= losses.keys()
        for mine, theirs in ((self.losses, losses), (self.outputs, outputs), (self.labels, labels)):
            mine |= {task: value.detach() for task, value in (theirs or {}).items()}
        before = self.parts[-1]
        self.parts[-1] = before[0] if batch is None else batch, before[1] if rows is None else rows

    @property
    def batch(self) -> Plain:
        """The batch; all of them in a list, if it came in parts."""
        batches = [batch for batch, _ in self.parts if batch is not None]
        if not batches or len(batches) < len(self.parts):
            return None
        return batches[0] if len(batches) == 1 else batches

    @property
    def rows(self) -> Tensor | None:
        """The row numbers, (rows,), of all parts."""
        rows = [each for _, each in self.parts if each is not None]
        return torch.cat(rows) if rows and len(rows) == len(self.parts) else None
