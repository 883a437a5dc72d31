"""What watching costs: time inside the monitor's default tier over the time of a training step, and two rivals.

    python benchmarks/monitor.py [--layouts Large Small] [--optimizers NAME ...] [--threads 2]
    python benchmarks/monitor.py --paths --threads 1 --out benchmarks/results/monitor_paths.txt

Layouts: Large, four layers of 4096 on a 1000-wide input (54.5M numbers); Small, two of 512 (0.8M); two heads each, one
binary and one regression; batch 1024. Every observer sees the same model; each round is a whole training step for each
of them in turn, so that a slow moment of the machine meets all. Inside the monitor is all that it adds: its call, its
hooks on the optimizer, the detector, the files. Rivals: the L2 norms of each gradient and weight by ``.item()``, and a
histogram of each gradient in every step, as ``wandb.watch`` takes them (the least and the largest number, then
``torch.histc`` into 64 bins, to the host).

A median is over the steps without a survey (every 50th has one); "in all" is the sum over 50 steps, one of them
surveyed, and the share is of both sums.

``--paths`` compares three ways to look at the layers' steps, each on the same model in turn over 20 rounds: the
compiled one; torch's operations layer by layer, which is what a machine without a compiler has; and torch's foreach
operations. Every 5th step has a survey; "in all" is a 50th of a survey's median and 49 of a plain step's, and the last
figure is that of the path over the compiled one's. There ``--batch 128`` saves time and changes little.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim import Optimizer

import surefoot
from surefoot.observe import layer_stats
from surefoot.observe.layer_stats import StepView
from surefoot.observe.monitor import Monitor
from surefoot.rules import Clippy

LAYOUTS = {"Large": [1000, 4096, 4096, 4096, 4096], "Small": [1000, 512, 512]}
TASKS = {"click": "binary", "sales": "regression"}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "ClippyAdagrad": lambda params: surefoot.ClippyAdagrad(params, lr=1e-2),
    "torch Adagrad fused": lambda params: torch.optim.Adagrad(
        params, lr=1e-2, initial_accumulator_value=0.1, fused=True
    ),
    "torch AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True),
}
EVERY = 50
ROUNDS = {"Large": 8, "Small": 100}  # in which the rivals take part
PATH_ROUNDS, PATH_EVERY = 20, 5
Seconds = dict[str, list[tuple[float, float]]]  # by observer: inside it, and the whole step


class Net(nn.Module):
    """The layers of a layout and a head for each task."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.bottom = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({task: nn.Linear(widths[-1], 1) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.bottom(x)
        return {task: head(h)[:, 0] for task, head in self.heads.items()}


def norms_by_item(params: list[Tensor]) -> dict[int, tuple[float, float]]:
    """Log as one would without thinking of it."""
    return {i: (p.grad.norm().item(), p.detach().norm().item()) for i, p in enumerate(params) if p.grad is not None}


def histograms(params: list[Tensor]) -> dict[int, list[float]]:
    """Take histograms as wandb's ``watch`` does."""
    found = {}
    for i, p in enumerate(params):
        if p.grad is not None:
            flat = p.grad.reshape(-1)
            flat = flat[~torch.isnan(flat) & ~torch.isinf(flat)]
            low, high = flat.min().item(), flat.max().item()
            found[i] = flat.histc(bins=64, min=low, max=high).cpu().tolist()
    return found


def foreach_ratios(looks: list[StepView], clippy: Clippy = Clippy()) -> Tensor:
    """Return what ``layer_stats.least_ratios`` does, of dense float32 layers with one factor each."""
    if not looks:
        return torch.zeros(0)
    news, rates = [look.weight for look in looks], [float(look.lr) for look in looks]
    if looks[0].adagrad:
        steps = torch._foreach_sqrt([look.beside for look in looks])
        torch._foreach_add_(steps, [look.eps for look in looks])
        torch._foreach_clamp_min_(steps, 1e-19)
        steps = torch._foreach_div([look.grad for look in looks], steps)
        torch._foreach_mul_(steps, [look.sign * rate for look, rate in zip(looks, rates, strict=True)])
        bounds = torch._foreach_mul(steps, [look.sigma for look in looks])
        torch._foreach_add_(bounds, news)
    else:
        bounds = [look.beside for look in looks]
        steps = torch._foreach_sub(bounds, news)
        torch._foreach_div_(steps, [look.sigma for look in looks])
    bounds = torch._foreach_abs(bounds)
    torch._foreach_mul_(bounds, clippy.relative)
    torch._foreach_add_(bounds, clippy.absolute)
    torch._foreach_div_(steps, bounds)
    return torch.stack(torch._foreach_norm(steps, torch.inf)).reciprocal()


PATHS = {  # what stands for layer_stats._takes and layer_stats.least_ratios
    "compiled": (layer_stats._takes, layer_stats.least_ratios),
    "layer by layer": (lambda look: False, layer_stats.least_ratios),
    "foreach": (lambda look: False, foreach_ratios),
}


def choose(path: str) -> None:
    layer_stats._takes, layer_stats.least_ratios = PATHS[path]


class Clock:
    """Seconds between pairs of hooks: the first of each pair is registered before the monitor's, the second after."""

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0

    def start(self, *_: object) -> None:
        self._start = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


def measure(layout: str, name: str, folder: Path, *, batch: int, paths: bool) -> Seconds:
    """Train under one optimizer; return what each step cost, by observer; of paths, by path and whether surveyed."""
    torch.manual_seed(0)
    model = Net(LAYOUTS[layout])
    optimizer, clock = OPTIMIZERS[name](model.parameters()), Clock()
    register = (optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    for hook in register:
        hook(clock.start)
    monitor = Monitor(model, optimizer, tasks=TASKS, folder=folder, every=EVERY)
    for hook in register:
        hook(clock.stop)
    params: list[Tensor] = list(model.parameters())
    x, labels = torch.randn(batch, 1000), {"click": (torch.rand(batch) < 0.3).float(), "sales": torch.randn(batch)}

    def step(observe: Callable[..., object], *, counts_hooks: bool) -> tuple[float, float]:
        start, clock.seconds = time.perf_counter(), 0.0
        outputs = model(x)
        losses = {
            "click": binary_cross_entropy_with_logits(outputs["click"], labels["click"]),
            "sales": mse_loss(outputs["sales"], labels["sales"]),
        }
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        middle = time.perf_counter()
        observe(losses, outputs, labels)
        stop = time.perf_counter()
        hooks = clock.seconds
        # a rival's step is one without the monitor's hooks
        return (stop - middle + hooks, stop - start) if counts_hooks else (stop - middle, stop - start - hooks)

    observers: dict[str, Callable[..., object]] = {
        "monitor": lambda losses, outputs, labels: monitor.step(losses, outputs=outputs, labels=labels),
        "norms by .item()": lambda *_: norms_by_item(params),
        "histograms": lambda *_: histograms(params),
    }
    if paths:
        return measure_paths(monitor, lambda: step(observers["monitor"], counts_hooks=True))
    seconds: Seconds = {observer: [] for observer in observers}
    for round_ in range(EVERY + 1):
        for observer, observe in observers.items():
            if observer == "monitor" or round_ <= ROUNDS[layout]:
                seconds[observer].append(step(observe, counts_hooks=observer == "monitor"))
    monitor.close()
    return {observer: several[1:] for observer, several in seconds.items()}  # the first warms up


def measure_paths(monitor: Monitor, step: Callable[[], tuple[float, float]]) -> Seconds:
    """Take steps with each path in turn."""
    seconds: Seconds = {}
    monitor.every = PATH_EVERY
    for round_ in range(-1, PATH_ROUNDS):  # the first warms up
        for path in PATHS:
            choose(path)
            surveyed = monitor._step % PATH_EVERY == 0
            took = step()
            if round_ >= 0:
                seconds.setdefault(f"{path}{', survey' if surveyed else ''}", []).append(took)
    choose("compiled")
    monitor.close()
    return seconds


def lines_of_paths(layout: str, name: str, seconds: Seconds) -> list[str]:
    """Return the table's lines for one layout and optimizer, by path."""
    lines, in_all = [], {}
    for path in PATHS:
        plain, survey = ([1e3 * i for i, _ in seconds[key]] for key in (path, f"{path}, survey"))
        low, median, high = statistics.quantiles(plain, n=4)
        in_all[path] = (49 * median + statistics.median(survey)) / 50
        whole = 1e3 * statistics.median(s for _, s in seconds[path])
        lines.append(
            f"{layout:6} {name:20} {path:15} {median:8.2f} ms ({low:.2f} to {high:.2f}) of {whole:8.1f} ms"
            f"  a survey {statistics.median(survey):7.1f} ms  in all {in_all[path]:8.2f} ms  "
            f"{in_all[path] / in_all['compiled']:.2f}"
        )
    return lines


def lines_of(layout: str, name: str, seconds: Seconds) -> list[str]:
    """Return the table's lines for one layout and optimizer."""
    lines = []
    for observer, several in seconds.items():
        plain = several[:-1] if observer == "monitor" else several  # its last step has the survey
        inside, share = (statistics.median(values) for values in ([i for i, _ in plain], [i / s for i, s in plain]))
        low, _, high = (100 * q for q in statistics.quantiles([i / s for i, s in plain], n=4))
        whole = statistics.median(s for _, s in plain)
        line = f"{layout:6} {name:20} {observer:17} {1e3 * inside:8.2f} ms of {1e3 * whole:8.1f} ms"
        line += f"  {100 * share:5.2f} % ({low:.2f} to {high:.2f})"
        if observer == "monitor":
            in_all = sum(i for i, _ in several) / sum(s for _, s in several)
            line += f"  in all {100 * in_all:.2f} %, a survey {1e3 * several[-1][0]:.1f} ms"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--paths", action="store_true", help="compare the ways to look at layers, not the rivals")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/monitor.txt"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"torch {torch.__version__}, {psutil.cpu_count()} cores, {arguments.threads} threads, batch {arguments.batch}"
    ]
    lines[0] += f", {time.strftime('%Y-%m-%d')}"
    table = lines_of_paths if arguments.paths else lines_of
    print(lines[0])
    for layout in arguments.layouts:
        for name in arguments.optimizers:
            with tempfile.TemporaryDirectory() as folder:
                lines += table(
                    layout, name, measure(layout, name, Path(folder), batch=arguments.batch, paths=arguments.paths)
                )
            print("\n".join(lines[-3:]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
