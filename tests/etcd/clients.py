"""What the tests of the etcd client share: a loop to run on, a client that records, and a watch that records."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import urllib.request
from collections import Counter

from benchmarks.etcd_cluster import send
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import PUT
from tests.etcd.clusters import BOUND


def on_a_loop(test):
    """Run the test, or a part of one, on the background loop, within a bound.

    It fails if asyncio reports unhandled errors.
    """

    @functools.wraps(test)
    def run(*args, **kwargs):
        complaints = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            try:
                return await asyncio.wait_for(test(*args, **kwargs), 2 * BOUND)
            finally:
                gc.collect()
                loop.set_exception_handler(None)

        result = background.run(main())
        assert not complaints
        return result

    return run


def within(seconds=BOUND):
    return asyncio.get_running_loop().time() + seconds


async def until(condition, what):
    deadline = within()
    while not condition():
        assert within(0) < deadline, f"did not happen in time: {what}"
        await asyncio.sleep(0.01)


class Spy(GrpcEtcdClient):
    """A client that records each attempt and each error."""

    def __init__(self, endpoints, credentials=None, options=None):
        super().__init__(endpoints, credentials, options)
        self.tries = Counter()
        self.errors = []
        self.between = None
        """Awaited after each answer."""

    async def _attempt(self, call, request, timeout, deadline):
        self.tries[call] += 1
        try:
            answer = await super()._attempt(call, request, timeout, deadline)
        except EtcdError as exc:
            self.errors.append(exc)
            raise
        if self.between is not None:
            await self.between()
        return answer

    async def put(self, key, value=b"", seconds=BOUND, lease=0):
        message = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
        return (await self.request(Call.PUT, message, within(seconds))).header.revision


@contextlib.asynccontextmanager
async def connected(*endpoints, options=None, restorations=0):
    """A client of servers, each given by its port or as host and port; etcd is restored from snapshots so often."""
    client = Spy([("127.0.0.1", each) if isinstance(each, int) else each for each in endpoints], options=options)
    try:
        yield client
        assert client.history.restorations == restorations
    finally:
        await client.close()


class Observer:
    """Records what a watch reports."""

    def __init__(self):
        self.changes = []
        self.lost = 0

    def receive(self, events):
        self.changes += [(event.type, event.kv.key, event.kv.value) for event in events]

    def lose(self):
        self.lost += 1

    async def watch(self, client, key, end=b"", seconds=BOUND, revision=0):
        return await client.watch(key, end, self.receive, self.lose, within(seconds), revision)


async def uses(client, key):
    """Use every feature of a client."""
    observer = Observer()
    watch = await observer.watch(client, key)
    await client.put(key, b"value")
    lease = await client.grant(60, within())
    assert await client.keep_alive(lease, within())
    await until(lambda: observer.changes, "the watch reports the change")
    assert observer.changes[0] == (PUT, key, b"value")
    watch.cancel()


def watchers(port):
    """How many watches etcd has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=BOUND) as answer:
        lines = answer.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")))


def compact(server, revision):
    request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
    send(server.channel(), request, BOUND)
