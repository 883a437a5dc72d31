# pyright: reportMissingImports=false
"""torch-rechub: a trainer that takes a loader. It has no callbacks, so surefoot comes in by hooks and by the loader."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer

from clients.bed import DENSE, FIELDS, TASKS, VALUES, Client, Made, Rows, Supervise, telling


def inputs(data: Rows) -> dict[str, Tensor]:
    ids = {f"id{i}": data.ids[:, i] for i in range(FIELDS)}
    return ids | {f"x{i}": data.dense[:, i] for i in range(DENSE)}


class Rechub(Client):
    """``MTLTrainer(model, ...).train_one_epoch(loader)``."""

    def __init__(self) -> None:
        super().__init__(name="torch-rechub MMOE", sane=0.05, high=3.0, glue=(Rechub.train, telling))

    def make(self, rate: float) -> Made:
        features: list[Any] = [SparseFeature(f"id{i}", VALUES, embed_dim=8) for i in range(FIELDS)]
        features += [DenseFeature(f"x{i}") for i in range(DENSE)]
        tower = {"dims": [16], "activation": "relu"}
        model = MMOE(features, ["classification"] * 2, 3, {"dims": [32, 16], "activation": "relu"}, [tower] * 2)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                assert module.p == 0
        trainer = MTLTrainer(model, ["classification"] * 2, torch.optim.Adagrad, {"lr": rate})
        made = Made(model, [trainer.optimizer], trainer, {})

        trainer.loss_fns = [telling(made, task) for task in TASKS]
        return made

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        if supervise is not None:
            said = {"outputs": "probabilities", "losses": "mean"}
            made.seen["supervisor"] = supervise(made.model, made.optimizers, **said)  # surefoot
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made.trainer.train_one_epoch(loader(data))

    def predict(self, made: Made, data: Rows) -> Tensor:
        with contextlib.redirect_stderr(io.StringIO()):
            return torch.tensor(made.trainer.predict(made.model, [inputs(data)]))


def loader(data: Rows) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for batch in data.batches():
        yield inputs(batch), batch.labels
