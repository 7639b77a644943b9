"""The store on etcd's v2 API."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import etcd as python_etcd
import pytest

from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.etcd.v2.client import EtcdClient
from rendezvous.etcd.v2.store import EtcdStore
from tests.nodes import in_thread
from tests.proxy import Proxy

pytestmark = pytest.mark.both_twins

SOON = timedelta(seconds=0.3)


@pytest.fixture
def store(etcd, run_id):
    client = EtcdClient([(etcd.get_host(), etcd.get_port())])
    return EtcdStore(client, f"/stores/{run_id}", timedelta(seconds=30))


def later(call, *arguments):
    timer = threading.Timer(0.2, call, arguments)
    timer.start()
    return timer


def test_set_and_get(store):
    store.set("key", "value")
    assert store.get("key") == b"value"
    store.set("key", b"\x00\xff")
    assert store.get("key") == b"\x00\xff"
    store.set("empty", b"")
    assert store.get("empty") == b""


@pytest.mark.parametrize("key", ["a/b", "a b", "ключ", "a?b#c%d", "x" * 300, "ab?"])
def test_any_text_is_a_key(store, key):
    store.set(key, "value")
    assert store.get(key) == b"value"
    assert store.delete_key(key)


def test_keys_and_values_are_stored_as_torch_stores_them(etcd, store):
    store.set("torch.rendezvous.job.0/key", "value")
    raw = etcd.get_client().read(store.prefix + "dG9yY2gucmVuZGV6dm91cy5qb2IuMC9rZXk=")
    assert raw.value == "dmFsdWU="


def test_the_client_may_be_a_client_of_python_etcd(etcd, run_id):
    store = EtcdStore(etcd.get_client(), f"/stores/{run_id}/")
    assert store.timeout == timedelta(seconds=300)
    assert store.add("n", 2) == 2
    assert store.get("n") == b"2"


@pytest.mark.parametrize("value", [3, None, [1]])
def test_only_text_and_bytes_are_values(store, value):
    with pytest.raises(ValueError, match="must be str or bytes"):
        store.set("key", value)


def test_get_waits_for_a_late_set(store):
    later(store.set, "late", "value")
    assert store.get("late") == b"value"


def test_the_timeout_of_get_and_wait_names_the_key(store):
    with pytest.raises(LookupError, match=r"'never' did not appear in the etcd store within 0\.3 s"):
        store.get("never", SOON)
    store.set("there", "1")
    with pytest.raises(LookupError, match="'never'"):
        store.wait(["there", "never"], SOON)
    store.set_timeout(SOON)
    with pytest.raises(LookupError, match="'never'"):
        store.multi_get(["never"])


def test_wait_waits_for_all(store):
    later(store.multi_set, ["a", "b"], ["1", "2"])
    store.wait(["a", "b"])
    assert store.multi_get(["b", "a"]) == [b"2", b"1"]


def test_a_wait_ends_while_other_keys_change_often(store):
    # More changes than etcd keeps (1,000): a watch that starts too late must notice.
    def noise():
        for i in range(1100):
            store.set(f"noise-{i % 7}", str(i))
        store.set("key", "value")

    thread = threading.Thread(target=noise)
    thread.start()
    assert store.get("key", timedelta(seconds=60)) == b"value"
    thread.join()


def test_a_get_only_reads_its_own_key(store):
    asked = []

    class Spy:
        def __getattr__(self, name):
            def call(key, *arguments, **options):
                asked.append(key)
                return getattr(store.client, name)(key, *arguments, **options)

            return call

    spied = EtcdStore(Spy(), store.prefix)
    store.set("other", "1")
    later(store.set, "key", "value")
    assert spied.get("key") == b"value"
    spied.wait(["key"])
    assert set(asked) == {store._path("key")}


def test_check(store):
    store.set("a", "1")
    assert store.check(["a"])
    assert not store.check(["a", "b"])
    assert store.check([])


def test_add_starts_at_0_and_accepts_any_integer(store):
    assert [store.add("n", amount) for amount in (1, 5, -10, 0)] == [1, 6, -4, -4]
    assert store.get("n") == b"-4"


@pytest.mark.parametrize(
    ("value", "quoted"),
    [(b"x", "b'x'"), (b"\x1b[31m", r"b'\\x1b\[31m'"), (b"x" * 1000, rf"b'{'x' * 60}'\.\.\. \(1000 bytes\)")],
    ids=len,
)
def test_add_to_a_value_that_is_not_a_number(store, value, quoted):
    store.set("key", value)
    with pytest.raises(ValueError, match=rf"^the value of 'key' in the etcd store is not a number: {quoted}$"):
        store.add("key", 1)
    assert store.get("key") == value


@pytest.mark.parametrize(
    ("amount", "quoted"),
    [
        (1.5, r"1\.5 \(float\)"),
        ("1", r"'1' \(str\)"),
        (None, r"None \(NoneType\)"),
        ("x" * 99, rf"'{'x' * 59} \(str\)"),
    ],
)
def test_only_integers_can_be_added(store, amount, quoted):
    store.set("k", "1")
    with pytest.raises(TypeError, match=rf"^the amount added to 'k' in the etcd store must be an int, not {quoted}$"):
        store.add("k", amount)
    assert store.get("k") == b"1"


def test_numbers_have_64_bits(store):
    most, least = 2**63 - 1, -(2**63)
    assert store.add("n", most) == most
    with pytest.raises(ValueError, match=rf"^the value of 'n' .* is {most}; if 1 is added to it, the sum does not fit"):
        store.add("n", 1)
    assert store.add("n", least) == -1
    for number in (most + 1, least - 1, 10**5000):
        with pytest.raises(ValueError, match=r"^the amount added to 'n' in the etcd store must fit into 64 bits"):
            store.add("n", number)
    store.set("n", str(most + 1))
    with pytest.raises(ValueError, match=rf"^the value of 'n' .* does not fit into 64 bits: b'{most + 1}'"):
        store.add("n", 1)


def test_a_key_is_escaped_in_errors(store):
    with pytest.raises(LookupError, match=r"^the key 'a\\x1b\\n' did not appear"):
        store.get("a\x1b\n", SOON)


def test_a_foreign_value_is_named(etcd, store):
    etcd.get_client().write(store._path("key"), "x" * 101)
    for call in (lambda: store.get("key"), lambda: store.add("key", 1)):
        with pytest.raises(
            RendezvousStateError, match=r"the key 'key' .* contains 'x{60}'\.\.\. \(101 characters\), which"
        ):
            call()


def test_many_adds_at_once_lose_none(store):
    sums = []
    threads = [threading.Thread(target=lambda: sums.extend(store.add("n", 1) for _ in range(5))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range(1, 51))


def test_compare_set(store):
    assert store.compare_set("key", "expected", "new") == b"expected"
    assert not store.check(["key"])
    assert store.compare_set("key", "", "one") == b"one"
    assert store.compare_set("key", "", "two") == b"one"
    assert store.compare_set("key", "other", "two") == b"one"
    assert store.compare_set("key", b"one", b"two") == b"two"
    assert store.get("key") == b"two"


def test_append(store):
    store.append("key", "a")
    store.append("key", b"b")
    assert store.get("key") == b"ab"


def test_delete_and_count(store):
    assert store.num_keys() == 0
    store.multi_set(["a", "b", "a/?"], ["1", "2", "3"])
    assert store.num_keys() == 3
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert store.num_keys() == 2


def test_list_keys(etcd, store):
    assert store.list_keys() == []
    keys = sorted(["a", "b", "a/?", "?", "ab?", "a?b", "??>", "ключ", "x" * 300, "a\udcff"], key=os.fsencode)
    for key in keys:
        store.set(key, "")
    etcd.get_client().write(f"{store.prefix}not-a-key", "")
    assert store.list_keys() == keys


def test_multi_set_needs_as_many_values_as_keys(store):
    with pytest.raises(ValueError, match="as many values as keys, not 1 for 2"):
        store.multi_set(["a", "b"], ["1"])
    assert not store.check(["a"])


@pytest.fixture
def proxied(etcd, run_id):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port)], discover=False, read_timeout=5)
        yield proxy, EtcdStore(client, f"/stores/{run_id}", timedelta(seconds=20))


def test_operations_continue_after_a_broken_connection(proxied):
    proxy, store = proxied
    store.set("key", "value")
    for call in (
        lambda: store.get("key"),
        lambda: store.set("key", "value"),
        lambda: store.check(["key"]),
        lambda: store.add("n", 1),
        lambda: store.append("text", "x"),
        lambda: store.delete_key("nothing"),
    ):
        proxy.cut()
        later(proxy.restore)
        call()
    assert store.get("n") == b"1"
    assert store.get("text") == b"x"


def test_a_wait_continues_after_a_broken_connection(proxied, store):
    proxy, proxied_store = proxied
    later(proxy.cut)
    restore = threading.Timer(0.5, proxy.restore)
    restore.start()
    setter = threading.Timer(0.8, lambda: EtcdStore(store.client, proxied_store.prefix).set("late", "value"))
    setter.start()
    assert proxied_store.get("late") == b"value"
    setter.join()


def test_without_etcd_an_operation_fails_at_its_timeout(proxied):
    proxy, store = proxied
    proxy.cut()
    store.set_timeout(SOON)
    with pytest.raises(RendezvousConnectionError, match="cannot read 'key'"):
        in_thread(lambda: store.get("key")).result(5)
    with pytest.raises(RendezvousConnectionError, match="cannot write 'key'"):
        in_thread(lambda: store.set("key", "value")).result(5)


class LostResponses:
    """A client whose first write is applied, but whose response is lost."""

    def __init__(self, client, before=None):
        self._client, self._before, self.lost = client, before, 0

    def __getattr__(self, name):
        return getattr(self._client, name)

    def write(self, *arguments, **options):
        result = self._client.write(*arguments, **options)
        if self.lost == 0:
            self.lost += 1
            raise python_etcd.EtcdConnectionFailed("the connection broke")
        return result

    def delete(self, *arguments, **options):
        result = self._client.delete(*arguments, **options)
        if self.lost == 0:
            self.lost += 1
            raise python_etcd.EtcdConnectionFailed("the connection broke")
        return result


def test_a_deletion_whose_response_is_lost_has_deleted(store):
    losing = EtcdStore(LostResponses(store.client), store.prefix, timedelta(seconds=20))
    store.set("key", "value")
    assert losing.delete_key("key")
    assert not store.check(["key"])
    losing.client.lost = 0
    assert not losing.delete_key("key")


def test_deleting_a_key_that_does_not_exist_is_false_even_if_a_request_is_lost(store):
    class LostRequests(LostResponses):
        def delete(self, *arguments, **options):
            if self.lost == 0:
                self.lost += 1
                raise python_etcd.EtcdConnectionFailed("the connection broke")
            return self._client.delete(*arguments, **options)

    losing = EtcdStore(LostRequests(store.client), store.prefix, timedelta(seconds=20))
    assert not losing.delete_key("nothing")
    store.set("key", "value")
    assert losing.delete_key("key")


def test_a_deletion_that_fails_over_has_deleted(etcd, run_id):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port), ("localhost", etcd.get_port())], discover=False, read_timeout=2)
        store = EtcdStore(client, f"/stores/{run_id}", timedelta(seconds=20))
        store.set("key", "value")
        send = client._clients[0].delete

        def delete_without_response(key):
            # etcd receives the request; its response is lost.
            etcd.get_client().delete(key)
            proxy.stall()
            return send(key)

        client._clients[0].delete = delete_without_response
        assert store.delete_key("key")
        assert client.endpoint == etcd.get_endpoint()
        proxy.resume()


def test_an_addition_whose_response_is_lost_is_not_repeated(store):
    losing = EtcdStore(LostResponses(store.client), store.prefix, timedelta(seconds=20))
    with pytest.raises(
        RendezvousConnectionError, match="it is not known whether the change was applied, and it is not repeated"
    ):
        losing.add("n", 1)
    assert store.get("n") == b"1"


def test_an_addition_whose_request_is_lost_is_repeated(store):
    class LostRequests(LostResponses):
        def write(self, *arguments, **options):
            if self.lost == 0:
                self.lost += 1
                raise python_etcd.EtcdConnectionFailed("the connection broke")
            return self._client.write(*arguments, **options)

    losing = EtcdStore(LostRequests(store.client), store.prefix, timedelta(seconds=20))
    assert losing.add("n", 1) == 1
    assert store.get("n") == b"1"
