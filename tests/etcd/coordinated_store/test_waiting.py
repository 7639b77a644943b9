"""Waiting for keys."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from benchmarks.etcd_cluster import send
from rendezvous.coordinated.store import StoreOptions
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.coordinated_job import Job
from tests.etcd.coordinated_store.spy import SOON, begin, revision
from tests.nodes import BOUND, eventually, join
from tests.proxy import Proxy


def test_get_waits_for_a_late_set(store, spy, make_store):
    waiting = make_store(spy)
    result = begin(waiting.get, "late")
    eventually(lambda: spy.watched, "the watch")
    store.set("late", "value")
    assert result.result(BOUND) == b"value"
    assert spy.calls == [Call.RANGE]
    assert len(spy.watched) == 1


def test_get_and_wait_time_out_with_a_lookup_error_that_names_the_keys(store):
    with pytest.raises(LookupError, match=r"^the key 'never' did not appear in the etcd store within 0\.3 s$"):
        store.get("never", SOON)
    store.set("there", "1")
    with pytest.raises(LookupError, match=r"^the key 'never'"):
        store.wait(["there", "never"], SOON)
    with pytest.raises(LookupError, match=r"^the key 'never'"):
        store.multi_get(["never", "there"], SOON)
    store.set_timeout(SOON)
    with pytest.raises(LookupError, match=r"^the keys 'n0', 'n1', 'n2', 'n3', 'n4' and 2 more did not"):
        store.multi_get(["there"] + [f"n{i}" for i in range(7)])


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(milliseconds=1), timedelta(seconds=-1)])
def test_with_a_timeout_of_zero_existing_keys_are_found(store, timeout):
    store.set("key", "value")
    assert store.get("key", timeout) == b"value"
    store.wait(["key"], timeout)
    with pytest.raises(LookupError):
        store.wait(["never"], timeout)
    with pytest.raises(LookupError):
        store.get("never", timeout)


def test_no_keys(store):
    store.wait([])
    assert store.multi_get([]) == []
    assert store.check([])
    store.multi_set([], [])


def test_wait_takes_one_watch_and_no_read(store, spy, make_store):
    store.set("key", "value")
    waiting = make_store(spy)
    waiting.wait(["key"])
    names = [f"worker/{i}/done" for i in range(30)]
    result = begin(waiting.wait, names)
    eventually(lambda: len(spy.watched) == 2, "the second watch")
    store.multi_set(names[:29], ["1"] * 29)
    assert not result.done()
    store.set(names[29], "1")
    result.result(BOUND)
    waiting.wait(names)
    assert spy.requests == []
    assert len(spy.watched) == 3


def test_wait_waits_for_all(store):
    result = begin(store.wait, ["a", "b", "other/1"])
    store.multi_set(["a", "b"], ["1", "2"])
    assert not result.done()
    store.set("other/1", "3")
    result.result(BOUND)


def test_wait_ignores_keys_that_were_deleted(store, spy, make_store):
    store.set("key", "1")
    store.delete_key("key")
    result = begin(make_store(spy).wait, ["key"])
    eventually(lambda: spy.watched, "the watch")
    with pytest.raises(LookupError):
        store.wait(["key"], SOON)
    assert not result.done()
    store.set("key", "2")
    result.result(BOUND)


def test_after_a_long_replay_the_keys_are_read(store, spy, make_store):
    # etcd replays 1,000 revisions at a time: the deletion is in the second batch.
    async def write():
        await asyncio.gather(*(store._store.set("key", "x", BOUND) for _ in range(1005)))

    background.run(write())
    store.delete_key("key")
    waiting = make_store(spy)
    with pytest.raises(LookupError):
        waiting.wait(["key"], timedelta(seconds=2))
    store.set("key", "x")
    waiting.wait(["key"])


def test_if_the_history_is_compacted_the_keys_are_read(client, store, spy, make_store):
    store.set("there", "1")

    async def forget():
        await send(client._endpoints.current.channel, rpc_pb2.CompactionRequest(revision=revision_now, physical=True))

    for _ in range(3):
        store.set("noise", "1")
    revision_now = revision(client)
    background.run(forget())
    waiting = make_store(spy)
    waiting.wait(["there"])
    assert spy.calls == [Call.RANGE]
    spy.forget()
    result = begin(waiting.wait, ["there", "late"])
    eventually(lambda: spy.watched, "the watch")
    assert not result.done()
    store.set("late", "1")
    result.result(BOUND)
    assert spy.calls == [Call.TXN]  # the store has noted that the history is gone
    assert [since for _, _, since in spy.watched] == [revision_now + 1]


@pytest.mark.parametrize("settings", [{"since": 0}, {"options": StoreOptions(long_history=1)}])
def test_if_the_history_is_long_or_unknown_the_keys_are_read(store, spy, make_store, settings):
    waiting = make_store(spy, **settings)
    store.set("key", "1")
    store.set("key", "1")
    waiting.check(["key"])
    spy.forget()
    waiting.wait(["key"])
    assert (spy.calls, spy.watched) == ([Call.RANGE], [])
    result = begin(waiting.wait, ["late"])
    eventually(lambda: spy.watched, "the watch")
    store.set("late", "1")
    result.result(BOUND)


def test_an_interrupted_wait_leaves_no_watch(spy, make_store):
    store = make_store(spy)

    async def interrupt():
        task = asyncio.get_running_loop().create_task(store._store.wait(["a", "b"], BOUND))
        while len(spy.watched) < 2 or len(spy._watches._created) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return len(spy._watches._created), len(spy._watches._watches)

    assert background.run(interrupt()) == (0, 0)


# The store of a round, as a handler returns it.


@pytest.fixture
def job(etcd3, run_id):
    job = Job(etcd3.get_endpoint(), run_id, 2, 3, keep_alive_interval=20)
    yield job
    job.stop()


def test_a_late_member_waits_for_a_key_that_is_older_than_the_round_record(job, etcd3):
    with Proxy(etcd3.get_port()) as proxy:
        first = join(job.node("node-0"))
        eventually(job.record, "the first node coordinates")
        job.endpoint = proxy.endpoint
        late = join(job.node("node-1"))
        eventually(lambda: len(job.range(job.keys.nodes)) == 2, "the second node has joined")
        # The second node learns of the complete round only after a key was written and a third node waits.
        proxy.stall()
        job.endpoint = etcd3.get_endpoint()
        first.result(BOUND).store.set("key", "value")
        join(job.node("node-2"))
        eventually(lambda: job.record().waiting == 1, "the round record is published again")
        proxy.cut()
        proxy.restore()
        proxy.resume()
        store = late.result(BOUND).store
        assert store.timeout.total_seconds() > BOUND
        begin(store.wait, ["key"]).result(BOUND)
