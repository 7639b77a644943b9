"""The coordinator's writes: no write is applied after another node was elected, or after a newer write of this node.

etcd may apply a request late: after its sender has given up and sent newer ones. Therefore each write compares the
fence (the create revision and the value of ``ctl/coordinator``), and each write of the round record compares the
revision of the record that the coordinator knows. A failed comparison proves nothing by itself: an earlier attempt of
the same request may have been applied. The answer therefore contains what is stored, and that is compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from msgspec import Raw

from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Closed, Keys, RoundRecord
from rendezvous.coordinated.versions import unknown_fields, with_fields
from rendezvous.coordinated.view import CurrentCoordinator, older_key
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.operations import KeyValue, Operation, absent, compare, get_op, put_op

__all__ = ["ClosedError", "DeposedError", "OutdatedError", "Writer", "batches"]

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20  # of the operations in one transaction; by default etcd accepts 1.5 MiB


class DeposedError(Exception):
    """The fence does not hold: this node is not the coordinator any more."""


class ClosedError(Exception):
    """The rendezvous is closed: no round record is written any more."""


class OutdatedError(Exception):
    """Another round record is stored than the coordinator knows: an older request of its own was applied late."""


class Writer:
    """Writes under the fence of one coordinator.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        fence: the coordinator's key, which this node created.
        timeout: seconds within which each request must succeed.

    Attributes:
        record: the round record that is stored, as far as this coordinator knows; None if there is none.
        revision: its revision; 0 if there is none.
        run_lease: the lease to which the records of the run are bound.
    """

    def __init__(self, client: EtcdClient, keys: Keys, fence: CurrentCoordinator, timeout: float) -> None:
        self._client = client
        self._restorations = client.history.restorations
        self._keys = keys
        self._timeout = timeout
        key = keys.coordinator
        self._fence = [compare(key, "create_revision", fence.revision), compare(key, "value", fence.value)]
        self._coordinator = fence
        self.revision = 0
        self.record: RoundRecord | None = None
        self._unknown: dict[str, Raw] = {}
        """The fields of the record that this version does not know."""
        self._unknown_of = ("", -1)
        """The attempt id and the number of the round that they are about."""
        self.run_lease = 0

    def deadline(self) -> float:
        """Return when a request that is sent now must have succeeded."""
        return asyncio.get_running_loop().time() + self._timeout

    def check_history(self, kv: KeyValue | None) -> None:
        """Check that etcd was not restored from a snapshot since this node was elected.

        Args:
            kv: the round record, as it was read just now.

        Raises:
            DeposedError: it was. All users of the client have been told, and the node takes part anew.
        """
        history = self._client.history
        known = self.revision if history.restorations == self._restorations else 0
        if kv is not None and kv.mod_revision < known:
            history.restored(older_key(kv, known))
        if history.restorations != self._restorations:
            raise DeposedError

    def adopt(self, kv: KeyValue | None) -> None:
        """Go by the round record that was read. Raises RendezvousStateError if it is not valid."""
        self.revision = 0 if kv is None else kv.mod_revision
        self.record = None
        if kv is not None:
            self.record = RoundRecord.decode(kv.key, kv.value)
            self._unknown = unknown_fields(RoundRecord, kv.value)
            self._unknown_of = (self.record.attempt, self.record.round)

    async def put_record(
        self, record: RoundRecord, with_it: Sequence[Operation] = (), after: Sequence[Sequence[Operation]] = ()
    ) -> None:
        """Write the round record and the operations ``with_it``.

        A new edition of a record that was read keeps the fields that this version does not know.

        Args:
            record: the record.
            with_it: further operations.
            after: transactions that were written before, and must still be there: they are not if etcd was restored
                since. They are atomic, so one key of each shows that all exist.

        Raises:
            ClosedError: the rendezvous is closed.
            DeposedError: another node has been elected.
            OutdatedError: read the state of the run again.
        """
        if self._unknown_of != (record.attempt, record.round):
            self._unknown = {}
        key, value = self._keys.round, with_fields(record.encode(), self._unknown)
        answer = await self._client.txn(
            [
                *self._fence,
                compare(key, "mod_revision", self.revision),
                absent(self._keys.closed),
                *(compare(part[0].request_put.key, "version", 0, "GREATER") for part in after),
            ],
            [*with_it, put_op(key, value, self.run_lease)],
            [get_op(self._keys.coordinator), get_op(self._keys.closed), get_op(key)],
            deadline=self.deadline(),
        )
        if not answer.succeeded:
            coordinator, closed, found = (response.response_range.kvs for response in answer.responses)
            self._check(coordinator)
            if found and found[0].value == value and found[0].lease == self.run_lease:
                self.revision, self.record = found[0].mod_revision, record
                return
            if closed:
                raise ClosedError
            raise OutdatedError
        self.revision, self.record = answer.header.revision, record

    async def write(self, *parts: Sequence[Operation]) -> None:
        """Write keys that no other request writes, or delete keys that nobody needs.

        Args:
            parts: the operations, in one transaction for each part.

        Raises:
            DeposedError: another node has been elected.
        """
        for operations in parts:
            answer = await self._client.txn(
                self._fence, operations, [get_op(self._keys.coordinator)], deadline=self.deadline()
            )
            if not answer.succeeded:
                self._check(answer.responses[0].response_range.kvs)

    async def close(self, problem: str) -> None:
        """Close the run, because of a ``problem`` with what the round record says. Raises DeposedError."""
        reason = f"the etcd key '{printable(self._keys.round)}', or the key of a node, {problem}"
        logger.error("%s; the rendezvous is closed", reason)
        closed = Closed(reason, f"node {self._coordinator.node_id:016x}")
        await self.write([put_op(self._keys.closed, closed.encode(), self.run_lease)])

    def _check(self, found: Sequence[KeyValue]) -> None:
        """Raise DeposedError if the coordinator's key is not the one that this node created."""
        mine = self._coordinator
        if not found or (found[0].create_revision, found[0].value) != (mine.revision, mine.value):
            raise DeposedError


def batches(operations: Sequence[Operation], limit: int) -> Iterator[list[Operation]]:
    """Divide operations into transactions of at most ``limit`` operations, and not more bytes than etcd accepts."""
    batch: list[Operation] = []
    size = 0
    for operation in operations:
        added = operation.ByteSize()
        if batch and (len(batch) == limit or size + added > _MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += added
    if batch:
        yield batch
