"""What a step costs: ratios against peers measured in the same run, round by round.

    python benchmarks/step.py [--layouts Large Small many] [--rounds 25] [--threads N]

Layouts: Large, four layers of 4096 on a 1000-wide input (54.5M numbers); Small, two layers of 512 (0.8M); many, 600
tensors (1.25M). Every rival steps in every round, so that a slow moment of the machine meets all of them; the table
has medians, quartiles and the ratio of medians. "memory" moves the five streams of an Adagrad step (read w, g, G;
write w, G) in place with as little arithmetic as torch allows: the limit. Extra memory is the peak during a step.
"Unchecked" is ``nonfinite="propagate"``: the difference is what one more read of the gradients costs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import psutil
import torch
from torch.nn import Parameter

import surefoot

LAYOUTS: dict[str, list[tuple[int, ...]]] = {
    "Large": [(4096, 1000), (4096,), *[(4096, 4096), (4096,)] * 3],
    "Small": [(512, 1000), (512,), (512, 512), (512,)],
    "many": [(50, 80), (167,)] * 300,
}
PEER = "torch Adagrad fused"
EAGER_PEER = "torch Adagrad default"
Step = Callable[[], object]


def parameters(shapes: list[tuple[int, ...]]) -> list[Parameter]:
    """Return weights and gradients of a model that has trained for a while: steps far below every bound."""
    torch.manual_seed(0)
    params = [Parameter(0.03 * torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    return params


def memory_limit(params: list[Parameter]) -> Step:
    """Return a step that only moves an Adagrad step's streams: both outputs are read and written, the gradient read."""
    totals = [torch.full_like(p, 0.1) for p in params]

    def step() -> None:
        for p, total in zip(params, totals, strict=True):
            total.add_(p.grad, alpha=1e-9)  # pyright: ignore[reportArgumentType]: parameters() has made one
            p.detach().mul_(1.0)

    return step


def clip_norm_then_adagrad(params: list[Parameter]) -> Step:
    optimizer = torch.optim.Adagrad(params, lr=1e-3, initial_accumulator_value=0.1, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1e6)
        optimizer.step()

    return step


def attached(params: list[Parameter]) -> Step:
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    surefoot.clip_updates(optimizer, surefoot.Clippy())
    return optimizer.step


def agc(params: list[Parameter]) -> Step:
    """pytorch_optimizer's AGC before torch's fused Adagrad, if that package is installed."""
    from pytorch_optimizer.optimizer.agc import agc as clip  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.Adagrad(params, lr=1e-3, initial_accumulator_value=0.1, fused=True)

    def step() -> None:
        with torch.no_grad():
            for p in params:
                assert p.grad is not None
                p.grad.copy_(clip(p, p.grad))
        optimizer.step()

    return step


def adagrad(**options: bool) -> Callable[[list[Parameter]], Step]:
    return lambda params: torch.optim.Adagrad(params, lr=1e-3, initial_accumulator_value=0.1, **options).step


RIVALS: dict[str, Callable[[list[Parameter]], Step]] = {
    PEER: adagrad(fused=True),
    EAGER_PEER: adagrad(),
    "torch Adagrad loop": adagrad(foreach=False),
    "torch Adagrad foreach": adagrad(foreach=True),
    "memory": memory_limit,
    "ClippyAdagrad": lambda params: surefoot.ClippyAdagrad(params, lr=1e-3).step,
    "ClippyAdagrad, every layer clips": lambda params: (
        surefoot.ClippyAdagrad(params, lr=1e-3, relative=0.0, absolute=1e-6).step
    ),
    "ClippyAdagrad unchecked": lambda params: surefoot.ClippyAdagrad(params, lr=1e-3, nonfinite="propagate").step,
    "ClippyAdagrad eager": lambda params: surefoot.ClippyAdagrad(params, lr=1e-3, fused=False).step,
    "clip_grad_norm_ + torch Adagrad fused": clip_norm_then_adagrad,
    "pytorch_optimizer AGC + torch Adagrad fused": agc,
    "torch AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True).step,
    "torch AdamW fused + clip_updates": attached,
}


def seconds_to_compile() -> float:
    """Return how long the kernel takes to compile on this machine, once for every version."""
    program = "import time; from surefoot.optim import kernel; t = time.perf_counter(); kernel.available(); "
    with tempfile.TemporaryDirectory() as cache:
        told = subprocess.run(
            [sys.executable, "-c", program + "print(time.perf_counter() - t)"],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    return float(told.stdout)


def peak_extra(step: Step) -> float:
    """Return by how many MB resident memory rises at most during a step."""
    process, peak, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(1e-4)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    return max(0, peak - before) / 1e6


def measure(layout: str, rounds: int) -> list[str]:
    """Return the table's lines for one layout."""
    shapes = LAYOUTS[layout]
    steps: dict[str, Step] = {}
    for name, make in RIVALS.items():
        try:
            steps[name] = make(parameters(shapes))
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed")
    extra = {}
    for name, step in steps.items():
        step()  # makes the state
        extra[name] = peak_extra(step)
    repeats = 1 if layout == "Large" else 20
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            seconds[name].append((time.perf_counter() - start) / repeats)
    medians = {name: statistics.median(several) for name, several in seconds.items()}
    lines = []
    for name, several in seconds.items():
        low, _, high = (1e3 * q for q in statistics.quantiles(several, n=4))
        lines.append(
            f"{layout:6} {name:46} {1e3 * medians[name]:9.3f} ({low:.3f} to {high:.3f}) ms"
            f"  x{medians[name] / medians[PEER]:5.2f} fused  x{medians[name] / medians[EAGER_PEER]:5.2f} default"
            f"  +{extra[name]:.0f} MB"
        )
    return lines


def share_of_training(layout: str, rounds: int) -> str:
    """Return the share that the optimizer has of a whole training step at batch 1024."""
    widths = [shape[1] for shape in LAYOUTS[layout] if len(shape) == 2] + [LAYOUTS[layout][-1][0]]
    x = torch.randn(1024, widths[0])
    shares = {}
    for name in (PEER, "ClippyAdagrad"):
        layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
        model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))
        step = RIVALS[name](list(model.parameters()))
        spent: list[tuple[float, float]] = []
        for _ in range(rounds):
            start = time.perf_counter()
            model.zero_grad()
            model(x).square().mean().backward()
            middle = time.perf_counter()
            step()
            spent.append((middle - start, time.perf_counter() - middle))
        shares[name] = statistics.median(s / (f + s) for f, s in spent)
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    return f"{layout:6} share of a training step, batch 1024: {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.txt"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = f"{psutil.cpu_count()} cores, {arguments.threads} threads"
    compiled = f"the kernel compiles in {seconds_to_compile():.1f} s"
    lines = [f"torch {torch.__version__}, {machine}, {arguments.rounds} rounds; {compiled}"]
    print(lines[0])
    for layout in arguments.layouts:
        lines += measure(layout, arguments.rounds)
        if layout != "many":
            lines.append(share_of_training(layout, 5 if layout == "Large" else arguments.rounds))
        print("\n".join(lines[-len(RIVALS) - 1 :]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
