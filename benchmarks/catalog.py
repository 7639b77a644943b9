"""The benchmarks by name. Each is a module with ``measure(full)``, which returns rows, and ``tables(rows)``."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["BENCHMARKS", "module"]

BENCHMARKS = ("state", "formation", "releases", "steady", "recovery", "store", "scale")


def module(name: str) -> ModuleType:
    """Return the module of a benchmark."""
    return importlib.import_module(f"benchmarks.{name}")
