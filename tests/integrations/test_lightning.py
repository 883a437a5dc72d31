"""The callback in a real trainer."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import surefoot
from surefoot.integrations.lightning import MonitorCallback, SupervisorCallback
from surefoot.observe.monitor import Monitor
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.optim.guard import guard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # the same
STEPS = 8


class Module(lightning.LightningModule):
    def __init__(self, spoil: int | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.spoil = spoil

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        output = self.linear(x)[:, 0]
        if batch_idx == self.spoil:
            output = output * torch.nan
        loss = mse_loss(output, y)
        return {"loss": loss, "losses": {"sales": loss}, "outputs": {"sales": output}, "labels": {"sales": y}}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return ClippyAdagrad(self.parameters(), lr=0.1)


class Silent(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"]


def fit(module: Module, callback: Any, tmp_path: Path, resume: Path | None = None, **options: Any) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    x = torch.randn(256 * STEPS, 4)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path} | dict.fromkeys(quiet, False)
    trainer = lightning.Trainer(callbacks=[callback], **(settings | options))
    trainer.fit(module, DataLoader(TensorDataset(x, x[:, 0]), batch_size=256), ckpt_path=resume)
    return trainer


def callback(seen: dict[int, dict[str, float]], **options: Any) -> MonitorCallback:
    def make(module: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> Monitor:
        keep = [lambda step, values: seen.update({step: dict(values)})]
        return Monitor(module, optimizers, tasks={"sales": "regression"}, sinks=keep)

    return MonitorCallback(make, **options)


def test_each_step_is_seen_once(tmp_path: Path) -> None:
    seen: dict[int, dict[str, float]] = {}
    fit(Module(), callback(seen), tmp_path)
    assert list(seen) == list(range(STEPS))
    assert {"loss/sales", "relative_loss/sales", "clip_ratio/linear.weight", "l2_norm/grad/linear.bias"} <= set(seen[3])
    assert all(row["l2_norm/grad/linear.weight"] > 0 for row in seen.values())


def test_accumulated_gradients_are_one_step(tmp_path: Path) -> None:
    seen: dict[int, dict[str, float]] = {}
    fit(Module(), callback(seen), tmp_path, accumulate_grad_batches=4)
    assert list(seen) == [0, 1]


def test_an_alarm_reaches_the_trainer(tmp_path: Path) -> None:
    alarms = []

    def stop(alarm: Any, trainer: Any) -> None:
        alarms.append(alarm)
        trainer.should_stop = True

    seen: dict[int, dict[str, float]] = {}
    fit(Module(spoil=3), callback(seen, on_alarm=stop), tmp_path)
    assert alarms[0].step == 3
    assert max(seen) == 4  # read one step late, and one more at the end


def test_an_alarm_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Module(spoil=3), callback({}), tmp_path)
    assert any(record.message.startswith("step 3: ") for record in caplog.records)


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    first = fit(Module(), callback({}), tmp_path)
    first.save_checkpoint(tmp_path / "a.ckpt")
    seen: dict[int, dict[str, float]] = {}
    fit(Module(), callback(seen), tmp_path, resume=tmp_path / "a.ckpt", max_epochs=2)
    assert list(seen) == list(range(STEPS, 2 * STEPS))


def test_a_step_that_returns_no_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="training_step returned dict; expected a dictionary that has 'losses'"):
        fit(Silent(), callback({}), tmp_path)


def test_without_lightning_it_says_so_when_a_callback_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    import surefoot.integrations.lightning as module

    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    importlib.reload(module)
    try:
        with pytest.raises(ModuleNotFoundError, match="lightning"):
            module.MonitorCallback(lambda module, optimizers: Monitor(module, optimizers))
    finally:
        monkeypatch.undo()
        importlib.reload(module)


class Manual(lightning.LightningModule):
    """Two optimizers under a guard, stepped by hand: Lightning gives each a closure that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.linears = torch.nn.ModuleList([torch.nn.Linear(4, 1) for _ in range(2)])
        self.moved: list[list[bool]] = []

    def configure_optimizers(self) -> Any:
        several = [
            ClippyAdagrad(self.linears[0].parameters(), lr=0.1),
            torch.optim.SGD(self.linears[1].parameters(), 0.1),
        ]
        guard(*several)
        return several

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        losses = [mse_loss(linear(x)[:, 0], y) for linear in self.linears]
        weights = [linear.get_parameter("weight") for linear in self.linears]
        before = [weight.detach().clone() for weight in weights]
        self.manual_backward(losses[0] + losses[1] * (torch.nan if batch_idx == 2 else 1.0))
        for optimizer in self.optimizers():  # pyright: ignore[reportGeneralTypeIssues]
            optimizer.step()
            optimizer.zero_grad()
        self.moved.append([not weight.equal(old) for weight, old in zip(weights, before, strict=True)])


def test_a_guard_holds_under_manual_optimization(tmp_path: Path) -> None:
    module = Manual()
    x = torch.randn(64, 4)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path} | dict.fromkeys(quiet, False)
    lightning.Trainer(**settings).fit(module, DataLoader(TensorDataset(x, x[:, 0]), batch_size=16))
    assert module.moved == [[True, True], [True, True], [False, False], [True, True]]


# The supervisor


def supervisor(folder: Path, **options: Any) -> SupervisorCallback:
    def make(module: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> surefoot.Supervisor:
        return surefoot.Supervisor(module, optimizers, folder, tasks={"sales": "regression"}, **options)

    return SupervisorCallback(make)


def replayed(path: Path) -> surefoot.Replay:
    """Run a capsule of plain or accumulated batches again by hand."""
    module = Module()
    optimizer = module.configure_optimizers()

    def step(batches: Any) -> dict[str, torch.Tensor]:
        batches = batches if isinstance(batches[0], list) else [batches]
        optimizer.zero_grad()
        shown: dict[str, Any] = {}
        for batch in batches:
            shown = module.training_step(batch, 0)
            (shown["loss"] / len(batches)).backward()
        optimizer.step()
        return {task: loss.detach() for task, loss in shown["losses"].items()}

    training = surefoot.Training(module, [optimizer], step)
    return surefoot.replay(surefoot.read_capsule(path), surefoot.under_recovery(training))


@pytest.mark.parametrize("parts", [1, 4])
def test_the_supervisor_sees_each_step_and_its_capsule_runs_again(parts: int, tmp_path: Path) -> None:
    watch = supervisor(tmp_path / "run")
    fit(Module(), watch, tmp_path, accumulate_grad_batches=parts)
    assert watch.supervisor is not None
    assert watch.supervisor.steps == STEPS // parts
    assert watch.supervisor.ring is not None
    path = watch.supervisor.ring.write(tmp_path)
    assert path is not None
    capsule = surefoot.read_capsule(path)
    assert len(capsule.steps) == STEPS // parts
    assert len(capsule.steps[0].batch) == (2 if parts == 1 else parts)
    assert replayed(path).difference is None


def test_the_supervisor_ends_training(tmp_path: Path) -> None:
    watch = supervisor(tmp_path / "run", recovery=surefoot.RecoveryPolicy(skip=False, slow=None, roll_back=None))
    fit(Module(spoil=1), watch, tmp_path)
    assert watch.supervisor is not None
    assert watch.supervisor.last_alarm is not None
    assert watch.supervisor.last_alarm.step == 1
    assert watch.supervisor.action is surefoot.Action.STOP
    assert watch.supervisor.steps < STEPS


def test_the_supervisor_s_state_is_in_lightning_s_checkpoints(tmp_path: Path) -> None:
    trainer = fit(Module(), supervisor(tmp_path / "run"), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = supervisor(tmp_path / "run")
    fit(Module(), again, tmp_path, resume=tmp_path / "a.ckpt", max_epochs=2)
    assert again.supervisor is not None
    assert again.supervisor.steps == 2 * STEPS


def test_an_exception_in_a_trainer_leaves_a_capsule(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            if batch_idx == 5:
                raise ZeroDivisionError("a bug")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError):
        fit(Failing(), supervisor(tmp_path / "run"), tmp_path)
    (path,) = (tmp_path / "run" / "capsules").iterdir()
    assert replayed(path).difference is None
