"""What holds for every test."""

from collections import Counter

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Seed every generator, and let one thread sum in one order."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a line for each reason what was left out: a test that is skipped is not seen otherwise."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} test{'s' * (count > 1)}: {reason.removeprefix('Skipped: ')}")
