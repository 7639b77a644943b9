"""Texts and numbers from a command line, a user's program, or etcd: keys, values, endpoints, configuration, errors."""

from __future__ import annotations

import logging

import grpc

from rendezvous import config
from rendezvous.api import RendezvousParameters, RendezvousStateError
from rendezvous.config.setting import unprintable
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Limits, RankPolicy
from rendezvous.coordinated.store import encoding
from rendezvous.coordinated.store.idempotency import IdempotencyKey
from rendezvous.etcd.v2.client import key_path
from rendezvous.etcd.v3.errors import EtcdError, translate, translate_watch_cancel
from rendezvous.store import add_up, missing_keys_message, quoted_key, to_amount, to_bytes, to_number, to_text
from rendezvous.utils import (
    format_endpoint,
    listed,
    natural_key,
    parse_rendezvous_endpoint,
    parse_rendezvous_endpoints,
    quoted,
)
from tests.fuzz.checks import check_message, outcome, refusal
from tests.fuzz.reader import Reader

__all__ = ["check_config", "check_endpoints", "check_errors", "check_keys", "check_store"]


def check_store(data: Reader) -> None:
    """Keys, values and counters of a store."""
    key, version, number = data.data(), abs(data.number()) % 2**62, data.number()
    text = data.text()
    stored = data.pick((b"", b"=", b"+", b"+-", b"+0", b",", b"-")) + data.rest()
    value = outcome(lambda: encoding.decode(key, stored, version), RendezvousStateError)
    if refusal(value) is None:
        outcome(lambda: to_number(key, value), ValueError)
        if stored.startswith(b"="):
            assert encoding.encode(value) == stored
    assert encoding.decode(key, encoding.encode(stored), version) == stored
    assert to_bytes(to_text(key)) == key
    encoded = outcome(lambda: encoding.encode(text), ValueError)
    if isinstance(encoded, bytes):
        assert to_text(encoding.decode(key, encoded, version)) == text
    amount = outcome(lambda: to_amount(key, number), ValueError)
    if amount == number:
        assert to_number(key, encoding.decode(key, encoding.encode_number(number, version), version)) == number
        outcome(lambda: add_up(key, number, version), ValueError)
    else:
        check_message(amount[1])
    check_message(quoted_key(key))
    check_message(missing_keys_message([key] * data.byte(), float(version)))
    once, has_made = IdempotencyKey(key, version + 2), bool(version % 2)
    assert once.carried_out.value < once.put(0, made=has_made).request_put.value


def check_keys(data: Reader) -> None:
    """Run ids, prefixes and node ids in keys."""
    prefix, one, other = data.text(), data.text(), data.text()
    if unprintable(prefix + one + other) is not None:
        return  # config.check() refuses them
    roots = [Keys(prefix, run_id).root for run_id in (one, other) if run_id]
    if len(roots) == 2 and one != other:
        nested = roots[0].startswith(roots[1]) or roots[1].startswith(roots[0])
        assert not nested, "a run can reach another"
    keys, node_id = Keys("/p", one or "run"), abs(data.number()) % 2**64
    assert keys.node_id(keys.node(node_id)) == node_id
    foreign = outcome(lambda: keys.node_id(keys.nodes + data.data()), RendezvousStateError)
    refusal(foreign)
    a, b = natural_key(one[:1024]), natural_key(other[:1024])
    assert (a < b) + (b < a) + (a == b) == 1, "no order of addresses"
    outcome(lambda: key_path(one), ValueError)
    raw = data.rest()
    for text in (printable(raw), quoted(raw), quoted(one), listed([quoted(one)] * 20)):
        check_message(text or "-")


def check_endpoints(data: Reader) -> None:
    """Endpoints, as a user writes them."""
    text = ",".join(data.text() for _ in range(data.byte() % 3 + 1)) if data.flag() else data.rest().decode("latin-1")
    found = outcome(lambda: parse_rendezvous_endpoints(text, 2379), ValueError)
    if isinstance(found, tuple):
        return
    assert found
    assert len(set(found)) == len(found)
    for host, port in found:
        assert host
        assert 0 <= port < 2**16
        assert parse_rendezvous_endpoint(format_endpoint(host, port), 1) == (host, port), (host, port)


_NAMES = sorted({setting.name for setting in config.SETTINGS})


def check_config(data: Reader) -> None:
    """A configuration, as torchrun passes it: a handler gets as far as the connection, or there is a ValueError."""
    backend = data.pick(tuple(config.Backend))
    values = {}
    for _ in range(data.byte() % 6):
        name = data.pick(_NAMES) if data.byte() % 8 else data.text()
        if name in ("backend", "endpoint", "run_id", "min_nodes", "max_nodes", "local_addr"):
            continue
        values[name] = data.text() if data.flag() else data.plain()
    sizes, names = (data.number(), data.number()), (data.text(), data.text())
    outcome(lambda: _configure(backend, names, sizes, values), ValueError)


def _configure(backend: config.Backend, names: tuple[str, str], sizes: tuple[int, int], values: dict) -> None:  # type: ignore[type-arg]
    params = RendezvousParameters(backend.value, "localhost", names[0], *sizes, names[1], **values)
    logging.disable()
    try:
        config.check(params, backend)
        config.connection(params, backend)
    finally:
        logging.disable(logging.NOTSET)
    if backend is not config.Backend.COORDINATED:
        return
    last_call, policy = config.last_call_timeout(params, backend), RankPolicy(config.RANK_POLICY.read(params))
    assert 0 < last_call < config.JOIN_TIMEOUT.read(params)
    Limits(*sizes, last_call, config.NODE_UNIT.read(params), rank_policy=policy)
    topology, hint = config.TOPOLOGY.read(params), config.RANK_HINT.read(params)
    record = NodeRecord(params.local_addr or "host", 1, 0, topology=topology, rank_hint=hint)
    record.check()
    assert NodeRecord.decode(b"key", record.encode()) == record
    Keys(config.PREFIX.read(params), params.run_id)


_CODES = tuple(grpc.StatusCode)
_DETAILS = (
    *("etcdserver: ", "rpc error: code = Unknown desc = ", "failed to connect to all addresses; last error: UNKNOWN: "),
    *("ipv4:127.0.0.1:1: ", "permission denied", "lease not found", "tls:", "user name is empty", "Deadline Exceeded"),
)


def check_errors(data: Reader) -> None:
    """What gRPC and etcd report about a request that failed."""
    code, prefix, has_user = data.pick(_CODES), data.pick(_DETAILS), data.flag()
    details = prefix * data.flag() + data.rest().decode("utf-8", "surrogateescape" if has_user else "replace")
    for error in (translate(code, details, "host:1"), translate_watch_cancel(details, "host:1", has_user)):
        assert isinstance(error, EtcdError)
        assert error.reason
        check_message(str(error))
