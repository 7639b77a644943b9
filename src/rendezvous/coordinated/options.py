"""Intervals and limits that a user does not configure. Tests and benchmarks set them to other values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Intervals and limits of a member and of the coordinator.

    Attributes:
        run_ttl: seconds for which the run's records outlive the last node that took part.
        run_keep_alive_interval: seconds between keep-alives of the run lease.
        request_timeout: seconds within which each request of the coordinator must succeed.
        retry_delay: seconds that the coordinator waits at most after an error before it tries again; twice as long
            after each further error.
        max_retry_delay: the maximum of that time, in seconds.
        campaign_delay: seconds of the jittered delay before a campaign, in addition to the time over which those of all
            nodes are spread.
        leave_timeout: seconds within which a node that fails to join must revoke its lease.
        check_delay: seconds after which a node of a small job that still waits checks what it relies on, or up to half
            of that earlier; each further check comes after twice as long. In large jobs the time is longer.
        inline_nodes: up to this number of members the roster is part of the round record: a few KiB in one record
            instead of one request by each node.
        shard_nodes: how many members a shard of a larger roster has.
        operations: how many operations a transaction has, besides those for the round record and the bootstrap. By
            default etcd accepts 128.
        names: how many names of missing nodes a round record has.
    """

    run_ttl: int = 7200
    run_keep_alive_interval: float = 600.0
    request_timeout: float = 60.0
    retry_delay: float = 1.0
    max_retry_delay: float = 10.0
    campaign_delay: float = 0.1
    leave_timeout: float = 5.0
    check_delay: float = 5.0
    inline_nodes: int = 1024
    shard_nodes: int = 128
    operations: int = 100
    names: int = 8
