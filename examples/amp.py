"""Mixed precision: GradScaler hands its scale to the step, which unscales, skips and clips; no unscale_ is needed."""

import torch

import surefoot


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).to(device)
    optimizer = surefoot.ClippyAdagrad(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    x, y = torch.randn(256, 16, device=device), torch.randn(256, 1, device=device)
    for step in range(10):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16 if device == "cuda" else torch.bfloat16):
            loss = (model(x) - y).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % 3 == 0:
            print(f"step {step}: loss {loss.item():.3f}, scale {scaler.get_scale():.0f}")


if __name__ == "__main__":
    main()
