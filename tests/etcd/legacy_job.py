"""The nodes of a legacy rendezvous, in threads of a test."""

from __future__ import annotations

import json

from rendezvous import RendezvousParameters, get_rendezvous_handler
from rendezvous.etcd.v2.client import etcd_module
from rendezvous.legacy.handler import EtcdRendezvousHandler
from tests.nodes import BOUND, eventually


class LegacyJob:
    """A run whose nodes are threads."""

    def __init__(self, etcd, run_id: str) -> None:
        self.etcd, self.run_id = etcd, run_id
        self.client = etcd.get_client()
        self.folder = f"/torchelastic/p2p/run_{run_id}"
        self.handlers: list[EtcdRendezvousHandler] = []

    def node(self, least: int, most: int, name: str = "127.0.0.1", endpoint: str | None = None, **config):
        endpoint = endpoint or self.etcd.get_endpoint()
        config = {"timeout": int(BOUND), **config}
        params = RendezvousParameters("etcd", endpoint, self.run_id, least, most, name, **config)
        self.handlers.append(get_rendezvous_handler(params))
        return self.handlers[-1]

    def nodes(self, count: int, least: int, most: int, **config):
        return [self.node(least, most, **config) for _ in range(count)]

    def read(self, key: str):
        try:
            return self.client.read(f"{self.folder}/rdzv/{key}")
        except etcd_module().EtcdKeyNotFound:
            return None

    def state(self):
        answer = self.read("active_version")
        return {} if answer is None else json.loads(answer.value)

    def joined(self, count: int) -> None:
        eventually(lambda: len(self.state().get("participants", ())) == count, f"{count} have joined")

    def leave(self, handler: EtcdRendezvousHandler, rank: int) -> None:
        """Let a node die, and its keep-alive expire at once."""
        handler._rdzv_impl.stop_keep_alive()
        version = handler._version
        # Its last renewal may not have arrived yet.
        eventually(lambda: self.read(f"v_{version}/rank_{rank}") is not None, "the keep-alive is there")
        self.client.delete(f"{self.folder}/rdzv/v_{version}/rank_{rank}")

    def stop(self) -> None:
        for handler in self.handlers:
            handler._rdzv_impl.stop_keep_alive()
