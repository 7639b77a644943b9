"""Without the checker nothing is tested here, and the last lines say so."""

from __future__ import annotations

import pytest

from tests.histories import checker

collect_ignore_glob = [] if checker.BINARY.exists() else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if collect_ignore_glob:
        terminalreporter.write_line(f"histories: not tested: {checker.MISSING}")
