"""The key-value store of one round, on etcd's v3 API.

    <prefix>/<run id>/store/<round>/<key>               a value (``encoding``)
    <prefix>/<run id>/once/<round>/<client id>/<slot>   an idempotency key (``idempotency``)

``blocking`` has the store that users get. It runs ``operations`` on the background loop: one coroutine for each
operation of the interface. ``reading`` reads keys and waits for them, and ``requests`` sends the requests of both.
"""

from rendezvous.coordinated.store.blocking import EtcdStore
from rendezvous.coordinated.store.operations import AsyncEtcdStore
from rendezvous.coordinated.store.options import StoreOptions

__all__ = ["AsyncEtcdStore", "EtcdStore", "StoreOptions"]
