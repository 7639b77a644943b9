"""Values, counters, and operations on many keys."""

from __future__ import annotations

import dataclasses

import pytest

from rendezvous.api import RendezvousConnectionError, RendezvousStateError, RendezvousTimeoutError
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.operations import put_op
from tests.etcd.coordinated_store.spy import SOON, Spy, ask, begin
from tests.nodes import BOUND, eventually

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
    assert not result.done()
    store.add("m", 4)
    assert result.result(BOUND) == [b"1", b"2", b"3", b"4"]


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
        result.result(BOUND)
    assert sorted(sums) == list(range(1, 101))
    assert shared.get("n") == b"100"


def test_many_swaps_at_once_lose_none(make_store):
    results = []
    for amount in (2, -1, 1):
        store = make_store()
        results += [begin(store.add, "n", amount) for _ in range(5)]
        results += [begin(store.append, "text", "x") for _ in range(5)]
    for result in results:
        result.result(BOUND)
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
    assert len({result.result(BOUND) for result in results}) == 1


def test_append(store):
    store.append("key", "a")
    store.append("key", b"b")
    assert store.get("key") == b"ab"
