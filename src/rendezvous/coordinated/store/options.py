"""The limits of a store's requests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_OPTIONS", "StoreOptions"]


@dataclass(frozen=True)
class StoreOptions:
    """The limits of a store's requests. The defaults fit the limits that etcd has by default.

    Attributes:
        max_operations: operations in one transaction. etcd allows 128 by default.
        max_bytes: bytes of the keys and values in one transaction. etcd allows 1.5 MiB for a request by default.
        max_groups: how many groups of similar keys are read separately; more are read as one range.
        replay_batch: how many events etcd replays at once. Only the last ones of a longer replay are current.
        long_history: number of revisions. etcd searches all revisions since the start of a watch, whoever wrote them:
            for a longer history, reading first is cheaper.
        min_request_timeout: seconds that a request may take even if the operation's timeout is shorter.
        min_pause: the shortest pause between two attempts of a compare-and-swap, in seconds.
        max_pause: the longest pause.
        refuse_restored: whether all operations fail once etcd was restored from a snapshot, because what was written
            since the snapshot is lost. A store that outlives its round does not fail.
    """

    max_operations: int = 100
    max_bytes: int = 1 << 20
    max_groups: int = 16
    replay_batch: int = 1000
    long_history: int = 10_000
    min_request_timeout: float = 1.0
    min_pause: float = 0.01
    max_pause: float = 2.0
    refuse_restored: bool = True


DEFAULT_OPTIONS = StoreOptions()
