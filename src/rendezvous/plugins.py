"""What torchrun loads from the entry points in the group ``torchrun.handlers``.

torch loads it while it is itself being imported: so nothing is imported here until a handler is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["etcd_v2_watch", "etcd_v3"]


def etcd_v2_watch() -> Callable[[Any], Any]:
    """Return what makes the handlers of torchrun's backend ``etcd-v2-watch``."""
    return _create_etcd_v2_watch


def _create_etcd_v2_watch(params: Any) -> Any:
    from rendezvous.torchrun import create_etcd_v2_watch

    return create_etcd_v2_watch(params)


def etcd_v3() -> Callable[[Any], Any]:
    """Return what makes the handlers of torchrun's backend ``etcd-v3``."""
    return _create_etcd_v3


def _create_etcd_v3(params: Any) -> Any:
    from rendezvous.torchrun import create_etcd_v3

    return create_etcd_v3(params)
