"""Renewing a key of etcd's v2 API from a thread, so that etcd does not delete it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from rendezvous._core import Backoff
from rendezvous.api import RendezvousConnectionError, RendezvousError
from rendezvous.etcd.v2.client import etcd_module, key_path, translate_errors

__all__ = ["keep_alive"]

logger = logging.getLogger(__name__)


def keep_alive(client: Any, path: str, ttl: int, is_needed: Callable[[], bool]) -> threading.Event:
    """Renew the key at ``path`` twice every ``ttl`` seconds, until the returned event is set.

    While etcd cannot be reached, the request is repeated. If the key no longer exists, for example after an outage
    that is longer than ``ttl``, it is written again if ``is_needed`` returns True; otherwise the renewal ends with a
    warning.
    """
    stop = threading.Event()
    threading.Thread(
        target=_renew, args=(client, path, ttl, is_needed, stop), name=f"rendezvous-lease-{path}", daemon=True
    ).start()
    return stop


def _renew(client: Any, path: str, ttl: int, is_needed: Callable[[], bool], stop: threading.Event) -> None:
    etcd = etcd_module()
    address, what = key_path(path), f"cannot keep the etcd key '{path}' alive"
    backoff = Backoff(base=0.05, cap=ttl / 5)
    level = logging.WARNING
    pause = 0.0
    while not stop.wait(pause):
        try:
            try:
                translate_errors(what, lambda: client.refresh(address, ttl))
            except etcd.EtcdKeyNotFound:
                if stop.is_set():
                    return
                if not is_needed():
                    logger.warning("the etcd key '%s' is gone: it was not renewed for %d s, or deleted", path, ttl)
                    return
                logger.warning("the etcd key '%s' expired and is written again", path)
                translate_errors(what, lambda: client.write(address, "", ttl))
        except RendezvousError as exc:
            if "Not a file" in str(exc):  # an internal error of etcd 3.5, which only its text identifies
                logger.warning(
                    "etcd cannot renew the directory '%s' (etcd 3.5 cannot, 3.4 can): it is deleted %d s after it was "
                    "created, and a later round starts with an empty directory",
                    path,
                    ttl,
                )
                return
            logger.log(level, "%s", exc)
            if not (isinstance(exc, RendezvousConnectionError) and exc.retryable):
                return
            level, pause = logging.DEBUG, backoff.next()
        else:
            level, pause = logging.WARNING, ttl / 2
            backoff.reset()
