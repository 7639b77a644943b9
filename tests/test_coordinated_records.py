"""The keys and records of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.records import Bootstrap, Closed, Keys, NodeRecord, Phase, RoundRecord

COUNT = st.integers(0, 2**40)


def test_a_run_id_does_not_reach_into_another_runs_keys():
    keys = [Keys("/rendezvous", run_id) for run_id in ("a", "a/ctl", "a b", "a%2Fctl", "..", "ä")]
    assert keys[0].root == b"/rendezvous/a/"
    assert keys[1].root == b"/rendezvous/a%2Fctl/"
    roots = [each.root for each in keys]
    assert not any(one is not other and other.startswith(one) for one in roots for other in roots)


def test_an_empty_run_id_is_refused():
    with pytest.raises(ValueError, match="run id must not be empty"):
        Keys("/rendezvous", "")


def test_the_keys_of_rounds_sort_like_their_numbers():
    keys = Keys("/p", "r")
    prefixes = [keys.of_round("store", number) for number in (0, 9, 10, 123456)]
    assert prefixes == sorted(prefixes)
    start, end = keys.before_round("store", 10)
    assert start < keys.of_round("store", 9) + b"key" < end <= keys.of_round("store", 10)
    start, end = keys.from_round("roster", 10)
    assert start <= keys.shard(10, 0) < keys.shard(123456, 3) < end


@given(node_id=st.integers(1, 2**63 - 1))
def test_a_node_id_comes_back_from_its_key(node_id):
    keys = Keys("/p", "r")
    assert keys.node_id(keys.node(node_id)) == node_id


@given(
    record=st.builds(
        RoundRecord,
        round=COUNT,
        phase=st.sampled_from(Phase.ALL),
        joined=COUNT,
        world_size=COUNT,
        roster=st.none() | st.binary(max_size=50),
        waiting=COUNT,
        headless=st.booleans(),
        missing=st.lists(st.text(max_size=9), max_size=3).map(tuple),
        missing_count=COUNT,
    )
)
def test_a_round_record_comes_back(record):
    assert RoundRecord.decode(b"k", record.encode()) == record


@given(
    record=st.builds(
        NodeRecord,
        addr=st.text(max_size=20),
        pid=COUNT,
        local_id=COUNT,
        last_round=st.just(-1) | COUNT,
        last_rank=st.just(0),
        topology=st.text(max_size=9),
        rank_hint=st.none() | st.integers(-5, 5),
    )
)
def test_a_node_record_comes_back(record):
    assert NodeRecord.decode(b"k", record.encode()) == record


def test_the_other_records_come_back():
    for record in (Bootstrap(3, "h", 29500), Closed("enough", "node-1")):
        assert type(record).decode(b"k", record.encode()) == record


@given(
    data=st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b"1", b'{"round":"1","phase":"forming"}', b"[" * 9999])
)
def test_anything_else_is_refused_with_the_key_and_what_stands_there(data):
    for kind in (RoundRecord, NodeRecord, Bootstrap, Closed):
        with pytest.raises(RendezvousStateError, match="the etcd key 'some/key' holds "):
            kind.decode(b"some/key", data)


def test_what_a_person_sees_with_etcdctl():
    assert RoundRecord(3, Phase.LAST_CALL, joined=2, min_nodes=2, max_nodes=4).encode() == (
        b'{"round":3,"phase":"last call","joined":2,"min_nodes":2,"max_nodes":4}'
    )
    assert NodeRecord("node-1", 7, 0, 2, 1).encode() == b'{"addr":"node-1","pid":7,"local":0,"last":2,"rank":1}'
