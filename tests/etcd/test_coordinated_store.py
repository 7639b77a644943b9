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
from rendezvous.coordinated.store import EtcdStore
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.coordinated_job import Job
from tests.nodes import BOUND, eventually, join
from tests.proxy import Proxy

SOON = timedelta(seconds=0.3)


def made_a_change(answer):
    """Whether a transaction changed something, or found that its first try did."""
    return answer.succeeded or any(
        response.HasField("response_put")
        or (response.HasField("response_txn") and made_a_change(response.response_txn))
        for response in answer.responses
    )


class Spy(GrpcEtcdClient):
    """Counts what is asked for, and does as it is told with the requests that change something."""

    def __init__(self, endpoints, credentials=None):
        super().__init__(endpoints, credentials)
        self.asked = []
        self.watched = []
        self.lose = 0
        """How many answers that tell of a change are still to be lost on the way."""
        self.after_loss = None
        self.late = []
        """Requests that etcd has applied before and will get again."""

    async def _attempt(self, call, request, timeout, deadline):
        self.asked.append((call, request))
        answer = await super()._attempt(call, request, timeout, deadline)
        if self.lose and call is Call.TXN and made_a_change(answer):
            self.lose -= 1
            self.late.append((call, request))
            if self.after_loss is not None:
                await self.after_loss()
            raise UnavailableError("the answer was lost")
        return answer

    async def watch(self, key, end, receive, lost, deadline, revision=0):
        self.watched.append((key, end, revision))
        return await super().watch(key, end, receive, lost, deadline, revision)

    def forget(self):
        self.asked.clear()
        self.watched.clear()

    @property
    def calls(self):
        return [call for call, _ in self.asked]


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
    """Have the client do something, on its loop."""

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
    """Call in a thread; the result, or the error, is for the caller to ask for."""
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
        assert not thread.is_alive(), "waited in vain"
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
def test_any_bytes_are_a_value_and_only_numbers_are_numbers(store, value):
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


def test_keys_stand_in_etcd_as_they_are_called_and_hang_on_the_lease(client, keys, make_store):
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
    with pytest.raises(RendezvousConnectionError, match=r"the lease of the etcd store .*/store/0000000003/' is gone"):
        store.set("key", "value")
    with pytest.raises(RendezvousConnectionError, match="is gone"):
        store.add("n", 1)


def test_a_round_s_store_is_its_own(make_store):
    one, two = make_store(number=1), make_store(number=2)
    one.set("key", "1")
    one.add("n", 1)
    assert not two.check(["key"])
    assert two.num_keys() == 0
    assert two.add("n", 1) == 1


def test_a_foreign_value_is_named(client, keys, store):
    ask(
        client,
        "txn",
        [],
        [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=store._store.prefix + b"k", value=b"x"))],
    )
    with pytest.raises(RendezvousStateError, match=r"/store/0000000003/k' holds b'x', which is not a value"):
        store.get("k")


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
def test_no_time_to_wait_is_time_to_look(store, timeout):
    store.set("key", "value")
    assert store.get("key", timeout) == b"value"
    store.wait(["key"], timeout)
    with pytest.raises(LookupError):
        store.wait(["never"], timeout)
    with pytest.raises(LookupError):
        store.get("never", timeout)


def test_no_keys_are_there(store):
    store.wait([])
    assert store.multi_get([]) == []
    assert store.check([])
    store.multi_set([], [])


def test_wait_is_one_watch_and_nothing_else(store, spy, make_store):
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
    assert spy.asked == []
    assert len(spy.watched) == 3


def test_wait_waits_for_all(store):
    result = begin(store.wait, ["a", "b", "other/1"])
    store.multi_set(["a", "b"], ["1", "2"])
    assert result.running()
    store.set("other/1", "3")
    result()


def test_what_was_deleted_is_waited_for_again(store, spy, make_store):
    store.set("key", "1")
    store.delete_key("key")
    result = begin(make_store(spy).wait, ["key"])
    eventually(lambda: spy.watched, "the watch")
    with pytest.raises(LookupError):
        store.wait(["key"], SOON)
    assert result.running()
    store.set("key", "2")
    result()


def test_what_a_long_replay_says_is_looked_at(store, spy, make_store):
    # etcd replays 1,000 revisions at a time: that the key was deleted comes with the second lot.
    async def write():
        await asyncio.gather(*(store._store.set("key", "x", BOUND) for _ in range(1005)))

    background.run(write())
    store.delete_key("key")
    waiting = make_store(spy)
    with pytest.raises(LookupError):
        waiting.wait(["key"], timedelta(seconds=2))
    store.set("key", "x")
    waiting.wait(["key"])


def test_a_compacted_past_is_asked_for_instead(client, store, spy, make_store):
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
    assert spy.calls == [Call.TXN]  # it knows by now
    assert [since for _, _, since in spy.watched] == [revision_now + 1]


@pytest.mark.parametrize("long_ago", ["unknown", "long ago"])
def test_where_the_past_is_long_or_unknown_it_is_asked_for(store, spy, make_store, monkeypatch, long_ago):
    monkeypatch.setattr("rendezvous.coordinated.store._LONG_HISTORY", 1)
    waiting = make_store(spy, since=0) if long_ago == "unknown" else make_store(spy)
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


def test_multi_get_of_keys_alike_is_one_read(store, spy, make_store):
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


def test_multi_get_does_not_read_all_that_lies_between(store, spy, make_store):
    store.multi_set([f"n/1/{i:03}" for i in range(400)], ["x"] * 400)
    names = ["n/0", *(f"n/9{i:03}" for i in range(120))]
    store.multi_set(names, names)
    assert make_store(spy).multi_get(names) == [name.encode() for name in names]
    assert spy.calls == [Call.RANGE, Call.TXN, Call.TXN]
    assert spy.asked[0][1].limit == 2 * len(names) + 64


def test_multi_get_of_names_with_nothing_in_common(store, spy, make_store):
    names = [chr(ord("a") + i % 26) * (i + 1) for i in range(40)]
    store.multi_set(names, names)
    assert make_store(spy).multi_get(names) == [name.encode() for name in names]
    assert len(spy.calls) <= 2


def test_multi_get_waits_for_what_is_missing(store, spy, make_store):
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
    assert store.get("7") == b"z"  # the last one counts
    assert store.num_keys() == 250
    writing.multi_set(["a", "b", "c"], ["x" * 700_000] * 3)  # etcd takes 1.5 MiB at once
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
    assert store.add("huge", 10**30) == 10**30
    assert store.add("huge", 1) == 10**30 + 1


def test_all_that_changes_a_number_composes(store):
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


def test_add_to_what_is_no_number(store):
    store.set("key", "x")
    for amount in (1, 2):
        with pytest.raises(ValueError, match=r"'key' in the etcd store is not a number: b'x'"):
            store.add("key", amount)
    assert store.get("key") == b"x"


def test_to_add_one_is_one_request(store, spy, make_store):
    adding = make_store(spy)
    assert [adding.add("n", 1) for _ in range(3)] == [1, 2, 3]
    assert spy.calls == [Call.TXN] * 3


def test_many_adds_at_once_lose_none(make_store):
    sums = []
    shared = make_store()  # by several threads

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


def test_a_swap_that_others_win_each_time_says_so(store, spy, make_store):
    class Busy(Spy):
        async def _attempt(self, call, request, timeout, deadline):
            if call is Call.TXN:
                await store._store.set("n", "1", BOUND)
            return await super()._attempt(call, request, timeout, deadline)

    spy.__class__ = Busy
    with pytest.raises(RendezvousTimeoutError, match="could not change 'n' in time: others changed it"):
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


def test_of_many_who_compare_and_set_one_wins(make_store):
    results = [begin(make_store().compare_set, "leader", "", f"node-{i}") for i in range(8)]
    assert len({result() for result in results}) == 1


def test_append(store):
    store.append("key", "a")
    store.append("key", b"b")
    assert store.get("key") == b"ab"


# When answers are lost.


@pytest.mark.parametrize(
    ("before", "amount", "total"), [(None, 1, 1), ("c", 1, 2), ("5", 1, 6), (None, 3, 3), ("c", 3, 4), ("5", -3, 2)]
)
@pytest.mark.parametrize("losses", [1, 3])
def test_an_addition_whose_answer_is_lost_is_made_once(store, spy, make_store, before, amount, total, losses):
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
def test_the_sum_of_an_addition_whose_answer_is_lost_is_that_of_its_moment(store, spy, make_store, amount):
    store.add("n", 10)

    async def others():
        await store._store.add("n", 1, BOUND)
        await store._store.add("n", 100, BOUND)

    spy.lose, spy.after_loss = 1, others
    assert make_store(spy).add("n", amount) == 10 + amount
    assert store.get("n") == b"%d" % (111 + amount)


def test_an_addition_that_etcd_applies_late_counts_for_nothing(store, spy, make_store):
    adding = make_store(spy)
    spy.lose = 1
    assert adding.add("n", 1) == 1
    assert adding.add("n", 1) == 2
    (late,) = spy.late

    async def deliver():
        return await spy.request(*late, asyncio.get_running_loop().time() + BOUND)

    background.run(deliver())
    assert store.get("n") == b"2"


def test_an_addition_that_etcd_has_forgotten_is_not_made_twice(client, store, spy, make_store):
    async def others():
        await store._store.add("n", 1, BOUND)
        _, now = await client.range(b"nothing", b"", asyncio.get_running_loop().time() + BOUND)
        await send(client._endpoints.current.channel, rpc_pb2.CompactionRequest(revision=now, physical=True))

    spy.lose, spy.after_loss = 1, others
    with pytest.raises(RendezvousConnectionError, match=r"changed 'n' but lost the answer.*not changed twice"):
        make_store(spy).add("n", 1)
    assert store.get("n") == b"2"


@pytest.mark.parametrize("losses", [1, 2])
def test_other_changes_whose_answer_is_lost_are_made_once(store, spy, make_store, losses):
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


def test_additions_of_many_threads_whose_answers_are_lost_are_made_once(store, spy, make_store):
    adding = make_store(spy)
    spy.lose = 25
    results = [begin(adding.add, "n", 1) for _ in range(20)]
    assert sorted(result() for result in results) == list(range(1, 21))
    assert store.get("n") == b"20"


# When etcd is away.


@pytest.fixture
def proxied(etcd3, make_client, make_store):
    with Proxy(etcd3.get_port()) as proxy:
        yield proxy, make_store(make_client(proxy.port))


def test_operations_outlive_a_broken_connection(proxied):
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


def test_a_wait_outlives_a_broken_connection(proxied, store):
    proxy, proxied_store = proxied
    results = [begin(proxied_store.get, "late"), begin(proxied_store.wait, ["late"])]
    client = proxied_store._store._client
    eventually(lambda: len(client._watches._created) == 2, "the watches")
    proxy.cut()
    store.set("late", "value")
    proxy.restore()
    assert results[0]() == b"value"
    results[1]()


def test_without_etcd_it_gives_up_when_the_time_is_up(proxied):
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


def test_an_etcd_that_went_away_is_told_from_a_key_that_did_not_come(proxied):
    proxy, store = proxied
    client = store._store._client
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
