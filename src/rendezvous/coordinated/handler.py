"""The blocking handler of the coordinated rendezvous, and how it is made from a configuration."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import random
import socket
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from rendezvous import config
from rendezvous.api import (
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from rendezvous.config import Backend
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord, run_keys
from rendezvous.coordinated.rules import Limits, RankPolicy
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.store import EtcdStore
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connect import connect
from rendezvous.utils import get_free_port

__all__ = ["CoordinatedRendezvousHandler", "create_handler"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run ``coroutine`` on the background loop. Its errors are raised without the frames and causes inside the loop.

    The message says everything that a user needs. The whole traceback goes to the log, on level DEBUG.
    """
    try:
        return background.run(coroutine)
    except RendezvousError as exc:
        logger.debug("%s", exc, exc_info=True)
        raise exc.with_traceback(None) from None


class CoordinatedRendezvousHandler(RendezvousHandler):
    """Takes one node through the rounds of a run that an elected node coordinates.

    Args:
        client: the etcd cluster, on the background loop.
        keys: the keys of the run.
        node: what the node publishes about itself.
        settings: the configuration of the member.
        join_timeout: seconds within which a round must be complete.
        close_timeout: seconds within which closing must succeed.
        serve: called on rank 0 of each round with this node's address; starts what the workers connect to and
            returns its port. By default a free port is published and nothing is started.

    Raises:
        ValueError: a value of ``node`` is out of range, too long or not valid Unicode.
    """

    _local_ids: ClassVar = itertools.count()

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        node: NodeRecord,
        settings: Settings,
        join_timeout: float = 600.0,
        close_timeout: float = 30.0,
        serve: Callable[[str], int] | None = None,
    ) -> None:
        node.check()
        self._client = client
        self._keys = keys
        self._node = node
        self._settings = settings
        self._join_timeout = join_timeout
        self._close_timeout = close_timeout
        self._serve = functools.partial(serve, node.addr) if serve is not None else get_free_port
        self._member = Member(client, keys, node, settings, random.Random())
        # If the process exits or the handler is garbage-collected, the node leaves at once: the other nodes do not have
        # to wait until its lease ends.
        background.run_at_exit(self._member, functools.partial(self._member.leave, background.LEAVE_TIMEOUT))
        weakref.finalize(self, background.run_now, self._member).atexit = False

    @property
    def node(self) -> NodeRecord:
        """What this node publishes about itself."""
        return self._node

    @property
    def member(self) -> Member:
        """The protocol of this node. Its coroutines run on the loop of :mod:`rendezvous.etcd.v3.background`."""
        return self._member

    def get_backend(self) -> str:
        """See :meth:`RendezvousHandler.get_backend`."""
        return "etcd-v3"

    def get_run_id(self) -> str:
        """See :meth:`RendezvousHandler.get_run_id`."""
        return self._settings.run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """See :meth:`RendezvousHandler.next_rendezvous`."""
        assignment, bootstrap = _run(self._member.join(self._join_timeout, self._serve))
        logger.info(
            "node %s joined round %d of the rendezvous '%s' as rank %d of %d",
            self._node.name,
            assignment.round,
            self._settings.run_id,
            assignment.rank,
            assignment.world_size,
        )
        store = EtcdStore(self._client, self._keys, assignment.round, assignment.run_lease, assignment.since)
        address = RendezvousStoreInfo(bootstrap.addr, bootstrap.port)
        return RendezvousInfo(store, assignment.rank, assignment.world_size, address)

    def is_closed(self) -> bool:
        """See :meth:`RendezvousHandler.is_closed`. After a join the answer needs no request to etcd."""
        if self._member.view.synced or self._member.is_closed():
            return self._member.is_closed()
        return _run(self._read_closed())

    async def _read_closed(self) -> bool:
        deadline = asyncio.get_running_loop().time() + self._close_timeout
        found, _ = await self._client.range(self._keys.closed, b"", deadline)
        return bool(found)

    def num_nodes_waiting(self) -> int:
        """See :meth:`RendezvousHandler.num_nodes_waiting`. The answer needs no request to etcd."""
        return self._member.num_nodes_waiting()

    def set_closed(self) -> None:
        """See :meth:`RendezvousHandler.set_closed`."""
        self.close("set_closed() was called")

    def close(self, reason: str) -> None:
        """Close the rendezvous for all nodes, for good, and say why. Raises RendezvousConnectionError."""

        async def close() -> None:
            await self._member.close(reason, asyncio.get_running_loop().time() + self._close_timeout)

        _run(close())

    def shutdown(self) -> bool:
        """See :meth:`RendezvousHandler.shutdown`. A node without a place in the round leaves, and does not close."""
        closed = True
        if self._member.may_close:
            try:
                self.close("shutdown() was called")
            except RendezvousError as exc:
                logger.warning("the rendezvous '%s' could not be closed: %s", self._settings.run_id, exc)
                closed = False
        background.run(self._member.leave(background.LEAVE_TIMEOUT))
        return closed


def create_handler(
    params: RendezvousParameters, serve: Callable[[str], int] | None = None
) -> CoordinatedRendezvousHandler:
    """Make a handler from a configuration.

    ``rendezvous config --backend etcd-v3`` lists the configuration keys.

    Raises:
        RendezvousConnectionError: no endpoint answers, or etcd refused the user.
        ValueError: a value is malformed or out of range, or contradicts another.
    """
    config.check(params, Backend.COORDINATED)
    keys = run_keys(params)
    limits = Limits(
        params.min_nodes,
        params.max_nodes,
        config.last_call_timeout(params, Backend.COORDINATED),
        config.NODE_UNIT.read(params),
        config.UPSCALE.read(params),
        config.ON_NODE_LOSS.read(params) == "reform",
        RankPolicy(config.RANK_POLICY.read(params)),
        config.REJOIN_SETTLE_TIMEOUT.read(params),
    )
    interval = config.KEEP_ALIVE_INTERVAL.read(params)
    ttl = interval * config.KEEP_ALIVE_MAX_ATTEMPT.read(params)
    node = NodeRecord(
        params.local_addr or socket.getfqdn(),
        os.getpid(),
        next(CoordinatedRendezvousHandler._local_ids),
        topology=config.TOPOLOGY.read(params),
        rank_hint=config.RANK_HINT.read(params),
    )
    return CoordinatedRendezvousHandler(
        connect(params),
        keys,
        node,
        Settings(params.run_id, limits, interval, ttl),
        config.JOIN_TIMEOUT.read(params),
        config.CLOSE_TIMEOUT.read(params),
        serve,
    )
