"""The layers that docs/design.md shows and pyproject.toml declares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

# In a process of its own: import-linter configures logging, which disables the loggers that exist.
COMMAND = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"


def test_imports_point_downwards() -> None:
    result = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
