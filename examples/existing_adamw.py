"""Two lines around an optimizer that is already there: AdamW keeps its schedule, its state and its checkpoints."""

import torch

import surefoot


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)

    handle = surefoot.clip_updates(optimizer, surefoot.Clippy())

    x, y = torch.randn(256, 16), torch.randn(256, 1)
    for step in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 5 == 0:
            factors = ", ".join(f"{float(sigma):.2f}" for sigma in handle.clip_factors().values())
            print(f"step {step}: loss {loss.item():.3f}, clip factors {factors}")


if __name__ == "__main__":
    main()
