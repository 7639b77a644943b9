"""Data that the nodes of a round publish for each other, beside the store: one JSON object in etcd for each round."""

from __future__ import annotations

import json
import time
from typing import Any

from rendezvous.api import RendezvousTimeoutError
from rendezvous.legacy.directory import REQUEST_TIMEOUT, Directory

__all__ = ["load", "store"]


def _path(directory: Directory, version: str) -> str:
    return directory.path(f"/rdzv/v_{version}/extra_data")


def store(directory: Directory, version: str, key: str, value: Any) -> None:
    """Publish ``value``, which must be valid in JSON, under ``key`` for the nodes of a round."""

    def change(text: str | None, doubt: bool) -> tuple[str, None] | None:
        data = json.loads(text) if text else {}
        return None if data.get(key, ...) == value else (json.dumps({**data, key: value}), None)

    directory.change(_path(directory, version), change, time.monotonic() + REQUEST_TIMEOUT)


def load(directory: Directory, version: str, key: str, timeout: float) -> Any:
    """Return the value that a node published under ``key``; wait for it for at most ``timeout`` seconds.

    Raises:
        RendezvousTimeoutError: no node published it in time.
    """
    path = _path(directory, version)
    deadline = time.monotonic() + timeout
    while True:
        response, index = directory.read(path, max(deadline, time.monotonic()))
        data = {} if response is None else json.loads(response.value)
        if key in data:
            return data[key]
        left = deadline - time.monotonic()
        if left <= 0:
            raise RendezvousTimeoutError(
                f"The rendezvous '{directory.run_id}' timed out: no node of round {version} published '{key}' within "
                f"{timeout:g} s."
            )
        directory.watch(path, index, left)
