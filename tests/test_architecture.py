"""Imports go down only: the table below is the house, and the tests read every import in the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import surefoot
from properties import over

# From the roof to the ground. A part may import itself and what stands on the floors below it.
LABORATORY: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("lab.cli",),
    ("lab.cli_data", "lab.cli_results"),
    ("lab.progress_display",),
    ("lab.terminal", "lab.usage_errors"),
    ("lab",),  # the public names
    ("lab.report", "lab.study", "lab.testing"),
    ("lab.training",),
    ("lab.models",),
    ("lab.sources",),
    ("lab.ingest",),
    ("lab.data",),
    ("lab.metrics",),
    ("lab.data.schema",),  # batches, tasks: what models, metrics and logs have in common
    ("lab.result_files",),
    ("lab.results",),
    ("lab.extensions", "lab.file_discovery", "lab.outcomes", "lab.settings"),
)
LIBRARY: tuple[tuple[str, ...], ...] = (
    ("integrations", "testing"),
    ("surefoot",),  # the public names
    ("supervisor",),
    ("recover",),
    ("capsule",),
    ("observe",),
    ("detect",),
    ("insight",),
    ("optim",),
    ("rules",),
    ("best_effort", "checks", "files", "tasks"),
    ("errors",),
)
FLOORS = LABORATORY + LIBRARY
ONLY: dict[str, set[str]] = {  # tighter than the floor
    "lab.report": {
        "lab.report",
        "lab.results",
        "lab.result_files",
        "files",
        "lab.outcomes",
        "errors",
    },  # reads result files
    "detect": {"detect", "checks", "errors"},
}
WITHOUT_TORCH = ("lab.report", "detect")
HEAVY = ("polars", "pydantic", "plotly", "typer", "torchmetrics", "rich", "jinja2")  # the extras' business

ROOT = Path(surefoot.__file__).parent
MODULES = {
    ".".join(("surefoot", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def part_of(module: str) -> str:
    """Return the part that a module stands in: the longest name in the table that it begins with."""
    inside = module.removeprefix("surefoot.")
    parts = {part for floor in FLOORS for part in floor}
    found = [part for part in parts if f"{inside}.".startswith(f"{part}.")]
    return max(found, key=len, default=inside)


def floor_of(part: str) -> int:
    """Return the floor, counted from the roof; a part without a place stands above it."""
    return next((i for i, floor in enumerate(FLOORS) if part in floor), -1)


def imports_of(module: str, source: str) -> Iterator[str]:
    """Yield the full names that a module imports, inside functions and under TYPE_CHECKING too."""
    package = module if MODULES.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                full = f"{origin}.{name.name}"
                yield full if full in MODULES or is_package(full) else origin


def is_package(name: str) -> bool:
    return any(module.startswith(f"{name}.") for module in MODULES)


def wrong_imports(module: str, source: str) -> list[str]:
    """Return what a module may not import, each with the reason."""
    part, wrong = part_of(module), []
    for name in imports_of(module, source):
        if name.split(".")[0] == "torch" and part in WITHOUT_TORCH:
            wrong.append(f"{name}: {part} never imports torch")
        if name.split(".")[0] != "surefoot":
            continue
        target = part_of(name)
        if part in ONLY:
            if target not in ONLY[part]:
                wrong.append(f"{name}: {part} may import {sorted(ONLY[part])} only")
        elif target != part and floor_of(target) <= floor_of(part):
            wrong.append(f"{name}: {target} does not stand below {part}")
    return wrong


def test_every_module_has_its_place() -> None:
    placed = {part for floor in FLOORS for part in floor}
    assert len(MODULES) > 10
    assert {module: part_of(module) for module in MODULES if part_of(module) not in placed} == {}


@over("module", list(MODULES))
def test_imports_go_down_only(module: str) -> None:
    assert wrong_imports(module, MODULES[module].read_text()) == []


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {
        module: {name for name in imports_of(module, path.read_text()) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 10
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


BREACHES: dict[str, tuple[str, str]] = {
    "up": ("surefoot.rules", "from surefoot.optim.adagrad import Adagrad"),
    "up, by a plain import": ("surefoot.lab.models.layers", "import surefoot.lab.training.loop"),
    "up, a package as a name": ("surefoot.lab.metrics", "from surefoot.lab import study"),
    "up, in a function": ("surefoot.optim.adagrad", "def f():\n    from surefoot.observe import monitor"),
    "up, relative": ("surefoot.optim.adagrad", "from ..detect.detector import Detector"),
    "up, relative to the root": ("surefoot.checks", "from . import rules"),
    "up, out of the schema": ("surefoot.lab.data.schema", "from surefoot.lab.data.sliding_window import MovingWindow"),
    "the library to the laboratory": ("surefoot.observe.monitor", "from surefoot.lab.settings import load"),
    "to an integration": ("surefoot.recover.recovery", "import surefoot.integrations.lightning"),
    "the detector to torch": ("surefoot.detect.detector", "from torch import Tensor"),
    "the detector to what sees tensors": ("surefoot.detect.signals", "from surefoot.observe.monitor import Monitor"),
    "to the side": ("surefoot.lab.study.engine", "from surefoot.lab.report.page import write_report"),
    "to the side, on the ground": ("surefoot.errors", "from surefoot.checks import positive"),
    "report to torch": ("surefoot.lab.report.page", "import torch.nn"),
    "report to what imports torch": ("surefoot.lab.report.page", "from surefoot.lab.metrics import evaluate"),
    "report to study": ("surefoot.lab.report.page", "from surefoot.lab.study.config import RunConfig"),
    "the public names, from what they name": ("surefoot.optim.adagrad", "from surefoot import Clippy"),
}


@over("breach", BREACHES)
def test_a_breach_is_seen(breach: tuple[str, str]) -> None:
    assert len(wrong_imports(*breach)) == 1


def loaded_by(packages: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after importing these."""
    program = f"import sys, {packages}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_surefoot_needs_torch_and_numpy_only() -> None:
    loaded = loaded_by("surefoot")
    assert {"torch", "numpy", "surefoot"} <= loaded
    assert loaded - loaded_by("torch, numpy") - set(sys.stdlib_module_names) == {"surefoot"}
    assert not set(HEAVY) & loaded
