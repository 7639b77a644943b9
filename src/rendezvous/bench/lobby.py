"""The lobby: a rendezvous of the hosts of a benchmark, and the key-value store of its round.

The hosts exchange JSON values there, under keys of their choice. If a host ends, the others learn it when its lease
ends, or immediately if it could still close the lobby.
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
"""Seconds that a host waits for what others publish after the time for the work itself is over."""

_SLICE = 5.0
"""While a host waits, it checks this often, in seconds, whether any host has ended."""


class Lobby:
    """The hosts of a benchmark; usable once :meth:`enter` has returned.

    Args:
        params: parameters of ``etcd-v3``, with a run id for the lobby alone and the number of hosts as the number of
            nodes.
        timeout: seconds within which all hosts must join, and within which each step of the benchmark must be done.

    Attributes:
        hosts: the number of hosts.
        number: the rank of this host; -1 before it has entered.
    """

    def __init__(self, params: RendezvousParameters, timeout: float) -> None:
        self._params = params
        self._timeout = timeout
        # The handlers wait longer than the lobby: the host that times out first closes it and gives the reason.
        self._handler = create_handler(_copy(params, params.run_id, join_timeout=int(timeout + GRACE)))
        self.hosts = params.max_nodes
        self.number = -1

    @property
    def first(self) -> bool:
        """Whether this is the first host: it directs the others and reports the results."""
        return self.number == 0

    # Joining.

    def enter(self) -> None:
        """Wait until all hosts have joined.

        Raises:
            RendezvousError: they did not all join in time, or there are more hosts than planned.
        """
        joining = in_thread(self._handler.next_rendezvous)
        if not futures.wait([joining], self._timeout).done:
            self._give_up(joining)
        try:
            info = joining.result(GRACE)
        except futures.TimeoutError:
            raise RendezvousTimeoutError(
                f"the hosts did not all join, and this host could not leave within {GRACE:g} s"
            ) from None
        except RendezvousClosedError as exc:
            raise RendezvousError(
                f"the hosts did not all join: {exc} If an earlier benchmark with the same run id closed it, use "
                "another run id, or try again in two hours"
            ) from exc
        except RendezvousGracefulExitError as exc:
            raise RendezvousError(self._surplus()) from exc
        if info.world_size != self.hosts:
            raise RendezvousError(
                f"this host was started for {self.hosts} hosts, the others for {info.world_size}; use the same "
                "arguments on all hosts"
            )
        self.number, self._store = info.rank, info.store

    def _surplus(self) -> str:
        return (
            f"the run id '{self._params.run_id}' is in use by {self.hosts} other hosts; start one process on each "
            "host, and use a new run id for each benchmark"
        )

    def _give_up(self, joining: futures.Future[Any]) -> None:
        """Close the lobby, so that all hosts end with the reason that the first one to time out gives."""
        names, complete = self._read_members()
        if joining.done():
            return
        if complete:
            raise RendezvousTimeoutError(self._surplus())
        self._handler.close(f"{len(names)} of {self.hosts} hosts joined within {self._timeout:g} s: {', '.join(names)}")
        futures.wait([joining], GRACE)
        self.leave()

    def _read_members(self) -> tuple[list[str], bool]:
        """Return the names of the hosts that have joined, and whether the round is complete."""
        client, keys = connect(self._params), run_keys(self._params)

        async def read() -> tuple[list[str], bool]:
            deadline = asyncio.get_running_loop().time() + GRACE
            found, _ = await client.range(keys.round, b"", deadline)
            complete = bool(found) and RoundRecord.decode(keys.round, found[0].value).complete
            nodes, _ = await client.range(keys.nodes, prefix_end(keys.nodes), deadline)
            return [NodeRecord.decode(kv.key, kv.value).addr for kv in nodes], complete

        names, complete = background.run(read())
        return sorted(names, key=natural_key), complete

    # Exchanging values.

    def publish(self, key: str, value: Any) -> None:
        """Publish a value for all hosts; they :meth:`read` it."""
        self._store.set(key, json.dumps(value))

    def publish_own(self, key: str, value: Any) -> None:
        """Publish a value of this host; the first host can :meth:`collect` those of all hosts."""
        self.publish(f"{key}/{self.number}", value)

    def read(self, key: str) -> Any:
        """Return the value that the first host publishes.

        Raises:
            RendezvousError: it does not publish it in time, or a host was lost.
        """
        # The first host may have to wait for the others before it publishes.
        value = self._await(lambda timeout: self._store.get(key, timeout), self._timeout + 2 * GRACE)
        if value is None:
            raise RendezvousError(
                "a host was lost or has ended" if self.broken else f"the first host did not publish '{key}' in time"
            )
        return json.loads(value)

    def collect(self, key: str) -> list[Any]:
        """Return what each host published of its own; None for a host that did not in time, or was lost."""
        keys = [f"{key}/{number}" for number in range(self.hosts)]
        values = self._await(lambda timeout: self._store.multi_get(keys, timeout), self._timeout + GRACE)
        if values is not None:
            return [json.loads(value) for value in values]
        return [json.loads(self._store.get(each)) if self._store.check([each]) else None for each in keys]

    def wait(self, future: futures.Future[_T]) -> _T:
        """Return the result of ``future``.

        Raises:
            RendezvousError: it is not done in time, or a host is lost before it is done.
        """

        def check(timeout: timedelta) -> futures.Future[_T]:
            done, _ = futures.wait([future], timeout.total_seconds())
            if not done:
                raise LookupError("not done yet")
            return future

        done = self._await(check, self._timeout + GRACE)
        if done is None:
            raise RendezvousError("a host was lost" if self.broken else "not done in time")
        return done.result()

    @property
    def broken(self) -> bool:
        """Whether a host was lost or has ended."""
        return self._handler.num_nodes_waiting() > 0 or self._handler.is_closed()

    def _await(self, attempt: Callable[[timedelta], _T], timeout: float) -> _T | None:
        """Repeat ``attempt`` until it returns a value.

        Args:
            attempt: waits for the value for the time in its argument, then raises LookupError.
            timeout: seconds after which to stop.

        Returns:
            The value; None after the timeout, or if a host has ended and the value does not exist.
        """
        deadline, broken = time.monotonic() + timeout, False
        while True:
            try:
                return attempt(timedelta(seconds=_SLICE))
            except LookupError:
                pass
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                logger.warning("%s; trying again", exc)
            if broken or time.monotonic() > deadline:
                return None
            # If a host has ended, try once more: another host may learn it later, and publish its result before that.
            broken = self.broken

    # Leaving.

    def leave(self, run_ids: Iterable[str] = ()) -> None:
        """Leave the lobby. The first host waits until all have left, then deletes the keys of the benchmark.

        Args:
            run_ids: the run ids of the worlds, whose keys the first host deletes together with those of the lobby.
        """
        try:
            self._handler.close("the benchmark is over")
        except RendezvousError as exc:
            logger.info("the lobby could not be closed; the others learn it when this host's lease ends: %s", exc)
        self._handler.shutdown()
        if self.number > 0:
            return
        client = connect(self._params)
        lobby = run_keys(self._params)
        runs = [run_keys(_copy(self._params, run_id)) for run_id in run_ids]
        try:
            background.run(_delete(client, lobby, runs))
        except (RendezvousError, TimeoutError) as exc:
            logger.info("keys of '%s' are left in etcd; they expire within two hours: %s", self._params.run_id, exc)


def _copy(params: RendezvousParameters, run_id: str, **options: Any) -> RendezvousParameters:
    nodes = params.min_nodes, params.max_nodes
    conf = {**params.config, **options}
    return RendezvousParameters(params.backend, params.endpoint, run_id, *nodes, params.local_addr, **conf)


async def _delete(client: EtcdClient, lobby: Keys, runs: list[Keys]) -> None:
    """Wait until all hosts have left; delete the keys of ``runs`` and ``lobby``, and revoke their leases."""
    clock = asyncio.get_running_loop().time
    wait_until, deadline = clock() + GRACE, clock() + 2 * GRACE
    while (await client.range(lobby.nodes, prefix_end(lobby.nodes), deadline))[0]:
        if clock() > wait_until:
            raise TimeoutError("a host has not left")
        await asyncio.sleep(0.05)
    for keys in (*runs, lobby):
        found, _ = await client.range(keys.ctl, prefix_end(keys.ctl), deadline)
        for lease in {kv.lease for kv in found if kv.lease}:
            await client.revoke(lease, deadline)
        await client.delete(keys.root, prefix_end(keys.root), deadline)


def in_thread(work: Callable[[], _T]) -> futures.Future[_T]:
    """Call ``work`` in a thread that does not keep the interpreter from exiting."""
    future: futures.Future[_T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future
