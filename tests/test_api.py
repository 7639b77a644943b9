from __future__ import annotations

import importlib.metadata

import pytest

import rendezvous
from rendezvous import (
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from rendezvous.store import PrefixStore, Store


class DictStore(Store):
    """A store in memory, for the tests of what is built on a store."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def set(self, key, value):
        self.data[key] = value if isinstance(value, bytes) else value.encode()

    def get(self, key, timeout=None):
        return self.data[key]

    def wait(self, keys, timeout=None):
        self.multi_get(keys)

    def check(self, keys):
        return all(key in self.data for key in keys)

    def add(self, key, num):
        self.set(key, str(int(self.data.get(key, b"0")) + num))
        return int(self.data[key])

    def compare_set(self, key, expected_value, desired_value):
        if self.data.get(key, b"") == expected_value:
            self.set(key, desired_value)
        return self.data.get(key, expected_value)

    def append(self, key, value):
        self.data[key] = self.data.get(key, b"") + value

    def delete_key(self, key):
        return self.data.pop(key, None) is not None

    def num_keys(self):
        return len(self.data)

    def list_keys(self):
        return sorted(self.data)

    def multi_get(self, keys, timeout=None):
        return [self.data[key] for key in keys]

    def multi_set(self, keys, values):
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)


def params(**options) -> RendezvousParameters:
    return RendezvousParameters("backend", "host:1", "job", 1, 2, **options)


def test_the_public_names_are_there():
    assert all(hasattr(rendezvous, name) for name in rendezvous.__all__)


def test_the_version_is_that_of_the_distribution():
    assert rendezvous.__version__ == importlib.metadata.version("etcd-rendezvous")
    with pytest.raises(AttributeError, match="module 'rendezvous' has no attribute 'nothing'"):
        _ = rendezvous.nothing


def test_the_repr_of_the_result_of_a_round():
    info = RendezvousInfo(DictStore(), 1, 8, RendezvousStoreInfo("fe80::1", 29500))
    assert repr(info) == "RendezvousInfo(rank=1, world_size=8, bootstrap=[fe80::1]:29500)"
    assert repr(RendezvousInfo(DictStore(), 0, 1, None)) == "RendezvousInfo(rank=0, world_size=1, bootstrap=None)"


@pytest.mark.parametrize(
    ("backend", "least", "most", "reason"),
    [("", 1, 2, "must not be empty"), ("b", 0, 2, "at least 1, not 0"), ("b", 3, 2, r"maximum number of nodes \(2\)")],
)
def test_parameters_are_checked(backend, least, most, reason):
    with pytest.raises(ValueError, match=reason):
        RendezvousParameters(backend, "", "job", least, most)


def test_values_come_with_their_defaults():
    given = params(a="x", b=None)
    assert (given.get("a"), given.get("b", 3), given.get("c"), given.get("c", 3)) == ("x", None, None, 3)
    assert given.config == {"a": "x", "b": None}


@pytest.mark.parametrize("value", ["1", "True", "T", "yes", "Y", 1, True])
def test_true(value):
    assert params(key=value).get_as_bool("key") is True


@pytest.mark.parametrize("value", ["0", "False", "f", "NO", "n", 0, False])
def test_false(value):
    assert params(key=value).get_as_bool("key") is False


@pytest.mark.parametrize("value", ["", "maybe", "2", 2, -1, 1.0, []])
def test_another_value_than_a_boolean(value):
    with pytest.raises(ValueError, match="'key' must be a truth value"):
        params(key=value).get_as_bool("key")


def test_bool_and_int_defaults():
    assert params().get_as_bool("key") is None
    assert params().get_as_bool("key", True) is True
    assert params().get_as_int("key") is None
    assert params().get_as_int("key", 5) == 5


@pytest.mark.parametrize(("value", "expected"), [("7", 7), (" 7 ", 7), ("-3", -3), (4, 4)])
def test_int(value, expected):
    assert params(key=value).get_as_int("key") == expected


@pytest.mark.parametrize("value", ["a", "", "1.5", "3x", [], float("inf"), float("nan")])
def test_not_an_int(value):
    with pytest.raises(ValueError, match="'key' must be an integer"):
        params(key=value).get_as_int("key")


class Handler(RendezvousHandler):
    def __init__(self, backend):
        self.backend = backend

    def get_backend(self):
        return self.backend

    def next_rendezvous(self):
        return RendezvousInfo(DictStore(), 0, 1, None)

    def is_closed(self):
        return False

    def set_closed(self):
        pass

    def num_nodes_waiting(self):
        return 0

    def get_run_id(self):
        return "job"

    def shutdown(self):
        return True


def test_the_registry_creates_a_handler_of_a_registered_backend():
    registry = RendezvousHandlerRegistry()

    def create(given):
        return Handler(given.backend)

    registry.register("backend", create)
    registry.register("backend", create)
    handler = registry.create_handler(params())
    assert isinstance(handler, Handler)
    assert handler.use_agent_store is False


def test_the_registry_refuses_what_is_wrong():
    registry = RendezvousHandlerRegistry()
    registry.register("backend", lambda given: Handler("other"))
    with pytest.raises(ValueError, match="must not be empty"):
        registry.register("", lambda given: Handler(""))
    with pytest.raises(ValueError, match="already registered"):
        registry.register("backend", lambda given: Handler("backend"))
    with pytest.raises(RuntimeError, match="is of backend 'other'"):
        registry.create_handler(params())
    with pytest.raises(ValueError, match="'nothing' is not registered; registered are: backend"):
        registry.create_handler(RendezvousParameters("nothing", "", "job", 1, 1))


def test_rank_0_publishes_where_the_workers_meet():
    store = DictStore()
    assert RendezvousStoreInfo.build(0, store, "host", 123) == RendezvousStoreInfo("host", 123)
    assert RendezvousStoreInfo.build(1, store, "elsewhere") == RendezvousStoreInfo("host", 123)
    assert store.data == {"MASTER_ADDR": b"host", "MASTER_PORT": b"123"}


def test_rank_0_chooses_a_free_port_and_its_own_name():
    info = RendezvousStoreInfo.build(0, DictStore(), None)
    assert info.master_addr
    assert 0 < info.master_port < 65536


def test_a_prefix_store_keeps_its_keys_apart():
    plain = DictStore()
    store = PrefixStore("job.1", plain)
    store.set("a", "1")
    store.multi_set(["b", "c"], ["2", "3"])
    assert plain.data == {"job.1/a": b"1", "job.1/b": b"2", "job.1/c": b"3"}
    assert store.multi_get(["a", "b"]) == [b"1", b"2"]
    assert store.get("c") == b"3"
    assert store.check(["a", "c"])
    assert not store.check(["d"])
    assert store.add("n", 4) == 4
    assert store.compare_set("a", b"1", b"9") == b"9"
    store.append("a", b"8")
    store.wait(["a"])
    assert plain.data["job.1/a"] == b"98"
    assert store.delete_key("a")
    assert not store.delete_key("a")
    plain.set("job.10/a", "1")
    assert store.list_keys() == ["b", "c", "n"]
    assert store.num_keys() == plain.num_keys() == 4
    assert store.underlying_store is plain


def test_a_prefix_store_shares_the_timeout_of_its_store():
    from datetime import timedelta

    plain = DictStore()
    PrefixStore("p", plain).set_timeout(timedelta(seconds=7))
    assert plain.timeout == PrefixStore("q", plain).timeout == timedelta(seconds=7)
