# pyright: reportMissingImports=false
"""Hugging Face's Trainer, which steps through accelerate."""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from clients.bed import BATCH, Attached, Client, Made, Rows, rows
from clients.ranker import Ranker, by_task, losses_of, predicted


class Trained(Trainer):
    attached: Attached | None = None
    kept: tuple[dict[str, Tensor], Tensor, Tensor] | None = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        if self.attached is not None and model.training:
            self.attached.before((inputs["ids"], inputs["dense"], inputs["labels"]))
        logits = model(inputs["ids"], inputs["dense"])
        losses = losses_of(logits, inputs["labels"])
        self.kept = losses, logits.detach(), inputs["labels"]
        loss = torch.stack([*losses.values()]).sum()
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # pyright: ignore[reportArgumentType]


class Callback(TrainerCallback):
    def __init__(self, trainer: Trained, attached: Attached) -> None:
        self.trainer, self.attached = trainer, attached
        trainer.attached = attached

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert self.trainer.kept is not None
        losses, logits, labels = self.trainer.kept
        stop = self.attached.after({t: v.detach() for t, v in losses.items()}, by_task(logits), by_task(labels))
        control.should_training_stop = control.should_training_stop or stop


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
        super().__init__(name="Hugging Face Trainer", sane=0.005, high=0.5, glue=(Callback, Trained.compute_loss))

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

    def train(self, made: Made, data: Rows, attached: Attached | None) -> None:
        trainer = self.trainer(made, data)
        if attached is not None:
            trainer.add_callback(Callback(trainer, attached))
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
        for task, loss in trainer.kept[0].items():
            self.record(made, task, loss)

    def predict(self, made: Made, data: Rows) -> Tensor:
        return predicted(made.model, data)
