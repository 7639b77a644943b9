"""Lost answers and broken connections: each change is applied once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from benchmarks.etcd_cluster import send
from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.coordinated_store import spy as spies
from tests.etcd.coordinated_store.spy import SOON, begin
from tests.nodes import BOUND, eventually
from tests.proxy import Proxy

# Lost answers.


@pytest.mark.parametrize(
    ("before", "amount", "total"), [(None, 1, 1), ("c", 1, 2), ("5", 1, 6), (None, 3, 3), ("c", 3, 4), ("5", -3, 2)]
)
@pytest.mark.parametrize("losses", [1, 3])
def test_an_addition_whose_answer_is_lost_is_applied_once(store, spy, make_store, before, amount, total, losses):
    if before == "c":
        store.add("n", 1)
    elif before is not None:
        store.set("n", before)
    adding = make_store(spy)
    spy.lose = losses
    assert adding.add("n", amount) == total
    assert spy.lose == 0
    assert store.get("n") == b"%d" % total
    assert adding.add("n", 1) == total + 1


@pytest.mark.parametrize("amount", [1, 3])
def test_an_addition_whose_answer_is_lost_returns_the_sum_at_its_revision(store, spy, make_store, amount):
    store.add("n", 10)

    async def others():
        await store._store.add("n", 1, BOUND)
        await store._store.add("n", 100, BOUND)

    spy.lose, spy.after_loss = 1, others
    assert make_store(spy).add("n", amount) == 10 + amount
    assert store.get("n") == b"%d" % (111 + amount)


def test_an_addition_that_etcd_gets_again_later_is_not_applied(store, spy, make_store):
    adding = make_store(spy)
    spy.lose = 1
    assert adding.add("n", 1) == 1
    assert adding.add("n", 1) == 2
    assert len(spy.lost) == 1
    spy.deliver(spy.lost)
    assert store.get("n") == b"2"


@pytest.mark.parametrize("losses", [1, 2])
def test_the_answer_that_a_change_was_not_made_is_lost(store, spy, make_store, losses):
    store.multi_set(["text", "number"], ["a", "1"])
    changing = make_store(spy)

    def losing(call, *arguments):
        spy.lose = losses
        try:
            return call(*arguments)
        finally:
            assert spy.lose == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spies, "applied_a_change", lambda answer: True)
        assert losing(changing.compare_set, "text", "", "b") == b"a"
        assert not losing(changing.delete_key, "absent")
        assert losing(changing.add, "number", 1) == 2
        losing(changing.append, "text", "b")
        with pytest.raises(ValueError, match="is not a number"):
            losing(changing.add, "text", 1)
    assert store.multi_get(["text", "number"]) == [b"ab", b"2"]


# Late requests: etcd gets one after it was sent again, and answered.


@pytest.fixture
def delaying(spy, make_store):
    """Return a function that calls an operation, of whose first transaction etcd gets a copy later."""
    changing = make_store(spy)

    def call(method, *arguments):
        spy.delay = 1
        try:
            return getattr(changing, method)(*arguments)
        finally:
            assert spy.delay == 0

    return call


def test_a_late_set_does_not_overwrite_a_newer_value(store, spy, delaying):
    delaying("set", "key", "old")
    delaying("multi_set", ["a", "b"], ["old", "old"])
    store.multi_set(["key", "a", "b"], ["new"] * 3)
    spy.deliver(spy.delayed)
    assert store.multi_get(["key", "a", "b"]) == [b"new"] * 3


def test_a_late_set_does_not_overwrite_a_newer_value_of_the_same_store(spy, make_store):
    changing = make_store(spy)
    changing.set_timeout(SOON)
    spy.delay = 1000
    with pytest.raises(RendezvousConnectionError):
        changing.set("key", "old")
    spy.delay = 0
    changing.set_timeout(timedelta(seconds=BOUND))
    changing.set("key", "new")
    spy.deliver(spy.delayed)
    assert changing.get("key") == b"new"


def test_a_change_that_was_reported_as_not_made_is_not_made_later(store, spy, delaying):
    store.multi_set(["text", "other"], ["x", "x"])
    assert not delaying("delete_key", "absent")
    assert delaying("compare_set", "text", "", "late") == b"x"
    with pytest.raises(ValueError, match="is not a number"):
        delaying("add", "other", 1)
    with pytest.raises(ValueError, match="is not a number"):
        delaying("add", "other", 3)
    store.set("absent", "new")
    store.delete_key("text")
    store.delete_key("other")
    spy.deliver(spy.delayed)
    assert store.get("absent") == b"new"
    assert store.list_keys() == ["absent"]


def test_changes_that_etcd_gets_late_are_applied_once(store, spy, delaying):
    for _ in range(2):
        delaying("add", "n", 1)
        delaying("add", "n", 3)
        delaying("append", "text", "x")
        assert delaying("compare_set", "key", "", "1") == b"1"
        assert delaying("delete_key", "key")
        spy.deliver(spy.delayed)
    assert store.multi_get(["n", "text"]) == [b"8", b"xx"]
    assert not store.check(["key"])


def test_an_addition_whose_revision_is_compacted_is_not_applied_again(client, store, spy, make_store):
    async def others():
        await store._store.add("n", 1, BOUND)
        _, now = await client.range(b"nothing", b"", asyncio.get_running_loop().time() + BOUND)
        await send(client._endpoints.current.channel, rpc_pb2.CompactionRequest(revision=now, physical=True))

    spy.lose, spy.after_loss = 1, others
    with pytest.raises(
        RendezvousConnectionError,
        match=r"^the key 'n' .* was changed, but .* is not applied again",
    ):
        make_store(spy).add("n", 1)
    assert store.get("n") == b"2"


@pytest.mark.parametrize("losses", [1, 2])
def test_other_changes_whose_answer_is_lost_are_applied_once(store, spy, make_store, losses):
    changing = make_store(spy)

    def losing(call, *arguments):
        spy.lose = losses
        result = call(*arguments)
        assert spy.lose == 0
        return result

    losing(changing.append, "text", "a")
    losing(changing.append, "text", "b")
    assert store.get("text") == b"ab"
    assert losing(changing.compare_set, "key", "", "one") == b"one"
    assert losing(changing.compare_set, "key", "one", "two") == b"two"
    assert losing(changing.delete_key, "key")
    assert not changing.delete_key("key")
    losing(changing.set, "key", "value")
    losing(changing.multi_set, ["a", "b"], ["1", "2"])
    assert store.multi_get(["key", "a", "b"]) == [b"value", b"1", b"2"]


def test_additions_of_many_threads_whose_answers_are_lost_are_applied_once(store, spy, make_store):
    adding = make_store(spy)
    spy.lose = 25
    results = [begin(adding.add, "n", 1) for _ in range(20)]
    assert sorted(result.result(BOUND) for result in results) == list(range(1, 21))
    assert store.get("n") == b"20"


# Broken connections.


@pytest.fixture
def proxied(etcd3, make_client, make_store):
    with Proxy(etcd3.get_port()) as proxy:
        yield proxy, make_store(make_client(proxy.port))


def test_operations_survive_a_broken_connection(proxied):
    proxy, store = proxied
    store.set("key", "value")
    for call in (
        lambda: store.get("key"),
        lambda: store.set("key", "value"),
        lambda: store.check(["key"]),
        lambda: store.add("n", 1),
        lambda: store.append("text", "x"),
        lambda: store.wait(["key"]),
        lambda: store.delete_key("nothing"),
    ):
        proxy.cut()
        result = begin(call)
        proxy.restore()
        result.result(BOUND)
    assert store.get("n") == b"1"
    assert store.get("text") == b"x"


def test_a_wait_survives_a_broken_connection(proxied, store):
    proxy, proxied_store = proxied
    results = [begin(proxied_store.get, "late"), begin(proxied_store.wait, ["late"])]
    client = proxied_store._store._requests.client
    eventually(lambda: len(client._watches._created) == 2, "the watches")
    proxy.cut()
    store.set("late", "value")
    proxy.restore()
    assert results[0].result(BOUND) == b"value"
    results[1].result(BOUND)


def test_without_etcd_operations_fail_after_the_timeout(proxied):
    proxy, store = proxied
    proxy.cut()
    store.set_timeout(SOON)
    for call in (
        lambda: store.get("key"),
        lambda: store.set("key", "value"),
        lambda: store.wait(["key"]),
        lambda: store.add("n", 1),
        lambda: store.num_keys(),
    ):
        with pytest.raises(RendezvousConnectionError, match="etcd"):
            begin(call).result(5)


def test_an_etcd_that_does_not_answer_is_not_reported_as_a_missing_key(proxied):
    proxy, store = proxied
    client = store._store._requests.client
    result = begin(store.get, "never", timedelta(seconds=2))
    eventually(lambda: client._watches._created, "the watch")
    proxy.cut()
    with pytest.raises(RendezvousConnectionError):
        result.result(BOUND)
