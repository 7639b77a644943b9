"""Watches of the etcd v3 client, on real etcd servers."""

from __future__ import annotations

import asyncio

from rendezvous.etcd.v3.client import ClientOptions
from rendezvous.etcd.v3.operations import DELETE, PUT, prefix_end
from rendezvous.etcd.v3.operations import put_op as put
from tests.etcd.clients import Observer, compact, connected, on_a_loop, until, uses, watchers, within
from tests.etcd.clusters import Cluster, progress_flags
from tests.proxy import Proxy


@on_a_loop
async def test_a_watch_reports_all_changes_from_its_start(port, key):
    async with connected(port) as client, connected(port) as other:
        before = await client.put(key + b"0", b"before")
        observer, earlier, single = Observer(), Observer(), Observer()
        watch = await observer.watch(client, key, prefix_end(key))
        await other.put(key + b"1", b"after")
        await other.delete(key + b"0", b"", within())
        await earlier.watch(client, key, prefix_end(key), revision=before)
        await single.watch(client, key + b"1", revision=before)
        history = [(PUT, key + b"0", b"before"), (PUT, key + b"1", b"after"), (DELETE, key + b"0", b"")]
        await until(
            lambda: len(observer.changes) == 2 and len(earlier.changes) == 3 and single.changes, "all watches report"
        )
        assert observer.changes == history[1:]
        assert earlier.changes == history
        assert single.changes == history[1:2]
        watch.cancel()
        await other.put(key + b"2")
        await until(lambda: len(earlier.changes) == 4, "the other watch reports the change")
        assert observer.changes == history[1:]


@on_a_loop
async def test_a_watch_resumes_over_cut_connections_and_misses_nothing(port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        observer, number = Observer(), 0
        await observer.watch(client, key, prefix_end(key))
        for _ in range(5):
            for cut in (False, True):
                if cut:
                    proxy.cut()
                for _ in range(30):
                    number += 1
                    if not cut and number % 60 == 15:
                        proxy.cut()
                        proxy.restore()
                    await writer.txn(
                        [], [put(key, b"%d" % number), put(key + b"twin", b"%d" % number)], deadline=within()
                    )
            proxy.restore()
            last = (PUT, key + b"twin", b"%d" % number)
            await until(lambda last=last: last in observer.changes, "the watch reports the change")
        expected = [(key + name, b"%d" % i) for i in range(1, number + 1) for name in (b"", b"twin")]
        assert [(name, value) for _, name, value in observer.changes] == expected
        assert observer.lost == 0


@on_a_loop
async def test_a_watch_that_missed_compacted_changes_is_lost_once(server, port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        observer, fresh = Observer(), Observer()
        await observer.watch(client, key)
        await writer.put(key, b"first")
        await until(lambda: observer.changes, "the watch reports the change")
        proxy.cut()
        await writer.put(key, b"missed")
        compact(server, await writer.put(key, b"last"))
        proxy.restore()
        await until(lambda: observer.lost, "the watch is lost")
        await fresh.watch(client, key)
        proxy.cut()
        proxy.restore()
        await writer.put(key, b"new")
        await until(lambda: fresh.changes, "the new watch reports the change")
        assert fresh.changes == [(PUT, key, b"new")]
        assert observer.changes == [(PUT, key, b"first")]
        assert observer.lost == 1


@on_a_loop
async def test_a_watch_from_a_compacted_revision_is_lost_once(server, port, key):
    async with connected(port) as client:
        first = await client.put(key)
        compact(server, await client.put(key))
        observer = Observer()
        await observer.watch(client, key, revision=first)
        await until(lambda: observer.lost, "the watch is lost")
        await uses(client, key)
        assert (observer.lost, observer.changes) == (1, [])


@on_a_loop
async def test_hundreds_of_watches_on_one_stream_survive_a_reconnect(port, proxy, key):
    names = [b"%s%03d" % (key, i) for i in range(500)]
    async with connected(proxy.port) as client, connected(port) as writer:
        observers = [Observer() for _ in names]
        watches = await asyncio.gather(*(each.watch(client, name) for each, name in zip(observers, names, strict=True)))
        for each in watches[::10]:
            each.cancel()
        proxy.cut()
        await asyncio.gather(*(writer.put(name, b"1") for name in names))
        proxy.restore()
        for each in watches[1::10]:
            each.cancel()
        kept = [i for i in range(len(names)) if i % 10 > 1]
        await until(lambda: all(observers[i].changes for i in kept), "all watches report the change")
        await asyncio.gather(*(writer.put(name, b"2") for name in names))
        await until(lambda: all(len(observers[i].changes) > 1 for i in kept), "all watches report the second change")
        for i, (each, name) in enumerate(zip(observers, names, strict=True)):
            assert each.changes == ([(PUT, name, b"1"), (PUT, name, b"2")] if i % 10 > 1 else [])
            assert each.lost == 0
        await until(lambda: watchers(port) == len(kept), "etcd ends what was cancelled")


@on_a_loop
async def test_a_cancelled_watch_reports_nothing_and_leaves_nothing_in_etcd(port, key):
    async with connected(port) as client:
        observer, kept = Observer(), Observer()
        for patience in (0, 0, 0.001, 0.005):
            begun = asyncio.ensure_future(observer.watch(client, key))
            await asyncio.sleep(patience)  # the request may be on its way, or answered
            begun.cancel()
            if (watch := (await asyncio.gather(begun, return_exceptions=True))[0]) and hasattr(watch, "cancel"):
                watch.cancel()
        await kept.watch(client, key)
        watch = await observer.watch(client, key)
        watch.cancel()
        watch.cancel()
        await client.put(key)
        await until(lambda: kept.changes, "the other watch reports the change")
        await until(lambda: watchers(port) == 1, "etcd ends what was cancelled")
        assert observer.changes == []


@on_a_loop
async def test_watches_that_start_while_the_connection_breaks_and_returns(port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        observers = []

        async def begin(i):
            observers.append(Observer())
            await observers[-1].watch(client, key, prefix_end(key))

        beginnings = []
        for i in range(60):
            beginnings.append(asyncio.ensure_future(begin(i)))
            if i % 10 == 5:
                proxy.cut()
            if i % 10 == 9:
                proxy.restore()
            await asyncio.sleep(0.005)  # lets the stream come up, or not
        await asyncio.gather(*beginnings)
        await writer.put(key, b"end")
        await until(lambda: all(each.changes for each in observers), "all watches report the change")
        assert all(each.changes == [(PUT, key, b"end")] for each in observers)
        await until(lambda: watchers(port) == len(observers), "etcd has each watch once")


@on_a_loop
async def test_a_watch_without_changes_detects_that_its_connection_is_dead(key):
    """Pings are sent also on a stream that has received nothing for a long time."""
    options = ClientOptions(ping_interval=0.2, ping_timeout=0.3)
    with Cluster(1, flags=["--grpc-keepalive-min-time", "100ms"]) as server, Proxy(server.ports[0]) as proxy:
        async with (
            connected(proxy.port, server.ports[0], options=options) as client,
            connected(server.ports[0]) as writer,
        ):
            observer = Observer()
            await observer.watch(client, key)
            await asyncio.sleep(2)  # more pings are sent without data than gRPC allows by default
            proxy.stall()
            await writer.put(key)
            await until(lambda: observer.changes, "the watch reports the change")
            proxy.resume()


@on_a_loop
async def test_an_unexpected_error_in_the_stream_does_not_end_the_watches(port, key, caplog):
    async with connected(port) as client, connected(port) as writer:
        observer, watches = [Observer() for _ in range(3)], client._watches
        for each in observer:
            await each.watch(client, key)
        received = watches._received

        def fail_once(answer):
            watches._received = received
            raise RuntimeError("broken on purpose")

        watches._received = fail_once
        await writer.put(key)
        await until(lambda: all(each.changes for each in observer), "all watches report the change")
        assert "broken on purpose" in caplog.text
        assert [len(each.changes) for each in observer] == [1, 1, 1]


@on_a_loop
async def test_an_error_in_a_callback_does_not_end_the_other_watches(server, port, proxy, key, caplog):
    def fail(*_):
        raise RuntimeError("broken on purpose")

    async with connected(proxy.port) as client, connected(port) as writer:
        first = await writer.put(key)
        observer = Observer()
        await client.watch(key, b"", fail, fail, within())
        await observer.watch(client, key)
        await writer.put(key)
        await until(lambda: observer.changes, "the other watch reports the change")
        compact(server, await writer.put(key))
        await client.watch(key, b"", fail, fail, within(), first)
        await until(lambda: "the end of the watch" in caplog.text, "its end is reported")
        await uses(client, key)


@on_a_loop
async def test_a_watch_without_changes_resumes_after_a_compaction(key):
    """etcd reports its progress, so that the watch does not begin again with a revision that is compacted."""
    with Cluster(1, flags=progress_flags("100ms")) as server, Proxy(server.ports[0]) as proxy:
        async with connected(proxy.port) as client, connected(server.ports[0]) as writer:
            observer = Observer()
            watch = await observer.watch(client, key)
            last = 0
            for _ in range(20):
                last = await writer.put(key + b"other")
            await until(lambda: watch.revision > last, "the watch reports the progress")
            proxy.cut()
            compact(server, last)
            proxy.restore()
            await writer.put(key)
            await until(lambda: observer.changes or observer.lost, "the watch reports the change")
            assert observer.lost == 0
            assert [name for _, name, _ in observer.changes] == [key]
