"""Data that the nodes of a round publish for each other, beside the store: one JSON object in etcd for each round."""

from __future__ import annotations

import json
import time
from typing import Any

from rendezvous.api import RendezvousStateError, RendezvousTimeoutError
from rendezvous.legacy.directory import REQUEST_TIMEOUT, Directory
from rendezvous.utils import quoted

__all__ = ["load", "store"]


def _path(directory: Directory, version: str) -> str:
    return directory.path(f"/rdzv/v_{version}/extra_data")


def _parse(path: str, text: str | None) -> dict[str, Any]:
    """Return the data in ``text``, the value of ``path``. Raises RendezvousStateError if it is not a JSON object."""
    try:
        data = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise RendezvousStateError(
            f"the etcd key '{path}' contains {quoted(text or '')}, which is not a JSON object: another program wrote it"
        )
    return data


def store(directory: Directory, version: str, key: str, value: Any) -> None:
    """Publish ``value``, which must be valid in JSON, under ``key`` for the nodes of a round.

    Raises:
        RendezvousStateError: the key of the data holds something else.
    """

    def change(text: str | None, doubt: bool) -> tuple[str, None] | None:
        data = _parse(path, text)
        return None if data.get(key, ...) == value else (json.dumps({**data, key: value}), None)

    path = _path(directory, version)
    directory.change(path, change, time.monotonic() + REQUEST_TIMEOUT)


def load(directory: Directory, version: str, key: str, timeout: float) -> Any:
    """Return the value that a node published under ``key``; wait for it for at most ``timeout`` seconds.

    Raises:
        RendezvousStateError: the key of the data holds something else.
        RendezvousTimeoutError: no node published it in time.
    """
    path = _path(directory, version)
    deadline = time.monotonic() + timeout
    while True:
        response, index = directory.read(path, max(deadline, time.monotonic()))
        data = _parse(path, None if response is None else response.value)
        if key in data:
            return data[key]
        left = deadline - time.monotonic()
        if left <= 0:
            raise RendezvousTimeoutError(
                f"The rendezvous '{directory.run_id}' timed out: no node of round {version} published '{key}' within "
                f"{timeout:g} s."
            )
        directory.watch(path, index, left)
