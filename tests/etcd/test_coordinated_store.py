from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from datetime import timedelta

import pytest

from benchmarks.etcd_cluster import send
from rendezvous.api import RendezvousConnectionError, RendezvousStateError, RendezvousTimeoutError
from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store import EtcdStore, StoreOptions
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.etcd.coordinated_job import Job
from tests.nodes import BOUND, eventually, join
from tests.proxy import Proxy

SOON = timedelta(seconds=0.3)


def applied_a_change(answer):
    """Whether a transaction changed something, or found that it had been applied before."""
    return answer.succeeded or any(
        response.HasField("response_put")
        or (response.HasField("response_txn") and applied_a_change(response.response_txn))
        for response in answer.responses
    )


class Spy(GrpcEtcdClient):
    """Records requests and watches, and loses the answers of transactions that changed something."""

    def __init__(self, endpoints, credentials=None):
        super().__init__(endpoints, credentials)
        self.requests = []
        self.watched = []
        self.lose = 0
        """How many answers to lose."""
        self.after_loss = None
        self.lost = []
        """The requests whose answers were lost."""

    async def _attempt(self, call, request, timeout, deadline):
        self.requests.append((call, request))
        answer = await super()._attempt(call, request, timeout, deadline)
        if self.lose and call is Call.TXN and applied_a_change(answer):
            self.lose -= 1
            self.lost.append((call, request))
            if self.after_loss is not None:
                await self.after_loss()
            raise UnavailableError("the answer was lost")
        return answer

    async def watch(self, key, end, receive, lost, deadline, revision=0):
        self.watched.append((key, end, revision))
        return await super().watch(key, end, receive, lost, deadline, revision)

    def forget(self):
        self.requests.clear()
        self.watched.clear()

    @property
    def calls(self):
        return [call for call, _ in self.requests]


def connect(port):
    async def make():
        return Spy([("127.0.0.1", port)])

    return background.run(make())


@pytest.fixture
def make_client(etcd3):
    clients = []

    def make(port=None):
        clients.append(connect(etcd3.get_port() if port is None else port))
        return clients[-1]

    yield make
    for client in clients:
        background.run(client.close())


@pytest.fixture(scope="module")
def client(etcd3):
    client = connect(etcd3.get_port())
    yield client
    background.run(client.close())


@pytest.fixture
def spy(make_client):
    return make_client()


@pytest.fixture
def keys(run_id):
    return Keys("/test", run_id)


def ask(client, method, *arguments, **options):
    """Call a method of the client on its event loop."""

    async def call():
        deadline = asyncio.get_running_loop().time() + BOUND
        return await getattr(client, method)(*arguments, deadline=deadline, **options)

    return background.run(call())


def revision(client):
    return ask(client, "range", b"nothing", b"")[1]


@pytest.fixture
def make_store(client, keys):
    since = revision(client)

    def make(client=client, **options):
        settings = {"number": 3, "lease": 0, "since": since, "timeout": timedelta(seconds=BOUND), **options}
        return EtcdStore(client, keys, **settings)

    return make


@pytest.fixture
def store(make_store):
    return make_store()


def begin(call, *arguments):
    """Call in a thread; return a function that waits for the result or raises the error."""
    outcome = []

    def work():
        try:
            outcome.append((call(*arguments), None))
        except Exception as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def result():
        thread.join(BOUND)
        assert not thread.is_alive(), "the call did not return in time"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    result.running = thread.is_alive
    return result


# Values.


def test_set_and_get(store):
    store.set("key", "value")
    assert store.get("key") == b"value"
    store.set("key", b"\x00\xff")
    assert store.get("key") == b"\x00\xff"
    store.set("empty", b"")
    assert store.get("empty") == b""


@pytest.mark.parametrize("value", ["=x", "+1", "+", ",", b"\xff" * 1000, "x" * 1_000_000])
def test_any_bytes_are_a_value(store, value):
    store.set("key", value)
    assert store.get("key") == (value if isinstance(value, bytes) else value.encode())
    if value == "+1":
        assert store.add("key", 1) == 2
    else:
        with pytest.raises(ValueError, match="is not a number"):
            store.add("key", 1)


@pytest.mark.parametrize("key", ["", "/", "a/b", "../x", "a b", "ключ", "x" * 300, b"\x00\xff", "\udcff", "0/1/2"])
def test_any_text_and_any_bytes_are_a_key(store, key):
    store.set(key, "value")
    assert store.get(key) == b"value"
    store.wait([key])
    (listed,) = store.list_keys()
    assert store.get(listed) == b"value"
    assert store.delete_key(key)


@pytest.mark.parametrize("value", [3, None, [1]])
def test_only_text_and_bytes_are_values_and_keys(store, value):
    for call in (store.set, store.append):
        with pytest.raises(ValueError, match="must be str or bytes"):
            call("key", value)
    with pytest.raises(ValueError, match="must be str or bytes"):
        store.compare_set("key", "", value)
    with pytest.raises(ValueError, match="must be str or bytes"):
        store.get(value)


def test_all_keys_are_stored_with_the_lease(client, keys, make_store):
    lease = ask(client, "grant", 600)
    store = make_store(lease=lease)
    store.set("dir/key", "value")
    store.add("n", 1)
    store.add("n", 1)
    store.add("m", 7)
    store.append("text", "x")
    store.compare_set("swapped", "", "y")
    store.multi_set(["a", "b"], ["1", "2"])
    found, _ = ask(client, "range", keys.root + b"store/0000000003/dir/key", b"")
    assert found[0].value == b"=value"
    found, _ = ask(client, "range", keys.root, keys.root + b"\xff")
    assert len(found) > 7
    assert {kv.lease for kv in found} == {lease}
    ask(client, "revoke", lease)
    assert ask(client, "range", keys.root, keys.root + b"\xff")[0] == []
    with pytest.raises(RendezvousConnectionError, match=r"the lease of the etcd store '.*/0000000003/' has ended"):
        store.set("key", "value")
    with pytest.raises(RendezvousConnectionError, match="has ended"):
        store.add("n", 1)


def test_each_round_has_a_store_of_its_own(make_store):
    one, two = make_store(number=1), make_store(number=2)
    one.set("key", "1")
    one.add("n", 1)
    assert not two.check(["key"])
    assert two.num_keys() == 0
    assert two.add("n", 1) == 1


def test_a_foreign_value_is_named(client, store):
    ask(client, "txn", [], [put_op(store._store.prefix + b"k", b"x")])
    with pytest.raises(RendezvousStateError, match=r"/store/0000000003/k' contains b'x', which is not a value"):
        store.get("k")


@pytest.mark.parametrize("value", [b"x" * 1_000_000, b"+" + b"9" * 1_000_000, b"+x\x1b[2J\r\n", b"+0\xff"])
def test_an_error_escapes_a_foreign_value_and_shows_little_of_it(client, store, value):
    ask(client, "txn", [], [put_op(store._store.prefix + b"k\x1b\n", value)])
    for call in (lambda: store.get("k\x1b\n"), lambda: store.add("k\x1b\n", 1)):
        with pytest.raises(RendezvousStateError) as caught:
            call()
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 300
        assert r"k\x1b\n' contains b'" in message
        assert len(value) < 60 or f"... ({len(value)} bytes)" in message


def test_an_error_shows_little_of_a_long_value_and_a_long_key(store):
    store.set("key", "\x1b\n" * 500_000)
    with pytest.raises(ValueError, match=r"^the value of 'key' .*: b'(\\x1b\\n){30}'\.\.\. \(1000000 bytes\)$"):
        store.add("key", 1)
    with pytest.raises(LookupError, match=r"^the key 'n{200}'\.\.\. \(1000000 characters\) did not appear"):
        store.get("n" * 1_000_000, SOON)
    with pytest.raises(LookupError, match=r"^the key 'a\\x1b\\n\\udcff' did not appear"):
        store.get("a\x1b\n\udcff", SOON)


# Waiting.


def test_get_waits_for_a_late_set(store, spy, make_store):
    waiting = make_store(spy)
    result = begin(waiting.get, "late")
    eventually(lambda: spy.watched, "the watch")
    store.set("late", "value")
    assert result() == b"value"
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
    assert result.running()
    store.set(names[29], "1")
    result()
    waiting.wait(names)
    assert spy.requests == []
    assert len(spy.watched) == 3


def test_wait_waits_for_all(store):
    result = begin(store.wait, ["a", "b", "other/1"])
    store.multi_set(["a", "b"], ["1", "2"])
    assert result.running()
    store.set("other/1", "3")
    result()


def test_wait_ignores_keys_that_were_deleted(store, spy, make_store):
    store.set("key", "1")
    store.delete_key("key")
    result = begin(make_store(spy).wait, ["key"])
    eventually(lambda: spy.watched, "the watch")
    with pytest.raises(LookupError):
        store.wait(["key"], SOON)
    assert result.running()
    store.set("key", "2")
    result()


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
    assert result.running()
    store.set("late", "1")
    result()
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
    result()


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


# Many keys.


def test_multi_get_of_similar_keys_is_one_read(store, spy, make_store):
    names = [f"worker-{i}" for i in range(1000)]
    store.multi_set(names, [str(i) for i in range(1000)])
    reading = make_store(spy)
    assert reading.multi_get(names[::-1]) == [b"%d" % i for i in reversed(range(1000))]
    assert reading.check(names)
    assert spy.calls == [Call.RANGE, Call.RANGE]
    assert not reading.check([*names, "worker-1000"])


def test_multi_get_of_few_keys_is_one_read(store, spy, make_store):
    store.multi_set(["a", "z", "n1", "n2"], ["1", "2", "3", "4"])
    assert make_store(spy).multi_get(["z", "a", "z"]) == [b"2", b"1", b"2"]
    assert spy.calls == [Call.TXN]
    assert make_store(spy).multi_get(["n2", "a", "n1"]) == [b"4", b"1", b"3"]


def test_multi_get_does_not_read_all_keys_between(store, spy, make_store):
    store.multi_set([f"n/1/{i:03}" for i in range(400)], ["x"] * 400)
    names = ["n/0", *(f"n/9{i:03}" for i in range(120))]
    store.multi_set(names, names)
    assert make_store(spy).multi_get(names) == [name.encode() for name in names]
    assert spy.calls == [Call.RANGE, Call.TXN, Call.TXN]
    assert spy.requests[0][1].limit == 2 * len(names) + 64


def test_multi_get_of_names_that_are_not_similar(store, spy, make_store):
    names = [chr(ord("a") + i % 26) * (i + 1) for i in range(40)]
    store.multi_set(names, names)
    assert make_store(spy).multi_get(names) == [name.encode() for name in names]
    assert len(spy.calls) <= 2


def test_multi_get_waits_for_missing_keys(store, spy, make_store):
    store.multi_set(["n1", "n3"], ["1", "3"])
    result = begin(make_store(spy).multi_get, ["n1", "n2", "n3", "m"])
    eventually(lambda: len(spy.watched) == 2, "the watches")
    store.set("n2", "2")
    assert result.running()
    store.add("m", 4)
    assert result() == [b"1", b"2", b"3", b"4"]


def test_multi_set(store, spy, make_store):
    writing = make_store(spy)
    writing.multi_set([*map(str, range(250)), "7", "7"], ["x"] * 250 + ["y", "z"])
    assert spy.calls == [Call.TXN] * 3
    assert store.get("7") == b"z"  # the last value counts
    assert store.num_keys() == 250
    writing.multi_set(["a", "b", "c"], ["x" * 700_000] * 3)  # etcd accepts 1.5 MiB in one request
    assert len(store.get("c")) == 700_000


def test_multi_set_needs_as_many_values_as_keys(store):
    with pytest.raises(ValueError, match="as many values as keys, not 1 for 2"):
        store.multi_set(["a", "b"], ["1"])
    assert not store.check(["a"])


def test_check(store):
    store.set("a", "1")
    assert store.check(["a"])
    assert store.check(["a", "a"])
    assert not store.check(["a", "b"])


def test_delete_count_and_list(spy, make_store):
    spy.options = dataclasses.replace(spy.options, page_size=2)
    store = make_store(spy)
    assert store.num_keys() == 0
    assert store.list_keys() == []
    store.multi_set(["b", "a", "a/?", "c", "d"], ["1", "2", "3", "4", "5"])
    store.add("n", 1)
    assert store.num_keys() == 6
    assert store.list_keys() == ["a", "a/?", "b", "c", "d", "n"]
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert store.num_keys() == 5


# Numbers.


def test_add_counts_from_nothing_and_takes_any_amount(store):
    assert [store.add("n", amount) for amount in (1, 5, -10, 0, 1, 1)] == [1, 6, -4, -4, -3, -2]
    assert store.get("n") == b"-2"
    assert [store.add("m", amount) for amount in (0, 1)] == [0, 1]


@pytest.mark.parametrize("amount", [1, 2])
def test_numbers_have_64_bits(store, amount):
    most, least = 2**63 - 1, -(2**63)
    assert store.add("n", most - amount) == most - amount
    assert store.add("n", amount) == most
    with pytest.raises(ValueError, match=rf"^the value of 'n' .* is {most}; if {amount} is added to it, the sum"):
        store.add("n", amount)
    assert store.get("n") == b"%d" % most
    assert store.add("n", least) == -1
    assert store.add("n", amount) == amount - 1
    for number in (most + 1, least - 1, 10**5000):
        with pytest.raises(ValueError, match=r"^the amount added to 'n' in the etcd store must fit into 64 bits"):
            store.add("n", number)
    store.set("n", str(most + 1))
    with pytest.raises(ValueError, match=rf"^the value of 'n' .* does not fit into 64 bits: b'{most + 1}'"):
        store.add("n", amount)
    assert store.get("n") == b"%d" % (most + 1)


@pytest.mark.parametrize("amount", [1.0, 1.5, "1", None])
def test_only_integers_can_be_added(store, amount):
    with pytest.raises(TypeError, match=rf"^the amount added to 'n' .* must be an int, not {amount!r} \("):
        store.add("n", amount)
    assert not store.check(["n"])


def test_all_changes_of_a_number_compose(store):
    store.set("n", "5")
    assert store.add("n", 1) == 6
    assert store.add("n", 3) == 9
    assert store.add("n", 1) == 10
    assert store.add("n", -2) == 8
    assert store.get("n") == b"8"
    assert store.compare_set("n", "8", "80") == b"80"
    assert store.add("n", 1) == 81
    store.append("n", "0")
    assert store.get("n") == b"810"
    assert store.add("n", 1) == 811
    assert store.delete_key("n")
    assert store.add("n", 1) == 1
    assert store.multi_get(["n"]) == [b"1"]
    store.set("n", "")
    assert store.add("n", 1) == 1


def test_add_to_a_value_that_is_not_a_number(store):
    store.set("key", "x")
    for amount in (1, 2):
        with pytest.raises(ValueError, match=r"'key' in the etcd store is not a number: b'x'"):
            store.add("key", amount)
    assert store.get("key") == b"x"


def test_adding_one_takes_one_request(store, spy, make_store):
    adding = make_store(spy)
    assert [adding.add("n", 1) for _ in range(3)] == [1, 2, 3]
    assert spy.calls == [Call.TXN] * 3


def test_many_adds_at_once_lose_none(make_store):
    sums = []
    shared = make_store()  # shared by several threads

    def work(store):
        sums.extend(store.add("n", 1) for _ in range(10))

    results = [begin(work, store) for store in [shared] * 5 + [make_store() for _ in range(5)]]
    for result in results:
        result()
    assert sorted(sums) == list(range(1, 101))
    assert shared.get("n") == b"100"


def test_many_swaps_at_once_lose_none(make_store):
    results = []
    for amount in (2, -1, 1):
        store = make_store()
        results += [begin(store.add, "n", amount) for _ in range(5)]
        results += [begin(store.append, "text", "x") for _ in range(5)]
    for result in results:
        result()
    assert store.get("n") == b"10"
    assert store.get("text") == b"x" * 15


def test_a_swap_that_fails_each_time_raises_an_error(store, spy, make_store):
    class Busy(Spy):
        async def _attempt(self, call, request, timeout, deadline):
            if call is Call.TXN:
                await store._store.set("n", "1", BOUND)
            return await super()._attempt(call, request, timeout, deadline)

    spy.__class__ = Busy
    with pytest.raises(
        RendezvousTimeoutError, match=r"could not change the key 'n' .* in time: other nodes changed it"
    ):
        make_store(spy, timeout=SOON).add("n", 2)


def test_compare_set(store):
    assert store.compare_set("key", "expected", "new") == b"expected"
    assert not store.check(["key"])
    assert store.compare_set("key", "", "one") == b"one"
    assert store.compare_set("key", "", "two") == b"one"
    assert store.compare_set("key", "other", "two") == b"one"
    assert store.compare_set("key", b"one", b"two") == b"two"
    assert store.get("key") == b"two"
    store.set("empty", "")
    assert store.compare_set("empty", "", "full") == b"full"


def test_if_many_compare_and_set_one_succeeds(make_store):
    results = [begin(make_store().compare_set, "leader", "", f"node-{i}") for i in range(8)]
    assert len({result() for result in results}) == 1


def test_append(store):
    store.append("key", "a")
    store.append("key", b"b")
    assert store.get("key") == b"ab"


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
    (late,) = spy.lost

    async def deliver():
        return await spy.request(*late, asyncio.get_running_loop().time() + BOUND)

    background.run(deliver())
    assert store.get("n") == b"2"


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
    assert sorted(result() for result in results) == list(range(1, 21))
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
        result()
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
    assert results[0]() == b"value"
    results[1]()


def test_without_etcd_operations_fail_after_the_timeout(proxied):
    proxy, store = proxied
    proxy.cut()
    store.set_timeout(SOON)
    start = time.monotonic()
    for call in (
        lambda: store.get("key"),
        lambda: store.set("key", "value"),
        lambda: store.wait(["key"]),
        lambda: store.add("n", 1),
        lambda: store.num_keys(),
    ):
        with pytest.raises(RendezvousConnectionError, match="etcd"):
            call()
    assert time.monotonic() - start < 15


def test_an_etcd_that_does_not_answer_is_not_reported_as_a_missing_key(proxied):
    proxy, store = proxied
    client = store._store._requests.client
    result = begin(store.get, "never", timedelta(seconds=2))
    eventually(lambda: client._watches._created, "the watch")
    proxy.cut()
    with pytest.raises(RendezvousConnectionError):
        result()


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
        begin(store.wait, ["key"])()
