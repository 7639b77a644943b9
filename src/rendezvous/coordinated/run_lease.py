"""Keeps the records of a run alive while a node takes part in it."""

from __future__ import annotations

import asyncio
import random

from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient

__all__ = ["RunLease"]


class RunLease:
    """Renews the leases of the round record and of the key that closes the run, from each node.

    The coordinator renews the run lease too, and writes the records again if it has ended. But a run may have no
    coordinator for long: nobody is elected in a closed run, nor if all members have lost their leases and
    ``on_node_loss`` is ``ignore``.

    Args:
        client: the etcd cluster.
        view: what the node knows of its run.
        interval: seconds between two keep-alives.
        random: jitters them, so that those of many nodes are spread over time.
    """

    def __init__(self, client: EtcdClient, view: View, interval: float, random: random.Random) -> None:
        self._client = client
        self._view = view
        self._interval = interval
        self._random = random
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Renew the leases from now on."""
        if self._timer is None:
            self._wait()

    def stop(self) -> None:
        """Do not renew them any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        pause = self._interval * self._random.uniform(0.8, 1.0)
        self._timer = asyncio.get_running_loop().call_later(pause, self._renew)

    def _renew(self) -> None:
        self._wait()
        for lease in {self._view.run_lease, self._view.closed_lease} - {0}:
            # The leases outlive many intervals: a keep-alive that fails is not repeated before the next one is due.
            self._client.renew(lease, _ignore, _ignore)


def _ignore(answer: object) -> None:
    """Do nothing: if a lease has ended, the node's watch reports that the records are gone."""
