"""The bytes of the state, over both twins, and the twins against each other."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rendezvous._core import Role
from rendezvous._core._state_py import State as PureState
from rendezvous.api import RendezvousStateError

A, B, C = ("node-1", 10, 0), ("node-2", 20, 0), ("node-10", 30, 1)
NOW = 1_760_000_000_000


def seal(body: bytes) -> bytes:
    """Give ``body`` (a state without its checksum) the right length and checksum."""
    body = body[:4] + (len(body) + 4).to_bytes(4, "little") + body[8:]
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_the_format_of_version_1_does_not_change(State):
    state = State()
    state.round, state.started = 3, 900
    state.join(("node-1", 300, 0), 1000)
    state.join(("node-2", 5, 7), 990)
    assert state.encode() == seal(
        bytes.fromhex("52 5a 01 00 00 00 00 00  03 84 07 e8 07 02")
        + bytes.fromhex("00 00 06 6e 6f 64 65 2d 31 ac 02 00  08 05 01 32 05 07 0a")
    )


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("deadline", [None, 0, NOW])
def test_round_trip_of_the_round(State, closed, deadline):
    state = State()
    state.round, state.started, state.closed, state.deadline = 7, NOW - 5, closed, deadline
    again = State.decode(state.encode())
    assert (again.round, again.started, again.closed, again.deadline, len(again)) == (7, NOW - 5, closed, deadline, 0)


def test_the_greatest_state_of_a_round_is_kept(State):
    state = State()
    state.round = state.started = state.deadline = 2**53 - 1
    state.join(("host", 2**32 - 1, 2**32 - 1), 2**53 - 1)
    again = State.decode(state.encode())
    assert (again.round, again.started, again.deadline) == (2**53 - 1,) * 3


def test_the_next_round_keeps_the_start(State):
    state = State()
    state.started = NOW
    state.join(A, NOW)
    state.complete_round()
    state.open_round()
    assert state.started == NOW


def test_a_blob_of_a_thousand_realistic_hosts_is_small(State):
    rng = random.Random(1)
    state = State()
    state.started = NOW
    for _ in range(1000):
        host = "-".join(str(rng.randrange(256)) for _ in range(3))
        state.join((f"ip-10-{host}.us-west-2.compute.internal", rng.randrange(4_000_000), 0), NOW - rng.randrange(5000))
    state.complete_round()
    assert len(state.encode()) <= 20 * 1000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"R", "truncated"),
        (b"RZ\x01\x00", "truncated"),
        (b"\x80\x04\x95", "pickle"),
        (b"hello", "not written by etcd-rendezvous"),
        (b"RX", "not written by etcd-rendezvous"),
        (bytearray(b"RZ"), "must be bytes"),
        (seal(b"RZ\x02\x00....\x00\x00\x00\x00"), "version 2"),
        (seal(b"RZ\x01\x08....\x00\x00\x00\x00"), "unknown flags 0x08"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\xff\xff\x7f"), "claims 2097151 nodes, more than 131072"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\xff\x7f"), "claims 16383 nodes in 0 bytes"),
        (seal(b"RZ\x01\x01....\x00\x00\xff\xff\x03\x00\x00"), "a world of 65535, but only 0 nodes"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x00\x00"), "1 bytes after its last node"),
        (seal(b"RZ\x01\x00....\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "overlong round"),
        (seal(b"RZ\x01\x00....\xff\xff\xff\xff\xff\xff\xff\x7f"), "has a round of"),
        (seal(b"RZ\x01\x00...."), "ends within its round"),
        (seal(b"RZ\x01\x00....\x05"), "ends within its start"),
        (seal(b"RZ\x01\x00....\x05\xff\xff\xff\xff\xff\xff\xff\x7f"), "has a start of"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x00\x00\x01a\x01\x01"), "heartbeat before the epoch"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00"), "address of impossible length"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x00\x05\x01a\x01\x00"), "address of impossible length"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x40\x00\x01a\x01\x00"), "unknown tag 0x40"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x00\x00\x01\xff\x01\x00"), "not UTF-8"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x00\x00\x7fa\x01\x00"), "ends within its address"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x01\x10\x00\x01a\x01\x00\x00"), "rank for a node that takes no part"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x02\x00\x00\x01a\x01\x00\x00\x01\x00\x01\x00"), "the node 'a_1_0' twice"),
        (seal(b"RZ\x01\x00....\x00\x00\x00\x02\x00\x00\x01b\x01\x00\x00\x00\x01a\x01\x00"), "'a_1_0' out of order"),
        (seal(b"RZ\x01\x01....\x00\x00\x01\x00\x01\x10\x00\x01a\x01\x00\x01"), "rank 1 in a world of 1"),
        (
            seal(b"RZ\x01\x01....\x00\x00\x02\x00\x02\x00\x00\x01a\x01\x00\x10\x00\x01b\x01\x00\x00"),
            "rank 0 twice",
        ),
    ],
)
def test_what_is_not_a_state_is_refused_with_the_reason(State, data, reason):
    with pytest.raises(RendezvousStateError, match=reason):
        State.decode(data)


def test_a_cut_a_longer_and_a_damaged_blob_are_told_apart(State):
    state = State()
    state.join(A, NOW)
    data = state.encode()
    with pytest.raises(RendezvousStateError, match="truncated"):
        State.decode(data[:-1])
    with pytest.raises(RendezvousStateError, match="gives its length"):
        State.decode(data + b"\0")
    with pytest.raises(RendezvousStateError, match="checksum"):
        State.decode(data[:10] + bytes([data[10] ^ 1]) + data[11:])


# The twins against each other.

addresses = st.one_of(
    st.sampled_from(["a", "a1", "a01", "a-", "a10", "b", "node-1.x", "node-10.x", "node-9.x", "é", "é1", "0", "00"]),
    st.from_regex(r"\A(rack|node)[0-9]{1,3}(-[0-9]{1,2})?(\.cluster\.local)?\Z"),
    st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()),
)
nodes = st.tuples(addresses, st.integers(0, 3), st.integers(0, 2))
times = st.integers(0, 40)
operations = st.one_of(
    st.tuples(st.sampled_from(["join", "wait", "stand_by", "touch"]), nodes, times),
    st.tuples(st.just("leave"), nodes),
    st.tuples(st.just("expire"), times),
    st.tuples(st.sampled_from(["complete_round", "open_round"])),
)


def observe(state: Any) -> tuple:
    return (
        state.round,
        state.started,
        state.complete,
        state.closed,
        state.deadline,
        state.world_size,
        len(state),
        state.oldest_heartbeat(),
        [
            [(node, state.role(node), state.rank(node), state.heartbeat(node)) for node in state.nodes(role)]
            for role in Role
        ],
        [state.count(role) for role in Role],
        [state.node_of_rank(rank) for rank in range(3)],
    )


def run(state: Any, script: list[tuple]) -> list:
    answers = []
    for name, *arguments in script:
        try:
            answers.append(getattr(state, name)(*arguments))
        except ValueError as exc:
            answers.append(str(exc))
    return answers


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, max_size=40), st.integers(0, 2**53 - 1), st.booleans(), st.none() | times)
def test_twins_agree_on_every_script(CompiledState, script, started, closed, deadline):
    compiled, pure = CompiledState(), PureState()
    assert run(compiled, script) == run(pure, script)
    for state in (compiled, pure):
        state.started, state.closed, state.deadline = started, closed, deadline
    assert observe(compiled) == observe(pure)
    data = pure.encode()
    assert compiled.encode() == data
    for again in (CompiledState.decode(data), PureState.decode(data)):
        assert observe(again) == observe(pure)
        assert again.encode() == data


def outcome(decode: Any, data: bytes) -> Any:
    try:
        return observe(decode(data))
    except RendezvousStateError as exc:
        return str(exc)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_twins_agree_on_random_bytes(CompiledState, tail, sealed):
    data = seal(b"RZ\x01" + (tail[:1] or b"\0") + b"...." + tail[1:]) if sealed else tail
    assert outcome(CompiledState.decode, data) == outcome(PureState.decode, data)


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, max_size=25), st.data())
def test_twins_agree_on_mutated_states(CompiledState, script, data):
    state = PureState()
    run(state, script)
    body = bytearray(state.encode()[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        edit = data.draw(st.sampled_from(["change", "insert", "delete", "cut"]))
        if edit == "change":
            body[at] = data.draw(st.integers(0, 255))
        elif edit == "insert":
            body.insert(at, data.draw(st.integers(0, 255)))
        elif edit == "delete" and len(body) > 9:
            del body[at]
        elif len(body[:at]) >= 8:
            del body[at:]
    blob = seal(bytes(body)) if data.draw(st.booleans()) else bytes(body)
    assert outcome(CompiledState.decode, blob) == outcome(PureState.decode, blob)


@settings(max_examples=200)
@given(st.lists(addresses, unique=True, max_size=20))
def test_the_compiled_order_is_that_of_natural_key(CompiledState, names):
    from rendezvous.utils import natural_key

    state = CompiledState()
    for name in names:
        state.join((name, 0, 0), 0)
    expected = sorted(names, key=lambda name: (natural_key(name), name.encode()))
    assert [addr for addr, _, _ in state.nodes(Role.PARTICIPANT)] == expected
