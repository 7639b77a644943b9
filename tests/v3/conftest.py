from __future__ import annotations

from collections.abc import Iterator

import pytest

from rendezvous.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def etcd3() -> Iterator[EtcdServer]:
    """A real etcd without the v2 API, for the whole run."""
    try:
        server = EtcdServer(enable_v2=False)
    except FileNotFoundError as exc:
        pytest.skip(str(exc))
    with server:
        yield server
