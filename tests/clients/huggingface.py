# pyright: reportMissingImports=false
"""Hugging Face's Trainer, which steps through accelerate."""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from clients.bed import BATCH, Client, Made, Rows, Supervise, rows
from clients.ranker import Ranker, by_task, losses_of, predicted
from surefoot.integrations.huggingface import SupervisorCallback


class Trained(Trainer):
    watch: SupervisorCallback | None = None
    kept: dict[str, Tensor] | None = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        logits = model(inputs["ids"], inputs["dense"])
        losses = losses_of(logits, inputs["labels"])
        self.kept = losses
        batch, labels = (inputs["ids"], inputs["dense"], inputs["labels"]), by_task(inputs["labels"])
        if self.watch is not None:
            self.watch.report(losses, outputs=by_task(logits), labels=labels, batch=batch)  # surefoot
        loss = torch.stack([*losses.values()]).sum()
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # pyright: ignore[reportArgumentType]


class Table(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, data: Rows) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return dict(zip(Rows._fields, (part[i] for part in self.data), strict=True))


class HuggingFace(Client):
    """``Trainer(model, args, train_dataset=..., optimizers=(optimizer, None)).train()``."""

    def __init__(self) -> None:
        super().__init__(
            name="Hugging Face Trainer", sane=0.005, high=0.5, glue=(HuggingFace.train, Trained.compute_loss)
        )

    def make(self, rate: float) -> Made:
        model = Ranker()
        optimizer = Adam(model.parameters(), lr=rate)
        made = Made(model, [optimizer], None, {"rate": rate})
        made.seen["trainer"] = self.trainer(made, rows(BATCH, 0))
        return made

    def trainer(self, made: Made, data: Rows) -> Trained:
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        return Trained(made.model, arguments, train_dataset=Table(data), optimizers=(made.optimizers[0], None))  # pyright: ignore[reportArgumentType]

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        trainer = self.trainer(made, data)
        if supervise is not None:
            trainer.watch = SupervisorCallback(supervise)  # surefoot
            trainer.add_callback(trainer.watch)  # surefoot
        trainer.train()

    def again(self, made: Made, data: Rows) -> None:
        """Take the step by hand: ``train`` would set the random seed first, and drop the gradients last."""
        trainer = made.seen["trainer"]
        made.model.train()
        made.model.zero_grad()
        trainer.compute_loss(made.model, data._asdict()).backward()
        torch.nn.utils.clip_grad_norm_(made.model.parameters(), trainer.args.max_grad_norm)
        made.optimizers[0].step()
        for group in made.optimizers[0].param_groups:
            group["lr"] = made.seen["rate"]  # as the constant schedule does
        assert trainer.kept is not None
        for task, loss in trainer.kept.items():
            self.record(made, task, loss)

    def predict(self, made: Made, data: Rows) -> Tensor:
        return predicted(made.model, data)
