"""Writes and reads histories as NDJSON; tools/porcupine/README.md describes the lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError
from rendezvous.coordinated.store import EtcdStore
from rendezvous.store import Store
from tests.histories.workload import Operation


class Recorder:
    """Carries out operations, and writes a line when each begins and when it has ended. Threads may share one.

    Args:
        path: the file.
        patient: a store whose operations wait long for etcd.
        hasty: a store whose operations give up early.
    """

    def __init__(self, path: Path, patient: EtcdStore, hasty: EtcdStore) -> None:
        self._patient, self._hasty = patient, hasty
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._file.close()

    def carry_out(self, client: int, name: str, operation: Operation) -> None:
        """Carry out an operation.

        Args:
            client: the number of the client, for the picture of a history.
            name: no other operation of the history has it.
            operation: what to do.
        """
        self._write({"call": time.monotonic_ns(), "id": name, "client": client, **operation.fields()})
        outcome = _outcome(self._hasty if operation.hasty else self._patient, operation)
        self._write({"return": time.monotonic_ns(), "id": name, **outcome})

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        with self._lock:
            self._file.write(f"{text}\n")


def _outcome(store: Store, operation: Operation) -> dict[str, Any]:
    """Carry out an operation; return what the history says about its outcome. Other errors are faults of the store."""
    try:
        return {"result": _plain(_call(store, operation))}
    except LookupError:
        return {"failed": "missing"}
    except ValueError as exc:
        if operation.op != "add":
            raise
        return {"failed": "not a number", "message": str(exc)}
    except (RendezvousConnectionError, RendezvousTimeoutError) as exc:
        return {"unknown": str(exc)}


def _call(store: Store, operation: Operation) -> Any:
    method, keys = getattr(store, operation.op), operation.keys
    if operation.op in ("num_keys", "list_keys"):
        return method()
    if operation.op == "check":
        return method(keys)
    if operation.op in ("wait", "multi_get"):
        return method(keys, timedelta(seconds=operation.seconds))
    if operation.op == "get":
        return method(keys[0], timedelta(seconds=operation.seconds))
    if operation.op == "multi_set":
        return method(keys, operation.values)
    if operation.op == "add":
        return method(keys[0], operation.amount)
    if operation.op == "compare_set":
        return method(keys[0], operation.expected, operation.values[0])
    return method(keys[0], *operation.values)


def _plain(result: Any) -> Any:
    if isinstance(result, bytes):
        return result.decode()
    return [_plain(each) for each in result] if isinstance(result, list) else result


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history. A process that was killed may have left a part of one at the end."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def merge(parts: Sequence[Path], whole: Path) -> None:
    """Write the lines of several files into one, in the order of their times."""
    lines: Iterable[dict[str, Any]] = (line for part in parts for line in read(part))
    ordered = sorted(lines, key=lambda line: (line.get("call") or line["return"], "return" in line))
    whole.write_text("".join(f"{json.dumps(line)}\n" for line in ordered))
