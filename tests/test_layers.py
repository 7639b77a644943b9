"""The layers that docs/design.md shows and pyproject.toml declares."""

from __future__ import annotations

from pathlib import Path

import pytest

linter = pytest.importorskip("importlinter.cli")


def test_imports_point_downwards(capsys: pytest.CaptureFixture[str]) -> None:
    configuration = Path(__file__).parents[1] / "pyproject.toml"
    assert linter.lint_imports(config_filename=str(configuration), no_cache=True) == 0, capsys.readouterr().out
