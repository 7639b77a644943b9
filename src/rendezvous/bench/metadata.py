"""Metadata of a benchmark's results: date, commit, machine and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rendezvous._core import COMPILED
from rendezvous.etcd.server import find_etcd

__all__ = ["metadata", "summary"]

# The root of the clone, if the package is used from one.
_ROOT = Path(__file__).parents[3]
_DISTRIBUTIONS = ("etcd-rendezvous", "torch", "grpcio", "protobuf", "python-etcd", "urllib3", "cython", "numpy")


def metadata(etcd: str | None = None) -> dict[str, Any]:
    """Return date, commit, machine and versions.

    Args:
        etcd: the version of the etcd that was measured; by default that of the etcd that benchmarks start.

    Returns:
        A JSON object. The commit ends with a + if the sources have changed since, and is None outside a clone.
    """
    versions = {"etcd": etcd or _etcd(), **{name: _version(name) for name in _DISTRIBUTIONS}}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} x {_processor()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "core": "compiled" if COMPILED else "pure",
        "versions": {name: version for name, version in versions.items() if version is not None},
    }


def _output(*command: str) -> str | None:
    """Return what a command prints; None if it cannot run or fails."""
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    commit = _output("git", "rev-parse", "--short", "HEAD")
    # The model of benchmarks/scale.py runs on the simulated etcd of the tests.
    changed = _output("git", "status", "--porcelain", "src", "benchmarks/*.py", "tests/simulation")
    return None if commit is None or changed is None else commit + ("+" if changed else "")


def _etcd() -> str | None:
    try:
        version = _output(find_etcd(), "--version")
    except FileNotFoundError:
        return None
    return None if version is None else version.splitlines()[0].rpartition(" ")[2]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def summary(made: dict[str, Any]) -> str:
    """Return what :func:`metadata` returned in one line."""
    versions = ", ".join(
        f"{name} {version}" for name, version in {"Python": made["python"], **made["versions"]}.items()
    )
    commit = f" at {made['commit']}" if made["commit"] else ""
    return f"Measured {made['date'][:10]}{commit} on {made['machine']}; {versions}."
