"""The keys and records of a run."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.records import (
    MAX_ROUND,
    Bootstrap,
    Closed,
    CoordinatorRecord,
    Keys,
    NodeRecord,
    Phase,
    RoundRecord,
    printable,
)
from rendezvous.coordinated.versions import RunSettings, VersionError, unknown_fields, with_fields

KINDS = (RoundRecord, NodeRecord, Bootstrap, Closed, CoordinatorRecord)
ATTEMPT = "00000000000000a1"
COUNT = st.integers(0, 2**31 - 1)
NODES = st.integers(0, 131072)
ROUND = st.integers(0, MAX_ROUND)
IDS = st.from_regex("[0-9a-f]{16}", fullmatch=True)
ADDRESS = st.from_regex(r"[^\x00-\x20\x7f-\x9f]{1,20}", fullmatch=True)
PID = st.integers(0, 2**63 - 1)
SECONDS = st.integers(0, 2**31 - 1) | st.floats(0, 1e9, width=32).map(lambda seconds: seconds + 0.125)

SETTINGS = st.builds(
    RunSettings,
    min_nodes=COUNT,
    max_nodes=COUNT,
    last_call_timeout=SECONDS,
    rejoin_settle_timeout=SECONDS,
    node_unit=COUNT,
    upscale=st.booleans(),
    on_node_loss=st.sampled_from(["reform", "ignore"]),
    rank_policy=st.text(max_size=9),
)

ROUND_RECORDS = st.builds(
    RoundRecord,
    round=ROUND,
    phase=st.sampled_from([Phase.FORMING, Phase.LAST_CALL]),
    joined=COUNT,
    min_nodes=COUNT,
    max_nodes=COUNT,
    attempt=st.just("") | IDS,
    first=st.just("") | IDS,
    previous=st.just("") | IDS,
    world_size=NODES,
    shards=NODES,
    waiting=COUNT,
    spares=COUNT,
    lost=COUNT,
    missing_count=COUNT,
    roster=st.none() | st.binary(max_size=50),
    rank_0_gone=st.booleans(),
    missing=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    settings=st.none() | SETTINGS,
    by=st.text(max_size=9),
) | st.integers(1, 131072).flatmap(
    lambda size: st.builds(
        RoundRecord,
        ROUND,
        st.just(Phase.COMPLETE),
        attempt=IDS,
        first=IDS,
        world_size=st.just(size),
        shards=st.integers(1, size),
        lost=COUNT,
    )
)
NODE_RECORDS = st.builds(
    NodeRecord,
    addr=ADDRESS,
    pid=PID,
    local_id=PID,
    last_round=st.just(-1) | ROUND,
    last_rank=st.integers(-1, 131072),
    topology=st.text(max_size=9),
    rank_hint=st.none() | st.integers(-(2**63), 2**63 - 1),
    settings=st.none() | SETTINGS,
    version=st.integers(1, 2**31 - 1),
)
BOOTSTRAPS = st.builds(Bootstrap, round=ROUND, attempt=IDS, node=IDS, addr=ADDRESS, port=st.integers(1, 65535))
CLOSED = st.builds(Closed, reason=st.text(max_size=20), by=st.text(max_size=20))
COORDINATORS = st.builds(CoordinatorRecord, node=IDS, nonce=IDS)
RECORDS = ROUND_RECORDS | NODE_RECORDS | BOOTSTRAPS | CLOSED | COORDINATORS


def test_a_run_id_does_not_reach_into_another_runs_keys():
    keys = [Keys("/rendezvous", run_id) for run_id in ("a", "a/ctl", "a b", "a%2Fctl", "..", "ä")]
    assert keys[0].root == b"/rendezvous/a/"
    assert keys[1].root == b"/rendezvous/a%2Fctl/"
    roots = [each.root for each in keys]
    assert not any(one is not other and other.startswith(one) for one in roots for other in roots)


def test_an_empty_run_id_is_refused():
    with pytest.raises(ValueError, match="run id must not be empty"):
        Keys("/rendezvous", "")


@pytest.mark.parametrize(
    ("prefix", "run_id", "message"),
    [
        ("/p", "\udcff", "The run id must not contain bytes that are not UTF-8; it is '\\udcff'."),
        ("/p\ud800", "r", "The prefix of the keys must not contain bytes that are not UTF-8; it is '/p\\ud800'."),
        ("/p", "a\x00", "The run id must not contain control characters; it is 'a\\x00'."),
    ],
)
def test_a_run_id_and_a_prefix_that_are_not_fit_for_a_key_are_refused(prefix, run_id, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Keys(prefix, run_id)


def test_a_reason_that_is_not_valid_unicode_is_escaped():
    closed = Closed.of("a\udcff", NodeRecord("node-1", 7, 0))
    assert Closed.decode(b"k", closed.encode()) == Closed("a\\udcff", "node-1_7_0")


def test_the_keys_of_rounds_sort_like_their_numbers():
    keys = Keys("/p", "r")
    prefixes = [keys.of_round("store", number) for number in (0, 9, 10, 123456, MAX_ROUND)]
    assert prefixes == sorted(prefixes)
    start, end = keys.before_round("store", 10)
    assert start < keys.of_round("store", 9) + b"key" < end <= keys.of_round("store", 10)


def test_the_keys_of_an_attempt_have_a_prefix_of_their_own():
    keys = Keys("/p", "r")
    keys_of_round = [keys.shard(10, ATTEMPT, 0), keys.names(10, ATTEMPT, 0)]
    assert all(key.startswith(keys.roster(10, ATTEMPT)) for key in keys_of_round)
    start, end = keys.before_round("roster", 10)
    assert start < keys.shard(9, "f" * 16, 0) < end <= min(keys_of_round)


@given(node_id=st.integers(1, 2**63 - 1))
def test_a_node_id_comes_back_from_its_key(node_id):
    keys = Keys("/p", "r")
    assert keys.node_id(keys.node(node_id)) == node_id


@pytest.mark.parametrize("name", [b"", b"-5", b"1", b"0" * 20, b"+00000000000000a", b"000000000000_00a", b"\xff" * 16])
def test_a_key_that_names_no_node_is_refused_with_the_key(name):
    keys = Keys("/p", "r")
    with pytest.raises(
        RendezvousStateError, match=r"^the etcd key '/p/r/nodes/.*' is not the key of a node: a node id has"
    ):
        keys.node_id(keys.nodes + name)


@given(record=RECORDS)
def test_a_record_comes_back_from_its_bytes(record):
    assert type(record).decode(b"k", record.encode()) == record


# The bytes. Nodes of another version read them.


def settings_as_json(settings: RunSettings) -> dict[str, object]:
    values: dict[str, object] = {"min": settings.min_nodes, "max": settings.max_nodes}
    for name, default in (
        ("last_call_timeout", 30),
        ("node_unit", 1),
        ("upscale", True),
        ("on_node_loss", "reform"),
        ("rank_policy", "host"),
        ("rejoin_settle_timeout", 1),
    ):
        if getattr(settings, name) != default:
            values[name] = getattr(settings, name)
    return values


def as_json(record: RoundRecord | NodeRecord | Bootstrap | Closed | CoordinatorRecord) -> bytes:
    """Return what the standard library makes of the record: the fields in order, without defaults."""
    if isinstance(record, RoundRecord):
        counts = [name for name in record.__struct_fields__[2:-3] if type(getattr(record, name)) in (int, str)]
        values = {"round": record.round, "phase": record.phase.value}
        values.update({name: getattr(record, name) for name in counts if getattr(record, name)})
        if record.roster is not None:
            values["roster"] = base64.b64encode(record.roster).decode()
        if record.rank_0_gone:
            values["headless"] = True
        if record.missing:
            values["missing"] = record.missing
        if record.settings is not None:
            values["settings"] = settings_as_json(record.settings)
        if record.by:
            values["by"] = record.by
        values["version"] = record.version
    elif isinstance(record, NodeRecord):
        values = {"addr": record.addr, "pid": record.pid, "local": record.local_id}
        for name, value, default in (
            ("last", record.last_round, -1),
            ("rank", record.last_rank, -1),
            ("topology", record.topology, ""),
            ("hint", record.rank_hint, None),
        ):
            if value != default:
                values[name] = value
        if record.settings is not None:
            values["set"] = settings_as_json(record.settings)
        values["v"] = record.version
    else:
        values = {name: getattr(record, name) for name in record.__struct_fields__}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


@given(record=RECORDS)
def test_the_bytes_are_those_of_the_standard_library(record):
    assert record.encode() == as_json(record)


@pytest.mark.parametrize(
    ("record", "data"),
    [
        (
            RoundRecord(3, Phase.LAST_CALL, joined=2, min_nodes=2, max_nodes=4),
            b'{"round":3,"phase":"last call","joined":2,"min_nodes":2,"max_nodes":4,"version":1}',
        ),
        (
            RoundRecord(
                3,
                Phase.COMPLETE,
                attempt=ATTEMPT,
                first="0f" * 8,
                world_size=2,
                shards=1,
                roster=b"RR",
                rank_0_gone=True,
                missing=("a_1_0",),
            ),
            b'{"round":3,"phase":"complete","attempt":"00000000000000a1","first":"0f0f0f0f0f0f0f0f","world_size":2,"shards":1,"roster":"UlI=","headless":true,'
            b'"missing":["a_1_0"],"version":1}',
        ),
        (
            RoundRecord(3, Phase.FORMING, settings=RunSettings(2, 4, 15, 2, False, "ignore", "stable"), by="a_1_0"),
            b'{"round":3,"phase":"forming","settings":{"min":2,"max":4,"last_call_timeout":15,"node_unit":2,'
            b'"upscale":false,"on_node_loss":"ignore","rank_policy":"stable"},"by":"a_1_0","version":1}',
        ),
        (NodeRecord("node-1", 7, 0), b'{"addr":"node-1","pid":7,"local":0,"v":1}'),
        (
            NodeRecord("node-1", 7, 0, settings=RunSettings(10_000, 10_000)),
            b'{"addr":"node-1","pid":7,"local":0,"set":{"min":10000,"max":10000},"v":1}',
        ),
        (
            NodeRecord("node-1", 7, 0, 2, 0, "pod1/rack2", 5),
            b'{"addr":"node-1","pid":7,"local":0,"last":2,"rank":0,"topology":"pod1/rack2","hint":5,"v":1}',
        ),
        (
            Bootstrap(3, ATTEMPT, "0f" * 8, "node-1", 29500),
            b'{"round":3,"attempt":"00000000000000a1","node":"0f0f0f0f0f0f0f0f","addr":"node-1","port":29500}',
        ),
        (CoordinatorRecord("0f" * 8, ATTEMPT), b'{"node":"0f0f0f0f0f0f0f0f","nonce":"00000000000000a1"}'),
        (Closed("enough", "node-1_7_0"), b'{"reason":"enough","by":"node-1_7_0"}'),
    ],
)
def test_the_bytes_that_a_person_sees_with_etcdctl(record, data):
    assert record.encode() == data
    assert type(record).decode(b"k", data) == record
    assert type(record).decode(b"k", data[:-1] + b',"unknown":{"of":["a","newer version"]}}') == record


# Records of other versions.


def test_a_record_without_a_version_is_of_the_first():
    assert NodeRecord.decode(b"k", b'{"addr":"a","pid":1,"local":0}').version == 1
    assert RoundRecord.decode(b"k", b'{"round":1,"phase":"forming"}').version == 1


@pytest.mark.parametrize(
    "data",
    [
        b'{"round":1,"phase":"forming","by":"node-3_7_0","version":2}',
        b'{"round":1,"phase":"of another kind","by":"node-3_7_0","version":2}',
        b'{"turn":1,"by":"node-3_7_0","version":2}',
    ],
)
def test_a_round_record_of_a_newer_version_is_refused_with_both_versions(data):
    with pytest.raises(
        VersionError,
        match=r"^the etcd key 'k' was written in version 2 of the protocol, by node 'node-3_7_0', and this "
        r"etcd-rendezvous speaks version 1; install the same release",
    ):
        RoundRecord.decode(b"k", data)


def test_a_node_of_a_newer_version_that_writes_what_this_version_reads_counts():
    record = NodeRecord.decode(b"k", b'{"addr":"a","pid":1,"local":0,"v":2,"new":[]}')
    assert (record.name, record.version) == ("a_1_0", 2)


def test_a_node_record_of_a_newer_version_that_cannot_be_read_is_refused_with_both_versions():
    with pytest.raises(
        VersionError, match=r"^the etcd key 'k' was written in version 2 of the protocol, and this .* 1;"
    ):
        NodeRecord.decode(b"k", b'{"address":"a","v":2}')


@pytest.mark.parametrize("version", [b"0", b"-1", b"2147483648", b"1.5", b'"1"', b"null"])
def test_a_version_that_is_out_of_range_is_refused(version):
    for kind, data in (
        (NodeRecord, b'{"addr":"a","pid":1,"local":0,"v":%s}' % version),
        (RoundRecord, b'{"round":1,"phase":"forming","version":%s}' % version),
    ):
        with pytest.raises(RendezvousStateError, match="the etcd key 'k'"):
            kind.decode(b"k", data)


@given(record=ROUND_RECORDS)
def test_unknown_fields_come_back(record):
    unknown = b'"new":{"a":[1,"\\u00e4"]},"x":null'
    data = record.encode()[:-1] + b"," + unknown + b"}"
    assert with_fields(record.encode(), unknown_fields(RoundRecord, data)) == data
    assert unknown_fields(RoundRecord, record.encode()) == {}


# What is not a record.


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        (NodeRecord, b'{"addr":"a","pid":-1,"local":0}', "field 'pid': expected an integer >= 0"),
        (NodeRecord, b'{"addr":"a","pid":1.5,"local":0}', "field 'pid': expected an integer, got a fraction"),
        (NodeRecord, b'{"addr":"a","pid":"1","local":0}', "field 'pid': expected an integer, got a string"),
        (NodeRecord, b'{"addr":"a","pid":true,"local":0}', "field 'pid': expected an integer, got true or false"),
        (NodeRecord, b'{"addr":"a","pid":1}', "field 'local' is missing"),
        (NodeRecord, b'{"addr":7,"pid":1,"local":0}', "field 'addr': expected a string, got an integer"),
        (
            NodeRecord,
            b'{"addr":"%s","pid":1,"local":0}' % (b"a" * 1025),
            "field 'addr': expected a string of length <= 1024",
        ),
        (NodeRecord, b'{"addr":"a","pid":%s,"local":0}' % (b"9" * 5000), "field 'pid': Integer value out of range"),
        (NodeRecord, b'{"addr":"a","pid":1,"local":0,"last":-2}', "field 'last': expected an integer >= -1"),
        (NodeRecord, b'{"addr":"a","pid":1,"local":0,"rank":131073}', "field 'rank': expected an integer <= 131072"),
        (NodeRecord, b'{"addr":"a","pid":1,"local":0,"hint":1e400}', "field 'hint': Number out of range"),
        (NodeRecord, b'{"addr":"\\ud800","pid":1,"local":0}', "JSON is malformed: unexpected end of escaped utf-16"),
        (NodeRecord, b'{"addr":"\xff","pid":1,"local":0}', "it is not UTF-8"),
        # How deep that is depends on the version of Python, and on its stack. etcd stores values up to 1.5 MiB.
        (NodeRecord, b'{"unknown":' + b"[" * 1_400_000, "it is nested too deeply"),
        (RoundRecord, b'{"round":-1,"phase":"forming"}', "field 'round': expected an integer >= 0"),
        (RoundRecord, b'{"round":10000000000,"phase":"forming"}', "field 'round': expected an integer <= 9999999999"),
        (RoundRecord, b'{"round":1}', "field 'phase' is missing"),
        (RoundRecord, b'{"round":1,"phase":"x\\n` - at `$.y"}', "field 'phase': Invalid enum value 'x\\n` - at `$.y'"),
        (RoundRecord, b'{"round":1,"phase":"forming","lost":-1}', "field 'lost': expected an integer >= 0"),
        (RoundRecord, b'{"round":1,"phase":"forming","roster":"%"}', "field 'roster': Invalid base64 encoded string"),
        (
            RoundRecord,
            b'{"round":1,"phase":"forming","missing":["a",1]}',
            "field 'missing[1]': expected a string, got an integer",
        ),
        (
            CoordinatorRecord,
            b'{"node":"7","nonce":"0123456789abcdef"}',
            "field 'node': expected a string matching regex",
        ),
        (CoordinatorRecord, b"0123456789abcdef", "JSON is malformed"),
        (
            RoundRecord,
            b'{"round":1,"phase":"forming","attempt":"0123456789abcdef\\n"}',
            "field 'attempt': expected a string matching regex",
        ),
        (
            RoundRecord,
            b'{"round":1,"phase":"complete","world_size":4,"shards":1}',
            "fields 'attempt' and 'first': a complete round",
        ),
        (RoundRecord, b'{"round":1,"phase":"complete"}', "field 'world_size': a complete round has members"),
        (
            RoundRecord,
            b'{"round":1,"phase":"complete","world_size":4}',
            "field 'shards': expected 1 to 4, the world size",
        ),
        (
            RoundRecord,
            b'{"round":1,"phase":"complete","world_size":4,"shards":5}',
            "field 'shards': expected 1 to 4, the world size",
        ),
        (
            RoundRecord,
            b'{"round":1,"phase":"complete","world_size":131073,"shards":5}',
            "field 'world_size': expected an integer <= 131072",
        ),
        (Bootstrap, b'{"round":1,"addr":"a","port":0}', "field 'port': expected an integer >= 1"),
        (Bootstrap, b'{"round":1,"addr":"a","port":65536}', "field 'port': expected an integer <= 65535"),
        (Closed, b'{"reason":null,"by":"a"}', "field 'reason': expected a string, got null"),
        (Closed, b"", "Input data was truncated"),
        (Closed, b"[]", "expected an object, got an array"),
    ],
)
def test_an_error_names_the_key_the_field_and_what_was_expected(kind, data, problem):
    with pytest.raises(RendezvousStateError) as caught:
        kind.decode(b"some/key", data)
    text = str(caught.value)
    quoted = repr(data[:60]) + (f"... ({len(data)} bytes)" if len(data) > 60 else "")
    assert text.startswith(f"the etcd key 'some/key' contains {quoted}, which is not a valid record ({problem}")
    assert text.endswith("); another program or another version wrote it")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([*Phase]).map(lambda phase: phase.value)
    | st.sampled_from(["\ud800", "\x00\x1b[2J", "x" * 3000, "9" * 50, 10**4000])
)
NAMES = sorted({name for kind in KINDS for name in kind.__struct_encode_fields__} | {"other"})
OBJECTS = (
    st.dictionaries(st.sampled_from(NAMES), SCALARS | st.lists(SCALARS, max_size=3)).map(json.dumps).map(str.encode)
)


@given(
    key=st.binary(max_size=300),
    data=st.binary(max_size=200) | OBJECTS | RECORDS.map(lambda record: record.encode()),
    cut=st.integers(0, 300),
)
@example(b"k", b'{"addr":"a","pid":1,"local":0,"x":' + b"9" * 100_000 + b"}", 200_000)
@example(b"k\n", b'{"round":1,"phase":"' + b"\xc3\xa4" * 500_000 + b'"}', 2_000_000)
def test_any_bytes_are_a_record_or_a_short_error_in_one_line(key, data, cut):
    for kind in KINDS:
        try:
            record = kind.decode(key, data[:cut])
        except RendezvousStateError as exc:
            text = str(exc)
            assert text.startswith("the etcd key '")
            assert text.isprintable()
            assert len(text) < 2000
        else:
            assert kind.decode(key, record.encode()) == record


def test_bytes_are_printable_in_a_message():
    assert printable(b"/a/\xc3\xa4\n\x1b[2J\xff") == "/a/ä\\n\\x1b[2J\\xff"
    assert printable(b"x" * 300) == "x" * 200 + "..."


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (NodeRecord("a" * 1025, 1, 0), "field 'addr': expected a string of length <= 1024"),
        (NodeRecord("a", 1, 0, rank_hint=2**63), "field 'hint': "),
        (NodeRecord("\ud800", 1, 0), "surrogates not allowed"),
        (NodeRecord("a", 1, 0, topology="x" * 5000), "field 'topology': expected a string of length <= 1024"),
    ],
)
def test_a_node_that_others_could_not_read_is_refused_before_it_joins(record, problem):
    with pytest.raises(ValueError, match=r"The node '.*' cannot be published: ") as caught:
        record.check()
    assert problem in str(caught.value)
    NodeRecord("node-1", 7, 0, topology="pod1", rank_hint=-3).check()
