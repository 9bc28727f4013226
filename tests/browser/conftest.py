"""Says at the end of a run how many browser tests could not run, and why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

_skipped: dict[str, int] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("browser"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[reason] = _skipped.get(reason, 0) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in _skipped.items():
        terminalreporter.write_sep("!", f"{count} BROWSER TESTS DID NOT RUN: {reason}", yellow=True, bold=True)
