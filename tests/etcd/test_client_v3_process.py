"""The etcd v3 client beside the rest of the process: exits, forks and interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.etcd.clusters import BOUND


def python(script, *arguments, timeout=BOUND):
    """Run a script in a process of its own and return what it prints. It must end well and write no error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    # Python 3.12 and later warn of a fork in a process with threads. Some scripts do that on purpose.
    warn = ["-W", "default", "-W", "ignore:This process (pid="]
    command = [sys.executable, *warn, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("trouble", ["stall", "cut", "close"])
def test_a_client_that_is_closed_with_requests_in_flight_is_quiet(port, trouble):
    """All requests that are in flight fail."""
    script = """
        import asyncio, gc, logging, sys
        from rendezvous.etcd.v3.messages import rpc_pb2
        from rendezvous.etcd.v3.calls import Call
        from rendezvous.etcd.v3.connection import GrpcEtcdClient
        from tests.proxy import Proxy

        logging.getLogger("rendezvous").addHandler(logging.NullHandler())

        async def main():
            loop, proxy = asyncio.get_running_loop(), Proxy(int(sys.argv[1]))
            client = GrpcEtcdClient([("127.0.0.1", proxy.port)])
            nothing = lambda *_: None
            await client.watch(b"quiet", b"", nothing, nothing, loop.time() + 30)
            lease = await client.grant(60, loop.time() + 30)
            await client.keep_alive(lease, loop.time() + 30)
            if sys.argv[2] == "stall":
                proxy.stall()
            elif sys.argv[2] == "cut":
                proxy.cut()
            deadline = loop.time() + 600
            put = rpc_pb2.PutRequest(key=b"k")
            asked = [asyncio.ensure_future(client.request(Call.PUT, put, deadline)) for _ in range(400)]
            asked += [asyncio.ensure_future(client.keep_alive(lease + i, deadline)) for i in range(3)]
            asked += [asyncio.ensure_future(client.watch(b"k", b"", nothing, nothing, deadline)) for _ in range(3)]
            await asyncio.sleep(0.01 if sys.argv[2] == "close" else 0.3)
            await client.close()
            over, running = await asyncio.wait(asked, timeout=10)
            print(len(running))
            await asyncio.gather(*asked, return_exceptions=True)
            proxy.resume()

        asyncio.run(main())
        gc.collect()
    """
    assert python(script, port, trouble) == "0\n"


def test_a_process_that_just_ends_is_quiet(port):
    script = """
        import asyncio, sys
        from rendezvous.etcd.v3 import background
        from rendezvous.etcd.v3.connection import GrpcEtcdClient

        async def main():
            loop = asyncio.get_running_loop()
            client = GrpcEtcdClient([("127.0.0.1", int(sys.argv[1]))])
            nothing = lambda *_: None
            await client.watch(b"quiet", b"", nothing, nothing, loop.time() + 30)
            lease = await client.grant(60, loop.time() + 30)
            await client.keep_alive(lease, loop.time() + 30)
            waits = asyncio.ensure_future(client.range(b"k", b"", loop.time() + 30, revision=10**12))

            async def leave():
                print("deleted", await client.delete(b"nothing", b"", loop.time() + 30))

            background.run_at_exit("client", leave)
            return client, waits

        client = background.run(main())
    """
    assert python(script, port) == "deleted 0\n"


def test_a_fork_leaves_the_parent_alone(port, key):
    """gRPC decides what happens to the child: it may die at once."""
    script = """
        import asyncio, os, sys
        from rendezvous.etcd.v3 import background
        from rendezvous.etcd.v3.operations import put_op
        from rendezvous.etcd.v3.connection import GrpcEtcdClient

        key, changes = sys.argv[2].encode(), []

        async def connect():
            client = GrpcEtcdClient([("127.0.0.1", int(sys.argv[1]))])
            await client.watch(key, b"", changes.extend, changes.clear, asyncio.get_running_loop().time() + 20)
            return client

        async def count(client):
            answer = await client.txn([], [put_op(key, b"")], deadline=asyncio.get_running_loop().time() + 20)
            return answer.header.revision

        client = background.run(connect())
        first = background.run(count(client))
        child = os.fork()
        if child == 0:
            os._exit(0)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            background.run(count(client))
        last = background.run(count(client))

        async def all_received():
            while len(changes) < last - first + 1:
                await asyncio.sleep(0.01)
        background.run(all_received())
        print("received")
    """
    assert python(script, port, key.decode()) == "received\n"


def test_in_a_forked_child_the_error_says_that_grpc_does_not_work():
    script = """
        import asyncio, os
        from rendezvous.api import RendezvousConnectionError
        from rendezvous.etcd.v3 import background

        background.run(asyncio.sleep(0))
        child = os.fork()
        if child == 0:
            try:
                background.run(asyncio.sleep(0))
            except RendezvousConnectionError as exc:
                os._exit(7 if "was forked" in str(exc) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(script) == "7\n"


def test_an_interrupt_cancels_what_it_waits_for():
    script = """
        import asyncio, os, signal
        from rendezvous.etcd.v3 import background

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

        async def wait(events):
            try:
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        events = []
        try:
            background.run(wait(events))
        except KeyboardInterrupt:
            events.append("interrupted")

        async def over():
            while len(events) < 2:
                await asyncio.sleep(0.01)
        background.run(over())
        print(*sorted(events))
    """
    assert python(script) == "cancelled interrupted\n"
