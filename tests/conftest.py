"""What holds for every test."""

from collections import Counter

import pytest

from properties import same_numbers


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Let no test depend on those before it."""
    same_numbers()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a line for each reason what was left out: a test that is skipped is not seen otherwise."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} test{'s' * (count > 1)}: {reason.removeprefix('Skipped: ')}")
