"""The roster's two twins: what they hold, their bytes, and what they refuse."""

from __future__ import annotations

import importlib
from types import ModuleType
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rendezvous.api import RendezvousStateError

IDS = st.lists(st.integers(1, 2**63 - 1), max_size=60, unique=True)
SHARDS = st.integers(1, 9)


@pytest.fixture
def roster(twin: str) -> ModuleType:
    return importlib.import_module(f"rendezvous._core._roster_{twin}")


def both() -> list[ModuleType]:
    pytest.importorskip("rendezvous._core._roster_c")
    return [importlib.import_module(f"rendezvous._core._roster_{suffix}") for suffix in ("c", "py")]


def outcome(call):
    try:
        return call()
    except Exception as exc:
        return type(exc), str(exc)


def sealed(body: bytes) -> bytes:
    return body + crc32(body).to_bytes(4, "little")


@given(ids=IDS, shards=SHARDS)
def test_a_roster_comes_back_from_its_shards_with_both_twins(ids, shards):
    for module in both():
        encoded = module.Roster(ids).encode(shards)
        assert module.Roster.decode(encoded).nodes() == ids
        for rank, node in enumerate(ids):
            assert module.Roster.find(encoded[node % shards], node) == (rank, len(ids))


@given(ids=IDS, shards=SHARDS)
def test_the_twins_write_the_same_bytes(ids, shards):
    compiled, pure = (module.Roster(ids).encode(shards) for module in both())
    assert compiled == pure


@settings(max_examples=300)
@given(ids=IDS, shards=SHARDS, data=st.data())
def test_the_twins_refuse_damaged_shards_alike_and_with_an_error_of_the_project(ids, shards, data):
    encoded = both()[0].Roster(ids).encode(shards)
    number = data.draw(st.integers(0, shards - 1))
    body = bytearray(encoded[number][:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    damaged = sealed(bytes(body[: data.draw(st.integers(0, len(body)))]))
    encoded[number] = damaged
    for call in (
        lambda module: module.Roster.decode(encoded).nodes(),
        lambda module: module.Roster.find(damaged, 7),
    ):
        compiled, pure = (outcome(lambda m=module, c=call: c(m)) for module in both())
        assert compiled == pure
        raised = isinstance(pure, tuple) and isinstance(pure[0], type)
        assert not raised or pure[0] is RendezvousStateError


@given(data=st.binary(max_size=60))
def test_random_bytes_are_refused_alike_by_the_twins(data):
    compiled, pure = (outcome(lambda m=module: m.Roster.find(data, 7)) for module in both())
    assert compiled == pure
    assert pure[0] is RendezvousStateError


def test_ranks(roster):
    three = roster.Roster([70, 5, 2**63 - 1])
    assert [three.rank(node) for node in (70, 5, 2**63 - 1, 6)] == [0, 1, 2, None]
    assert (len(three), three.nodes()) == (3, [70, 5, 2**63 - 1])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda r: r.Roster((1,)), TypeError, "must be a list"),
        (lambda r: r.Roster([True]), TypeError, "a node's id must be an int, not bool"),
        (lambda r: r.Roster([0]), ValueError, "a node's id must be from 1"),
        (lambda r: r.Roster([2**63]), ValueError, "a node's id must be from 1"),
        (lambda r: r.Roster([4, 4]), ValueError, "a node is in the roster twice"),
        (lambda r: r.Roster([1] * 131073), ValueError, "at most 131072"),
        (lambda r: r.Roster([1]).encode(0), ValueError, "the number of shards must be from 1"),
        (lambda r: r.Roster([1]).rank("1"), TypeError, "must be an int"),
        (lambda r: r.Roster.find("x", 1), RendezvousStateError, "must be bytes"),
        (lambda r: r.Roster.find(b"\x80\x04", 1), RendezvousStateError, "something else wrote it"),
        (lambda r: r.Roster.find(b"RR\x01", 1), RendezvousStateError, "truncated"),
        (lambda r: r.Roster.find(sealed(b"RR\x02" + bytes(9)), 1), RendezvousStateError, "format version 2"),
        (lambda r: r.Roster.find(r.Roster([1]).encode(1)[0][:-1], 1), RendezvousStateError, "checksum"),
        (lambda r: r.Roster.find(sealed(b"RR\x01\xff\xff\x07\x01\0\xff\xff\x07"), 1), RendezvousStateError, "claims"),
        (lambda r: r.Roster.decode(r.Roster([1, 2]).encode(2)[:1]), RendezvousStateError, "is shard 0 of 2"),
        (
            lambda r: r.Roster.decode([r.Roster([2]).encode(2)[0], r.Roster([1, 3]).encode(2)[1]]),
            RendezvousStateError,
            "world sizes 1 and 2",
        ),
    ],
)
def test_bad_input_is_refused_with_the_reason(roster, call, error, text):
    with pytest.raises(error, match=text):
        call(roster)


def test_ten_thousand_nodes_with_ids_as_etcd_gives_them_take_few_bytes(roster):
    ids = [7587880000000000000 + 3 * i for i in range(10_000)]
    encoded = roster.Roster(ids[::-1]).encode(64)
    assert max(map(len, encoded)) < 1024


def test_the_format_of_version_1_does_not_change(roster):
    assert roster.Roster([300, 7, 4, 2**63 - 1]).encode(3) == [
        sealed(bytes.fromhex("52 52 01  04 03 00 01  ac 02 00")),
        sealed(bytes.fromhex("52 52 01  04 03 01 03  04 02  03 01  f8 ff ff ff ff ff ff ff 7f 03")),
        sealed(bytes.fromhex("52 52 01  04 03 02 00")),
    ]


@pytest.mark.parametrize("shards", [1, 782, 4096])
def test_each_of_100_000_nodes_is_in_its_shard(roster, shards):
    ids = [7587880000000000000 + 7 * i for i in range(100_000)]
    encoded = roster.Roster(ids).encode(shards)
    assert len(encoded) == shards
    assert roster.Roster.decode(encoded).nodes() == ids
    for rank in (0, 1, 54_321, 99_999):
        assert roster.Roster.find(encoded[ids[rank] % shards], ids[rank]) == (rank, 100_000)


def test_most_shards_of_a_small_roster_are_empty(roster):
    encoded = roster.Roster([5]).encode(4096)
    assert [number for number, shard in enumerate(encoded) if roster.Roster.find(shard, 5) == (0, 1)] == [5]
    assert roster.Roster.decode(encoded).nodes() == [5]


def test_a_roster_without_nodes_comes_back(roster):
    for shards in (1, 3):
        assert roster.Roster.decode(roster.Roster([]).encode(shards)).nodes() == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"RR\x01\x02\x01\x00\x02\x01\x00\x01\x00", "gives rank 0 twice"),
        (b"RR\x01\x02\x01\x00\x01\x01\x00", "has 1 of 2 nodes"),
        (b"RR\x01\x01\x01\x00\x01\x01\x01", "rank is out of range"),
        (b"RR\x01\x01\x02\x00\x01\x01\x00", "node 1 in shard 0 of 2, where it does not belong"),
        (b"RR\x01\x01\x01\x00\x01\x00\x00", "node id is out of range"),
        (b"RR\x01\x01\x01\x00\x01\x01\x00\x00", "1 bytes too many"),
        (b"RR\x01\x01\x01\x01\x00", "shard number is out of range"),
        (b"RR\x01" + b"\xff" * 9, "overlong world size"),
        (b"RR\x01\x01\x01\x00\x01\xff\xff", "ends within its node id"),
        (b"RR\x01\x02\x01\x00\x02" + b"\xff" * 8 + b"\x7f\x00\x01\x01", "node id is out of range"),
    ],
)
def test_a_shard_with_a_valid_checksum_and_wrong_contents_is_refused(roster, body, reason):
    with pytest.raises(RendezvousStateError, match=reason):
        roster.Roster.decode([sealed(body)] * max(1, body[4] % 128))
