"""Notices that etcd was restored from a snapshot: that what a client knows of it does not hold any more.

etcd's revision only grows, unless an operator restores the cluster from a snapshot. Then keys have the values that they
had when the snapshot was taken, later changes never happened, and revisions are used again. Two signs are certain:

- The cluster id in the header of an answer has changed.
- A linearizable answer has a lower revision than the client knew before it sent the request. Other answers may have
  one: a serializable read and a watch show what one member has, which may be old, and answers may arrive out of order.

There is no sign in the header if the cluster id stayed the same and the revision has grown beyond the known one since.
Whoever reads keys again after a watch was interrupted can see it in them: a key that is older than it was before was
restored. :meth:`History.restored` tells everybody else who uses the client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from rendezvous.etcd.v3.errors import CompactedError, UnavailableError

__all__ = ["History", "Known"]

logger = logging.getLogger(__name__)


class Known(NamedTuple):
    """What was known when a request was sent: how often etcd was restored, and its newest revision."""

    restorations: int
    revision: int


class History:
    """What a client knows of the history of its cluster.

    Attributes:
        restorations: how often the cluster was restored from a snapshot, as far as the client has noticed.
    """

    def __init__(self) -> None:
        self.restorations = 0
        self._cluster_id = 0
        self._revision = 0
        self._listeners: dict[Callable[[str], None], None] = {}

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the reason each time a restoration is noticed."""
        self._listeners[listener] = None

    def unsubscribe(self, listener: Callable[[str], None]) -> None:
        """Do not call ``listener`` any more."""
        self._listeners.pop(listener, None)

    def known(self) -> Known:
        """Return what is known now, to be compared with the answer to a request that is sent next."""
        return Known(self.restorations, self._revision)

    def observe(self, header: Any, endpoint: str, known: Known | None = None) -> None:
        """Note what the header of an answer says.

        Args:
            header: the header.
            endpoint: the endpoint that answered, ``host:port``.
            known: what was known before the request was sent, if the answer is linearizable.
        """
        if header.cluster_id and self._cluster_id and header.cluster_id != self._cluster_id:
            self.restored(
                f"the cluster id of etcd at {endpoint} is {header.cluster_id:x}, and it was {self._cluster_id:x}"
            )
        elif known is not None and header.revision < known.revision and known.restorations == self.restorations:
            self.restored(
                f"the revision of etcd at {endpoint} is {header.revision}, and it has been {known.revision} already"
            )
        self._cluster_id = header.cluster_id or self._cluster_id
        self._revision = max(self._revision, header.revision)

    def check(self, known: Known) -> None:
        """Check that etcd was not restored since a request was sent: its answer may be of the time before.

        Raises:
            UnavailableError: it was.
        """
        if known.restorations != self.restorations:
            raise UnavailableError("etcd was restored from a snapshot while the request was under way")

    def check_revision(self, known: Known) -> None:
        """Check that a revision that was known is still one of the cluster's.

        Raises:
            CompactedError: etcd was restored since then.
        """
        if known.restorations != self.restorations:
            raise CompactedError("etcd was restored from a snapshot: the revision does not exist any more")

    def restored(self, reason: str) -> None:
        """Tell all listeners that etcd was restored.

        Args:
            reason: how that was noticed.
        """
        logger.warning("etcd was restored from a snapshot: %s; what was written since the snapshot is lost", reason)
        self.restorations += 1
        self._cluster_id = self._revision = 0
        for listener in list(self._listeners):
            try:
                listener(reason)
            except Exception:
                # An error of one listener must not keep the others from being told.
                logger.exception("the restoration of etcd could not be processed")
