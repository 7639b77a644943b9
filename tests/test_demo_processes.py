"""The processes of the demonstration: all end with the first one, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rendezvous.api import RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from tests.nodes import BOUND

pytestmark = pytest.mark.usefixtures("v3_binary")  # skips, or fails, if there is no binary

# The supervisor of etcd, etcd itself, what multiprocessing starts, and two groups of nodes.
DESCENDANTS = 5


def alive(processes):
    found = []
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two calls
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count_nodes(endpoint):
    """Return how many nodes have joined."""
    client = connect(RendezvousParameters("etcd-v3", endpoint, "run", 1, 1))

    async def read():
        keys, _ = await client.range(b"/", b"0", asyncio.get_running_loop().time() + BOUND)
        return sum(b"/nodes/" in kv.key for kv in keys)

    return background.run(read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["starting", "joining"])
def test_a_signal_that_ends_the_demonstration_leaves_nothing(number, stage, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rendezvous", "demo", "--nodes", "40"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    root = psutil.Process(process.pid)
    try:
        endpoint = process.stdout.readline().split()[-1].rstrip(".")
        wait_until(lambda: len(root.children(recursive=True)) >= DESCENDANTS, BOUND)
        if stage == "joining":
            wait_until(lambda: count_nodes(endpoint), BOUND)
        descendants = root.children(recursive=True)
        process.send_signal(number)
        process.wait(timeout=BOUND)
        wait_until(lambda: not list(tmp_path.iterdir()), 3)  # deleted once etcd has ended
        # A process that is just importing its modules notices when it has done so.
        wait_until(lambda: not alive(descendants), BOUND)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
