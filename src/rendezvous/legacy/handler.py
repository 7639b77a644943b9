"""The handler of the legacy rendezvous."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from rendezvous.legacy import rules
from rendezvous.store import Store

if TYPE_CHECKING:
    from rendezvous.legacy.rendezvous import EtcdRendezvous

__all__ = ["EtcdRendezvousHandler"]

logger = logging.getLogger(__name__)

# How old an answer to the launcher's polling may be, in seconds.
_MAX_AGE = 1.0


class EtcdRendezvousHandler(RendezvousHandler):
    """Takes one node through the rounds of the legacy rendezvous.

    Args:
        rdzv_impl: the rendezvous.
        local_addr: the address of this node; its fully qualified host name unless given.
    """

    def __init__(self, rdzv_impl: EtcdRendezvous, local_addr: str | None) -> None:
        self._rdzv_impl = rdzv_impl
        self._local_addr = local_addr
        self._version: str | None = None

    def get_backend(self) -> str:
        """See :meth:`RendezvousHandler.get_backend`."""
        return "etcd"

    def get_run_id(self) -> str:
        """See :meth:`RendezvousHandler.get_run_id`."""
        return self._rdzv_impl.run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """See :meth:`RendezvousHandler.next_rendezvous`."""
        while True:
            self._version, rank, world_size = self._rdzv_impl.rendezvous_barrier()
            store = self._rdzv_impl.setup_kv_store(self._version)
            if rank == 0 or self._address_came(store, self._version):
                bootstrap = RendezvousStoreInfo.build(rank, store, self._local_addr)
                return RendezvousInfo(store, rank, world_size, bootstrap)
            logger.warning("rank 0 of round %s left before it said where to meet; joining again", self._version)

    def _address_came(self, store: Store, version: str) -> bool:
        """Wait for rank 0's address; False where the round is no more, so that another must form."""
        keys = [RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY]
        timeout = self._rdzv_impl.timeout
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                store.wait(keys, timedelta(seconds=max(0.0, min(rules.KEEP_ALIVE_TTL / 2, left))))
                return True
            except LookupError:
                if not self._rdzv_impl.is_whole(version):
                    return False
            except RendezvousConnectionError as exc:
                if left <= 0 or not exc.retryable:
                    raise
                logger.warning("still asking where to meet in round %s: %s", version, exc)
                continue
            if left <= 0:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self.get_run_id()}' timed out: rank 0 of round {version} is alive but has not "
                    f"said within {timeout:g} s where the workers meet."
                )

    def is_closed(self) -> bool:
        """See :meth:`RendezvousHandler.is_closed`. While etcd cannot be reached, the last known answer stands."""
        state = self._rdzv_impl.peek(_MAX_AGE)
        return state is not None and state["status"] == "closed"

    def num_nodes_waiting(self) -> int:
        """See :meth:`RendezvousHandler.num_nodes_waiting`, and :meth:`is_closed` on an etcd that is down."""
        return rules.waiting(self._rdzv_impl.peek(_MAX_AGE), self._version)

    def set_closed(self) -> None:
        """See :meth:`RendezvousHandler.set_closed`."""
        self._rdzv_impl.set_closed()

    def shutdown(self) -> bool:
        """See :meth:`RendezvousHandler.shutdown`."""
        self._rdzv_impl.stop_keep_alive()
        try:
            self.set_closed()
        except RendezvousError as exc:
            logger.warning("the rendezvous '%s' could not be closed: %s", self.get_run_id(), exc)
            return False
        return True
