from __future__ import annotations

import socket

import pytest

from rendezvous.utils import (
    format_endpoint,
    get_free_port,
    natural_key,
    parse_rendezvous_endpoint,
    parse_rendezvous_endpoints,
)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (None, ("localhost", 2379)),
        ("", ("localhost", 2379)),
        ("  ", ("localhost", 2379)),
        ("etcd-1.cluster", ("etcd-1.cluster", 2379)),
        (" 10.0.0.1:80 ", ("10.0.0.1", 80)),
        ("host_a:0", ("host_a", 0)),
        ("host:65535", ("host", 65535)),
        ("[::1]", ("::1", 2379)),
        ("[fe80::1%eth0]:1234", ("fe80::1%eth0", 1234)),
    ],
)
def test_an_endpoint_is_split(endpoint, expected):
    assert parse_rendezvous_endpoint(endpoint, 2379) == expected


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://host:2379", "starts with a scheme"),
        ("host:65536", "from 0 to 65535, not '65536'"),
        ("host:", "from 0 to 65535, not ''"),
        ("host:x1", "not 'x1'"),
        ("host:-1", "not '-1'"),
        ("host:٣", "from 0 to 65535"),
        ("::1", "brackets"),
        ("[::1", r"\[ipv6-address\]:port"),
        ("[::1]2379", r"\[ipv6-address\]:port"),
        ("ho st", "must be a host name"),
        (":2379", "must be a host name"),
        ("host/path", "must be a host name"),
    ],
)
def test_a_malformed_endpoint_is_refused_with_the_reason(endpoint, reason):
    with pytest.raises(ValueError, match=reason):
        parse_rendezvous_endpoint(endpoint, 2379)


def test_several_endpoints():
    assert parse_rendezvous_endpoints("a:1, b ,[::1]:3,a:1", 9) == [("a", 1), ("b", 9), ("::1", 3)]
    assert parse_rendezvous_endpoints("", 9) == [("localhost", 9)]
    for text in ("a,,b", "a,", ","):
        with pytest.raises(ValueError, match="contains an empty one"):
            parse_rendezvous_endpoints(text, 9)


def test_format_endpoint_is_the_reverse():
    for host, port in [("a", 1), ("::1", 2379)]:
        assert parse_rendezvous_endpoint(format_endpoint(host, port), 0) == (host, port)


def test_natural_order():
    names = ["node-10", "node-2", "node-1", "node", "node-02", "rack2-node1", "rack1-node12", "node-1a"]
    assert sorted(names, key=lambda name: (natural_key(name), name)) == [
        "node",
        "node-1",
        "node-1a",
        "node-02",
        "node-2",
        "node-10",
        "rack1-node12",
        "rack2-node1",
    ]


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("localhost", get_free_port("localhost")))
