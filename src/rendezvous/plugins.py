"""The entry points of the group ``torchrun.handlers``.

torch loads them while it is being imported itself. Therefore this module imports nothing before a handler is created.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["etcd_v2_watch", "etcd_v3"]


def etcd_v2_watch() -> Callable[[Any], Any]:
    """Return the function that creates handlers of torchrun's backend ``etcd-v2-watch``."""
    return _create_etcd_v2_watch


def _create_etcd_v2_watch(params: Any) -> Any:
    from rendezvous.torchrun import create_etcd_v2_watch

    return create_etcd_v2_watch(params)


def etcd_v3() -> Callable[[Any], Any]:
    """Return the function that creates handlers of torchrun's backend ``etcd-v3``."""
    return _create_etcd_v3


def _create_etcd_v3(params: Any) -> Any:
    from rendezvous.torchrun import create_etcd_v3

    return create_etcd_v3(params)
