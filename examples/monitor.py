"""A plain loop that is watched: a feature arrives a thousand times too large, and the monitor says where it hit."""

import tempfile
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

import surefoot

FEATURES = ["price", "age", "hour", "clicks_7d"]


def losses_of(model, batch):
    x, click, sales = batch
    h = model["bottom"](x)
    return {
        "click": binary_cross_entropy_with_logits(model["click"](h)[:, 0], click),
        "sales": mse_loss(model["sales"](h)[:, 0], sales),
    }


def main() -> None:
    torch.manual_seed(0)
    bottom = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU())
    model = torch.nn.ModuleDict({"bottom": bottom, "click": torch.nn.Linear(64, 1), "sales": torch.nn.Linear(64, 1)})
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05, initial_accumulator_value=0.1)

    with tempfile.TemporaryDirectory() as folder:
        monitor = surefoot.Monitor(model, optimizer, folder=folder, every=20)
        batch, alarm = None, None
        for step in range(300):
            x = torch.randn(256, 4)
            if step == 200:
                x[:, 2] *= 1000
            before, batch = batch, (x, (x[:, 0] > 0).float(), x[:, 1] + 0.1 * torch.randn(256))
            losses = losses_of(model, batch)
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            optimizer.step()
            alarm = monitor.step(losses)  # tells of the step before
            if alarm:
                print(f"step {alarm.step}: {alarm.reason}\n")
                print(
                    surefoot.attribute(
                        bottom, before, lambda _, batch: losses_of(model, batch), names={"input": FEATURES}
                    )
                )
                break
        print(f"\nverdict: {monitor.close()}; written: {sorted(p.name for p in Path(folder).iterdir())}")


if __name__ == "__main__":
    main()
