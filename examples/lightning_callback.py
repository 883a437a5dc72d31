"""ClippyAdagrad and the supervisor in Lightning: the module returns its losses by task, a callback does the rest."""

import logging
import tempfile
import warnings
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import surefoot
from surefoot.integrations.lightning import SupervisorCallback


def main() -> None:
    try:
        import lightning.pytorch as lightning
    except ModuleNotFoundError:
        print("this example needs Lightning: pip install surefoot[lightning]")
        return

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.bottom = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU())
            self.click, self.sales = torch.nn.Linear(64, 1), torch.nn.Linear(64, 1)

        def training_step(self, batch, batch_idx):
            x, click, sales = batch
            h = self.bottom(x)
            outputs = {"click": self.click(h)[:, 0], "sales": self.sales(h)[:, 0]}
            losses = {
                "click": binary_cross_entropy_with_logits(outputs["click"], click),
                "sales": mse_loss(outputs["sales"], sales),
            }
            labels = {"click": click, "sales": sales}
            return {"loss": sum(losses.values()), "losses": losses, "outputs": outputs, "labels": labels}

        def configure_optimizers(self):
            return surefoot.ClippyAdagrad(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    x = torch.randn(2048, 16)
    rows = TensorDataset(x, (x[:, 0] + torch.randn(2048) > 0).float(), x[:, 1] + torch.randn(2048))
    tasks = {"click": "binary", "sales": "regression"}
    callback = SupervisorCallback(partial(surefoot.Supervisor, folder=tempfile.mkdtemp(), tasks=tasks))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(rows, batch_size=128))
    assert callback.supervisor is not None
    monitor = callback.supervisor.monitor
    assert monitor is not None
    print(f"after step {monitor.signals_step}: {callback.supervisor.close()}")
    for name in ("relative_loss/click", "relative_loss/sales", "clip_ratio/bottom.0.weight"):
        print(f"  {name} {monitor.values[name]:.3f}")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()
