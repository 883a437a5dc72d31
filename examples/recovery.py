"""A plain loop that survives: some batches have wrong labels, the run rolls back, waits, and goes on by itself.

The five lines that were added to the loop end in ``# surefoot``.
"""

import tempfile
from pathlib import Path

import torch

import surefoot


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    truth = torch.randn(16)
    folder = Path(tempfile.mkdtemp())

    with surefoot.Supervisor(model, optimizer, folder, tasks={"click": "binary"}) as supervisor:  # surefoot
        for step in range(300):
            x = torch.randn(256, 16)
            clicks = (x @ truth + torch.randn(256) > 0).float()
            if 200 <= step < 220:
                clicks = 1 - clicks  # a broken pipeline, for twenty batches
            logits = model(x).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, clicks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown = {"outputs": {"click": logits}, "labels": {"click": clicks}, "batch": (x, clicks)}  # surefoot
            action = supervisor.step({"click": loss}, **shown)  # surefoot
            if action is surefoot.Action.STOP:  # surefoot
                raise SystemExit(3)  # surefoot
            if step % 50 == 49:
                print(f"step {step}: loss {loss.item():.3f}")

    for event in surefoot.read_journal(folder / "events.jsonl"):
        print({key: value for key, value in event.items() if value is not None})
    print("capsules:", *sorted(path.name for path in (folder / "capsules").iterdir()))


if __name__ == "__main__":
    main()
