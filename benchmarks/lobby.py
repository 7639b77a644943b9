"""Where the hosts of a benchmark find each other: a rendezvous of their own, and the key-value store of its round.

What they say there is JSON under keys of their own choice. A host that ends, however it does, is missed by the others
when its lease ends, or at once where it could still close the lobby.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from datetime import timedelta
from typing import Any, TypeVar

from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from rendezvous.coordinated.handler import create_handler
from rendezvous.coordinated.records import Keys, NodeRecord, RoundRecord, run_keys
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import prefix_end
from rendezvous.utils import natural_key

__all__ = ["GRACE", "Lobby", "in_thread"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

GRACE = 30.0
"""What the others' news may take to come when the time of what they tell of is up, in seconds."""

_SLICE = 5.0
"""Seconds after which one who waits looks whether all hosts are still there."""


class Lobby:
    """All hosts of a benchmark, once :meth:`enter` has returned.

    Args:
        params: a configuration of ``etcd-v3``: the run id is the lobby's own, and as many nodes must come as there
            are hosts.
        timeout: seconds within which all must come, and within which each next thing that they tell happens.
    """

    def __init__(self, params: RendezvousParameters, timeout: float) -> None:
        self._params = params
        self._timeout = timeout
        # Whoever finds the time up first says so to all: before their own handlers do.
        self._handler = create_handler(_alike(params, params.run_id, join_timeout=int(timeout + GRACE)))
        self.hosts = params.max_nodes
        self.number = -1

    @property
    def leads(self) -> bool:
        """Whether this is the first of the hosts."""
        return self.number == 0

    # Coming together.

    def enter(self) -> None:
        """Wait until all hosts are here.

        Raises:
            RendezvousError: they did not all come in time, or more came.
        """
        joining = in_thread(self._handler.next_rendezvous)
        if not futures.wait([joining], self._timeout).done:
            self._give_up(joining)
        try:
            info = joining.result(GRACE)
        except futures.TimeoutError:
            raise RendezvousTimeoutError("the hosts did not come together, and this one cannot leave") from None
        except RendezvousClosedError as exc:
            raise RendezvousError(
                f"the hosts did not come together: {exc} Where an earlier benchmark of the same run id closed it, "
                f"choose another, or try again in two hours"
            ) from exc
        except RendezvousGracefulExitError as exc:
            raise RendezvousError(self._surplus()) from exc
        if info.world_size != self.hosts:
            raise RendezvousError(
                f"this host was told of {self.hosts} hosts, others of {info.world_size}: start all of them alike"
            )
        self.number, self._store = info.rank, info.store

    def _surplus(self) -> str:
        return (
            f"{self.hosts} hosts are at work under the run id '{self._params.run_id}' without this one: start as many "
            f"processes as there are hosts, and each benchmark with a run id of its own"
        )

    def _give_up(self, joining: futures.Future[Any]) -> None:
        """Close the lobby, so that all hosts end with the same reason: that of the first whose time is up."""
        names, complete = self._look()
        if joining.done():
            return
        if complete:
            raise RendezvousTimeoutError(self._surplus())
        self._handler.close(f"{len(names)} of {self.hosts} hosts came within {self._timeout:g} s: {', '.join(names)}")
        futures.wait([joining], GRACE)
        self.leave()

    def _look(self) -> tuple[list[str], bool]:
        """Return the names of the hosts that are here, and whether they are complete."""
        client, keys = connect(self._params), run_keys(self._params)

        async def look() -> tuple[list[str], bool]:
            deadline = asyncio.get_running_loop().time() + GRACE
            found, _ = await client.range(keys.round, b"", deadline)
            complete = bool(found) and RoundRecord.decode(keys.round, found[0].value).complete
            nodes, _ = await client.range(keys.nodes, prefix_end(keys.nodes), deadline)
            return [NodeRecord.decode(kv.key, kv.value).addr for kv in nodes], complete

        names, complete = background.run(look())
        return sorted(names, key=natural_key), complete

    # Telling each other.

    def say(self, key: str, value: Any) -> None:
        """Tell the others ``value``."""
        self._store.set(key, json.dumps(value))

    def say_own(self, key: str, value: Any) -> None:
        """Tell the others ``value`` of this host; they :meth:`collect` it."""
        self.say(f"{key}/{self.number}", value)

    def hear(self, key: str) -> Any:
        """Return what one host tells all. Raises RendezvousError where it is not told in time."""
        # The one who tells may wait for the others itself.
        value = self._await(lambda patience: self._store.get(key, patience), self._timeout + 2 * GRACE)
        if value is None:
            raise RendezvousError(
                "a host was lost, or it ended" if self.broken else f"the first host did not say '{key}' in time"
            )
        return json.loads(value)

    def collect(self, key: str) -> list[Any]:
        """Return what each host tells of itself; None for one that does not in time, or is gone."""
        keys = [f"{key}/{number}" for number in range(self.hosts)]
        values = self._await(lambda patience: self._store.multi_get(keys, patience), self._timeout + GRACE)
        if values is not None:
            return [json.loads(value) for value in values]
        return [json.loads(self._store.get(each)) if self._store.check([each]) else None for each in keys]

    def wait(self, future: futures.Future[_T]) -> _T:
        """Return what ``future`` gives. Raises RendezvousError where a host is lost before."""

        def look(patience: timedelta) -> futures.Future[_T]:
            done, _ = futures.wait([future], patience.total_seconds())
            if not done:
                raise LookupError("not done yet")
            return future

        done = self._await(look, self._timeout + GRACE)
        if done is None:
            raise RendezvousError("a host was lost" if self.broken else "not done in time")
        return done.result()

    @property
    def broken(self) -> bool:
        """Whether a host is gone."""
        return self._handler.num_nodes_waiting() > 0 or self._handler.is_closed()

    def _await(self, look: Callable[[timedelta], _T], patience: float) -> _T | None:
        """Return what ``look`` finds; None where the time is up, or a host is gone and what it told is not there."""
        deadline, broken = time.monotonic() + patience, False
        while True:
            try:
                return look(timedelta(seconds=_SLICE))
            except LookupError:
                pass
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                logger.warning("%s; trying again", exc)
            if broken or time.monotonic() > deadline:
                return None
            # Once more: who hears last that a host is gone may still tell how it fared.
            broken = self.broken

    # Parting.

    def leave(self, run_ids: Iterable[str] = ()) -> None:
        """Leave; the first waits until all have, and deletes what is left of the lobby and of ``run_ids``."""
        try:
            self._handler.close("the benchmark is over")
        except RendezvousError as exc:
            logger.info("the others will miss this host: %s", exc)
        self._handler.shutdown()
        if self.number > 0:
            return
        client = connect(self._params)
        lobby = run_keys(self._params)
        runs = [run_keys(_alike(self._params, run_id)) for run_id in run_ids]
        try:
            background.run(_tidy(client, lobby, runs))
        except (RendezvousError, TimeoutError) as exc:
            logger.info("what is left of '%s' in etcd ends by itself within two hours: %s", self._params.run_id, exc)


def _alike(params: RendezvousParameters, run_id: str, **options: Any) -> RendezvousParameters:
    nodes = params.min_nodes, params.max_nodes
    conf = {**params.config, **options}
    return RendezvousParameters(params.backend, params.endpoint, run_id, *nodes, params.local_addr, **conf)


async def _tidy(client: EtcdClient, lobby: Keys, runs: list[Keys]) -> None:
    """Delete the keys of ``lobby`` once nobody is there, and those of ``runs``; end their leases."""
    clock = asyncio.get_running_loop().time
    patience, deadline = clock() + GRACE, clock() + 2 * GRACE
    while (await client.range(lobby.nodes, prefix_end(lobby.nodes), deadline))[0]:
        if clock() > patience:
            raise TimeoutError("a host is still there")
        await asyncio.sleep(0.05)
    for keys in (*runs, lobby):
        found, _ = await client.range(keys.ctl, prefix_end(keys.ctl), deadline)
        for lease in {kv.lease for kv in found if kv.lease}:
            await client.revoke(lease, deadline)
        await client.delete(keys.root, prefix_end(keys.root), deadline)


def in_thread(work: Callable[[], _T]) -> futures.Future[_T]:
    """Do ``work`` in a thread that does not keep the interpreter from exiting."""
    future: futures.Future[_T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future
