# pyright: reportMissingImports=false
"""deepctr-torch: a model with ``fit``, like Keras. No callback sees a batch, so surefoot comes in by hooks."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import MMOE, PLE, SharedBottom
from torch import Tensor

from clients.bed import BATCH, DENSE, FIELDS, TASKS, VALUES, Client, Made, Rows, Supervise, telling


def columns(data: Rows) -> dict[str, np.ndarray]:
    ids = {f"id{i}": data.ids[:, i].numpy() for i in range(FIELDS)}
    return ids | {f"x{i}": data.dense[:, i].numpy() for i in range(DENSE)}


FEATURES: list[Any] = [SparseFeat(f"id{i}", VALUES, embedding_dim=8) for i in range(FIELDS)]
FEATURES += [DenseFeat(f"x{i}", 1) for i in range(DENSE)]
SMALL = {"tower_dnn_hidden_units": (16,), "task_types": ["binary"] * 2, "task_names": list(TASKS)}
MODELS: dict[str, Any] = {
    "MMOE": lambda: MMOE(
        FEATURES, num_experts=3, expert_dnn_hidden_units=(32, 16), gate_dnn_hidden_units=(), **SMALL, init_std=0.05
    ),
    "PLE": lambda: PLE(
        FEATURES,
        shared_expert_num=1,
        specific_expert_num=1,
        num_levels=2,
        expert_dnn_hidden_units=(32, 16),
        gate_dnn_hidden_units=(),
        **SMALL,
        init_std=0.05,
    ),
    "SharedBottom": lambda: SharedBottom(FEATURES, bottom_dnn_hidden_units=(32, 16), **SMALL, init_std=0.05),
}


class DeepCtr(Client):
    """``model.compile(optimizer)``, ``model.fit(columns, labels)``."""

    def __init__(self, model: str = "MMOE") -> None:
        super().__init__(name=f"deepctr-torch {model}", sane=0.05, high=3.0, glue=(DeepCtr.train, telling))
        self._model = model

    def make(self, rate: float) -> Made:
        model = MODELS[self._model]()
        optimizer = torch.optim.Adagrad(model.parameters(), lr=rate)
        made = Made(model, [optimizer], None, {})

        model.compile(optimizer, loss=["binary_crossentropy"] * 2)
        model.loss_func = [telling(made, task) for task in TASKS]
        return made

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        model: Any = made.model
        if supervise is not None:
            said = {"outputs": "probabilities", "losses": "sum"}
            made.seen["supervisor"] = supervise(model, made.optimizers, **said)  # surefoot
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model.fit(columns(data), data.labels.numpy(), batch_size=BATCH, epochs=1, shuffle=False, verbose=0)

    def predict(self, made: Made, data: Rows) -> Tensor:
        model: Any = made.model
        return torch.from_numpy(model.predict(columns(data), 1024))
