# pyright: reportMissingImports=false
"""TorchRec's train pipeline, with its keyed and combined optimizers, and with tables that step within backward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from clients.bed import BATCH, DENSE, FIELDS, TASKS, VALUES, Client, Made, Rows, Supervise
from clients.ranker import by_task, losses_of

FEATURES = [f"id{i}" for i in range(FIELDS)]


@dataclass
class Batch(Pipelineable):
    """What the pipeline moves to its device."""

    ids: KeyedJaggedTensor
    dense: Tensor
    labels: Tensor
    rows: Rows

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self

    def record_stream(self, stream: Any) -> None: ...

    @classmethod
    def of(cls, rows: Rows) -> "Batch":
        lengths = torch.ones(FIELDS * len(rows.ids), dtype=torch.int64)
        keyed = KeyedJaggedTensor.from_lengths_sync(FEATURES, rows.ids.T.reshape(-1), lengths)
        return cls(keyed, rows.dense, rows.labels, rows)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.supervisor: Any = None
        tables = [
            EmbeddingBagConfig(name=f"t{i}", embedding_dim=8, num_embeddings=VALUES, feature_names=[FEATURES[i]])
            for i in range(FIELDS)
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
        self.bottom = nn.Sequential(nn.Linear(8 * FIELDS + DENSE, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in TASKS)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
        h = self.bottom(torch.cat([self.tables(batch.ids).values(), batch.dense], 1))
        logits = torch.cat([head(h) for head in self.heads], 1)
        losses = losses_of(logits, batch.labels)
        if self.supervisor is not None:
            shown = {"outputs": by_task(logits), "labels": by_task(batch.labels)}  # surefoot
            self.supervisor.report(losses, **shown, batch=tuple(batch.rows))  # surefoot
        return torch.stack([*losses.values()]).sum(), (losses, logits)


class TorchRec(Client):
    """``TrainPipelineBase(model, optimizer, device).progress(batches)``."""

    def __init__(self, kind: str) -> None:
        super().__init__(name=f"TorchRec, {kind}", sane=0.05, high=3.0, glue=(TorchRec.train, Model.forward))
        self._kind = kind

    def make(self, rate: float) -> Made:
        model = Model()
        dense = {name: p for name, p in model.named_parameters() if not name.startswith("tables")}
        tables = {name: p for name, p in model.named_parameters() if name.startswith("tables")}
        optimizer: Optimizer
        if self._kind == "keyed":
            optimizer = keyed(dense | tables, rate)
        elif self._kind == "combined":
            optimizer = CombinedOptimizer([("dense", keyed(dense, rate)), ("tables", keyed(tables, rate))])
        else:
            apply_optimizer_in_backward(Adagrad, tables.values(), {"lr": 0.05})
            optimizer = keyed(dense, rate)
        return Made(model, [optimizer], None, {})

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        model: Any = made.model
        model.train()
        pipeline = TrainPipelineBase(made.model, made.optimizers[0], torch.device("cpu"))
        batches = iter([Batch.of(rows) for rows in data.batches()])
        if supervise is not None:
            model.supervisor = supervise(model, made.optimizers)  # surefoot
        for _ in range(-(-len(data.ids) // BATCH)):
            losses, _ = pipeline.progress(batches)
            for task, loss in losses.items():
                self.record(made, task, loss)

    def predict(self, made: Made, data: Rows) -> Tensor:
        made.model.eval()
        with torch.no_grad():
            return made.model(Batch.of(data))[1][1]


def keyed(params: Mapping[str, Tensor], rate: float) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(dict(params), lambda ps: Adagrad(ps, lr=rate))


KEYED, COMBINED, IN_BACKWARD = TorchRec("keyed"), TorchRec("combined"), TorchRec("in backward")
ALL = (IN_BACKWARD, COMBINED, KEYED)
