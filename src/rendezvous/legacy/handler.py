"""The handler of the legacy rendezvous, and how it is created from a configuration."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from rendezvous import config
from rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from rendezvous.etcd.v2.client import create_client
from rendezvous.legacy import rules
from rendezvous.legacy.rendezvous import EtcdRendezvous
from rendezvous.store import Store

__all__ = ["EtcdRendezvousHandler", "create_rdzv_handler"]

logger = logging.getLogger(__name__)

# The greatest age, in seconds, of the state that answers the launcher's polling.
_MAX_AGE = 1.0


class EtcdRendezvousHandler(RendezvousHandler):
    """Takes one node through the rounds of the legacy rendezvous.

    Args:
        rdzv_impl: the rendezvous.
        local_addr: the address of this node; its fully qualified host name by default.
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
            if rank == 0 or self._wait_for_bootstrap(store, self._version):
                bootstrap = RendezvousStoreInfo.build(rank, store, self._local_addr)
                return RendezvousInfo(store, rank, world_size, bootstrap)
            logger.warning("rank 0 of round %s left before it published its address; joining again", self._version)

    def _wait_for_bootstrap(self, store: Store, version: str) -> bool:
        """Wait for rank 0's address and port; return False if the round has ended, so that another must form."""
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
                logger.warning("still waiting for the address of rank 0 of round %s: %s", version, exc)
                continue
            if left <= 0:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self.get_run_id()}' timed out: rank 0 of round {version} is alive but did not "
                    f"publish its address within {timeout:g} s."
                )

    def is_closed(self) -> bool:
        """See :meth:`RendezvousHandler.is_closed`. While etcd cannot be reached, this is the last known answer."""
        state = self._rdzv_impl.directory.peek(_MAX_AGE)
        return state is not None and state["status"] == "closed"

    def num_nodes_waiting(self) -> int:
        """See :meth:`RendezvousHandler.num_nodes_waiting`; and :meth:`is_closed` for an etcd that is down."""
        return rules.waiting(self._rdzv_impl.directory.peek(_MAX_AGE), self._version)

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


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """Create a handler from a configuration.

    ``rendezvous config --backend etcd`` lists the configuration keys.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: no endpoint answers, or etcd does not serve the v2 API.
        ValueError: a value is malformed or out of range.
    """
    config.check(params, config.Backend.LEGACY)
    rendezvous = EtcdRendezvous(
        client=create_client(params, config.Backend.LEGACY),
        prefix=config.LEGACY_PREFIX.read(params),
        run_id=params.run_id,
        num_min_workers=params.min_nodes,
        num_max_workers=params.max_nodes,
        timeout=config.LEGACY_TIMEOUT.read(params),
        last_call_timeout=config.last_call_timeout(params, config.Backend.LEGACY),
    )
    return EtcdRendezvousHandler(rendezvous, params.local_addr)
