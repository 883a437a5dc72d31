"""The callback in Hugging Face's own trainer."""

import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

import surefoot
from surefoot.integrations.huggingface import SupervisorCallback

if importlib.util.find_spec("accelerate") is None:
    pytest.skip("accelerate is not installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # the same
STEPS = 24


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, spoil: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(STEPS * 32, 4, generator=draw)
        self.y = self.x.sum(1)
        if spoil is not None:
            self.x[spoil * 32] = math.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[i], "y": self.y[i]}


def trainer(watch: SupervisorCallback, rows: Rows, folder: Path, **options: Any) -> Any:
    class Trainer(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            output = model(inputs["x"]).squeeze(1)
            loss = mse_loss(output, inputs["y"])
            watch.report({"y": loss}, outputs={"y": output}, labels={"y": inputs["y"]}, batch=dict(inputs))
            return (loss, {"output": output}) if return_outputs else loss

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    settings = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": 32,
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["y"],
    }
    model = torch.nn.Sequential(torch.nn.Linear(4, 1))
    arguments = transformers.TrainingArguments(**settings | options)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[watch])


def made(folder: Path, kept: list[surefoot.Supervisor], **options: Any) -> SupervisorCallback:
    def make(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> surefoot.Supervisor:
        kept.append(surefoot.Supervisor(model, optimizers, folder / "run", tasks={"y": "regression"}, **options))
        return kept[0]

    return SupervisorCallback(make)


@pytest.mark.parametrize("parts", [1, 3])
def test_each_step_is_seen_and_evaluation_is_not(parts: int, tmp_path: Path) -> None:
    kept: list[surefoot.Supervisor] = []
    options = {"gradient_accumulation_steps": parts, "eval_strategy": "steps", "eval_steps": 4}
    trainer(made(tmp_path, kept), Rows(), tmp_path, **options).train()
    assert kept[0].steps == STEPS // parts
    ring = kept[0].ring
    assert ring is not None
    path = ring.write(tmp_path)
    assert path is not None
    batch = surefoot.read_capsule(path).steps[0].batch
    assert isinstance(batch, dict) if parts == 1 else len(batch) == parts


def test_a_bad_batch_is_told_and_a_stop_ends_training(tmp_path: Path) -> None:
    kept: list[surefoot.Supervisor] = []
    nothing_helps = surefoot.RecoveryPolicy(skip=False, slow=None, roll_back=None)
    done = trainer(made(tmp_path, kept, recovery=nothing_helps), Rows(spoil=6), tmp_path)
    done.train()
    assert kept[0].last_alarm is not None
    assert kept[0].last_alarm.step == 6
    assert kept[0].action is surefoot.Action.STOP
    assert 7 < done.state.global_step < STEPS
