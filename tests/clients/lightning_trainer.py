# pyright: reportMissingImports=false
"""Lightning: automatic optimization, and manual with one optimizer and with two."""

import logging
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer

from clients.bed import BATCH, Client, Made, Rows, Supervise
from clients.ranker import Ranker, by_task, losses_of, predicted
from surefoot.integrations.lightning import SupervisorCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    def __init__(self, rate: float, optimizers: int, *, automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.ranker = Ranker()
        dense = [*self.ranker.bottom.parameters(), *self.ranker.heads.parameters()]
        tables = [*self.ranker.tables.parameters()]
        groups = [dense, tables] if optimizers == 2 else [dense + tables]
        self.made: list[Optimizer] = [Adagrad(group, lr=rate) for group in groups]

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.ranker(ids, dense)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        ids, dense, labels = batch
        logits = self(ids, dense)
        losses = losses_of(logits, labels)
        loss = torch.stack([*losses.values()]).sum()
        if not self.automatic_optimization:
            several: Any = self.optimizers(use_pl_optimizer=True)
            several = several if isinstance(several, list) else [several]
            for optimizer in several:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in several:
                optimizer.step()
        kept = {task: value.detach() for task, value in losses.items()}
        return {"loss": loss, "losses": kept, "outputs": by_task(logits.detach()), "labels": by_task(labels)}

    def configure_optimizers(self) -> list[Optimizer]:
        return self.made


class Keep(lightning.Callback):
    """Keeps the losses of a step for the replay of a capsule."""

    def __init__(self, client: Client, made: Made) -> None:
        self.client, self.made = client, made

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for task, loss in outputs["losses"].items():
            self.client.record(self.made, task, loss)


class Loader:
    """As torch's, without the random number that its iterator draws: a capsule's steps are trained on one by one."""

    def __init__(self, data: Rows) -> None:
        self.data = data

    def __len__(self) -> int:
        return -(-len(self.data.ids) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (tuple(batch) for batch in self.data.batches())


class Lightning(Client):
    """``Trainer(...).fit(module, loader)``."""

    def __init__(self, optimizers: int, *, automatic: bool) -> None:
        kind = "automatic" if automatic else f"manual, {optimizers} optimizer{'s' * (optimizers > 1)}"
        super().__init__(name=f"Lightning, {kind}", sane=0.05, high=3.0, glue=(Lightning.train,))
        self._optimizers, self._automatic = optimizers, automatic

    def make(self, rate: float) -> Made:
        module = Module(rate, self._optimizers, automatic=self._automatic)
        return Made(module, module.made, None, {})

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        callbacks: list[lightning.Callback] = [Keep(self, made)]
        if supervise is not None:
            callbacks += [SupervisorCallback(supervise)]  # surefoot
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, barebones=False, **quiet)
        trainer.fit(made.model, Loader(data))  # pyright: ignore[reportArgumentType]

    def again(self, made: Made, data: Rows) -> None:
        made.model.train()
        self.train(made, data, None)

    def predict(self, made: Made, data: Rows) -> Tensor:
        return predicted(made.model, data)


AUTOMATIC = Lightning(1, automatic=True)
MANUAL = Lightning(1, automatic=False)
TWO = Lightning(2, automatic=False)
