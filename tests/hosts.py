"""Processes that act as the hosts of a cluster, each running ``rendezvous bench``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rendezvous.api import RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import prefix_end

BOUND = 120.0
"""Seconds within which the hosts of a test must end."""

COMMAND = (sys.executable, "-W", "error", "-m", "rendezvous", "bench")

# Without the variables of a launcher that may run these tests, and wide enough for a table.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMIX_"))},
    "COLUMNS": "250",
}


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a host."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the table that the host printed."""
        lines = [line.strip("│").split("│") for line in self.out.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line] for line in lines]


@contextmanager
def running(commands: Sequence[Sequence[str]], **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process for each command; on exit, kill those that still run."""
    hosts = [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | environment,
        )
        for command in commands
    ]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            host.communicate()


def end(host: subprocess.Popen[str]) -> Ended:
    """Wait until a host ends."""
    out, err = host.communicate(timeout=BOUND)
    return Ended(host.returncode, out, err)


def run(commands: Sequence[Sequence[str]], **environment: str) -> list[Ended]:
    """Run a host for each command, and wait until all have ended."""
    with running(commands, **environment) as hosts:
        return [end(host) for host in hosts]


def keys(endpoint: str, prefix: str) -> list[str]:
    """Return the keys with a prefix of the etcd at ``endpoint``."""
    client = connect(RendezvousParameters("etcd-v3", endpoint, "unused", 1, 1))
    start = prefix.encode()

    async def read() -> list[str]:
        found, _ = await client.range(start, prefix_end(start), float("inf"))
        return [kv.key.decode() for kv in found]

    return background.run(read())
