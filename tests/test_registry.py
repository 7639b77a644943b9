"""Handlers by the name of their backend: our own, and those of packages beside ours."""

from __future__ import annotations

import pytest

from rendezvous import RendezvousHandler, RendezvousParameters, get_rendezvous_handler, rendezvous_handler_registry

PLUGIN = """
from rendezvous import RendezvousHandler


class Handler(RendezvousHandler):
    def __init__(self, params):
        self.params = params

    def get_backend(self):
        return self.params.config.get("answer", self.params.backend)

    def get_run_id(self):
        return self.params.run_id

    def next_rendezvous(self):
        raise NotImplementedError

    def is_closed(self):
        return False

    def set_closed(self):
        pass

    def num_nodes_waiting(self):
        return 0

    def shutdown(self):
        return True


def works():
    return Handler


def breaks():
    raise KeyError("no such thing")
"""

ENTRY_POINTS = """
[torchrun.handlers]
out-of-tree = {name}:works
broken = {name}:breaks
absent = {name}_which_is_not_there:works
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with handlers, and a registry that forgets them afterwards."""
    name = f"plugin_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rendezvous_handler_registry, "_registry", dict(rendezvous_handler_registry._registry))
    return name


def params(backend: str, **config) -> RendezvousParameters:
    return RendezvousParameters(backend, "localhost", "run", 1, 2, **config)


def test_a_handler_of_another_package_is_found(package):
    for run in range(2):
        handler = get_rendezvous_handler(params("out-of-tree", run=run))
        assert isinstance(handler, RendezvousHandler)
        assert (type(handler).__module__, handler.get_run_id()) == (package, "run")
        assert handler.params.get("run") == run


def test_a_handler_of_another_package_must_be_of_the_requested_backend(package):
    with pytest.raises(RuntimeError, match="for the rendezvous backend 'out-of-tree' is of backend 'another'"):
        get_rendezvous_handler(params("out-of-tree", answer="another"))


@pytest.mark.parametrize(("backend", "reason"), [("broken", "KeyError"), ("absent", "ModuleNotFoundError")])
def test_a_package_that_cannot_be_loaded_is_named(package, backend, reason):
    with pytest.raises(ValueError, match=rf"'{backend}' cannot be loaded: the plugin '{package}.*fails with {reason}"):
        get_rendezvous_handler(params(backend))


def test_the_error_for_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'etcd-v4' is not registered; registered are: .*etcd-v2, etcd-v3"):
        get_rendezvous_handler(params("etcd-v4"))
