"""Trainers that nobody here wrote. Without their packages nothing of this folder is collected, which is said."""

import importlib
import importlib.util
import warnings
from typing import Any

import pytest

PACKAGES = ("accelerate", "deepctr_torch", "fbgemm_gpu", "lightning", "torch_rechub", "torchrec", "transformers")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["*.py"] if missing else []

if not missing:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say while they are imported is their own
        for name in PACKAGES:
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the trainers warn of what they do themselves."""
    for item in items:
        if "clients" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if missing:
        terminalreporter.write_line(
            f"tests/clients is left out, for lack of {', '.join(missing)}; make test-clients installs and runs it"
        )
