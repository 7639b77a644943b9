"""Keeping an ephemeral key of etcd's v2 API alive from a thread."""

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


def keep_alive(client: Any, path: str, ttl: int, is_missed: Callable[[], bool]) -> threading.Event:
    """Renew the key at ``path`` twice in each ``ttl`` seconds until the event that is returned is set.

    An etcd that cannot be reached is asked again and again. A key that is gone nevertheless, as after an outage for
    longer than ``ttl``, is written anew where ``is_missed`` says so; elsewhere the renewal ends with a warning.
    """
    stop = threading.Event()
    threading.Thread(
        target=_renew, args=(client, path, ttl, is_missed, stop), name=f"rendezvous-lease-{path}", daemon=True
    ).start()
    return stop


def _renew(client: Any, path: str, ttl: int, is_missed: Callable[[], bool], stop: threading.Event) -> None:
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
                if not is_missed():
                    logger.warning("the etcd key '%s' is gone: it was not renewed for %d s, or deleted", path, ttl)
                    return
                logger.warning("the etcd key '%s' ran out and is written anew", path)
                translate_errors(what, lambda: client.write(address, "", ttl))
        except RendezvousError as exc:
            if "Not a file" in str(exc):
                logger.warning(
                    "etcd cannot renew the directory '%s' (etcd 3.5 cannot, 3.4 can): it is gone %d s after it was "
                    "made, and a later round begins with an empty one",
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
