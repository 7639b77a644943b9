"""The requests of one store."""

from __future__ import annotations

from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated.store.options import StoreOptions
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import LeaseNotFoundError
from rendezvous.etcd.v3.operations import Message
from rendezvous.store import Key, quoted_key, to_bytes

__all__ = ["Requests"]


class Requests:
    """Sends the requests of one store.

    Args:
        client: the etcd cluster.
        prefix: of the etcd keys of the store.
        options: the limits of requests.

    Attributes:
        newest: the newest revision of etcd that an answer has named.
    """

    def __init__(self, client: EtcdClient, prefix: bytes, options: StoreOptions) -> None:
        self.client = client
        self.prefix = prefix
        self.options = options
        self.newest = 0
        self._restorations = client.history.restorations

    def path(self, key: Key) -> bytes:
        """Return the etcd key for a key of the store. Raises ValueError if it is neither ``str`` nor ``bytes``."""
        return self.prefix + to_bytes(key)

    def key(self, path: bytes) -> bytes:
        """Return the key of the store for an etcd key, the reverse of :meth:`path`."""
        return path[len(self.prefix) :]

    async def send(self, call: Call, message: Message, deadline: float) -> Message:
        """Send a request until etcd answers.

        Raises:
            CompactedError: the revision that was asked for is compacted.
            RendezvousConnectionError: the lease of the store has ended, etcd was restored from a snapshot, or see
                :meth:`EtcdClient.request`.
        """
        self.check_not_restored()
        try:
            answer = await self.client.request(call, message, deadline)
        except LeaseNotFoundError as exc:
            raise RendezvousConnectionError(
                f"the lease of the etcd store {quoted_key(self.prefix)} has ended, and its keys are deleted: no "
                f"coordinator has renewed the lease for too long ({exc})",
                retryable=False,
            ) from None
        self.check_not_restored()
        self.newest = max(self.newest, answer.header.revision)
        return answer

    def check_not_restored(self) -> None:
        """Raise RendezvousConnectionError if etcd was restored since the store is used, and the store refuses that."""
        if not self.options.refuse_restored:
            return
        if self.client.history.restorations != self._restorations:
            raise RendezvousConnectionError(
                f"etcd at {self.client.target} was restored from a snapshot: what was written to the etcd store "
                f"{quoted_key(self.prefix)} since then is lost. The nodes form the next round, which has a store of "
                f"its own",
                retryable=False,
            )
