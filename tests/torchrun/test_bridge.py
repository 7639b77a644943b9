"""The handlers and stores behind torch's interfaces, on a real etcd."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from rendezvous import RendezvousParameters, api
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.dynamic.backend_v3 import create_backend as create_backend_of_v3
from rendezvous.etcd.server import EtcdServer
from rendezvous.store import PrefixStore
from tests.nodes import BOUND, eventually, join

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch.distributed.elastic.rendezvous import api as torch_api  # noqa: E402
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as torch_dynamic  # noqa: E402
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler  # noqa: E402
from torch.distributed.elastic.utils import store as torch_store_util  # noqa: E402

from rendezvous.torchrun import TorchStore  # noqa: E402


def make_store(endpoint: str, run_id: str) -> TorchStore:
    _, store = create_backend(RendezvousParameters("etcd-v2", endpoint, run_id, 1, 1))
    return TorchStore(PrefixStore(run_id, store))


@pytest.fixture
def store(etcd, run_id):
    return make_store(etcd.get_endpoint(), run_id)


@pytest.fixture
def cpp(store):
    """The store as torch's C++ code uses it: every call goes through pybind11's trampolines."""
    return dist.PrefixStore("cpp", store)


def torch_params(etcd, run_id, backend="etcd-v2-watch", least=1, most=1, **options):
    options = {"last_call_timeout": "1", "keep_alive_interval": "1", **options}
    return torch_api.RendezvousParameters(backend, etcd.get_endpoint(), run_id, least, most, "127.0.0.1", **options)


# The store.


@pytest.mark.parametrize("through", ["python", "cpp"])
def test_all_operations(store, cpp, through):
    view = store if through == "python" else cpp
    view.set("a", "1")
    assert view.get("a") == b"1"
    assert view.add("n", 5) == 5
    assert view.add("n", -2) == 3
    assert view.check(["a", "n"])
    assert not view.check(["a", "b"])
    assert view.compare_set("a", "1", "2") == b"2"
    assert view.compare_set("a", "1", "3") == b"2"
    view.append("a", "4")
    assert view.get("a") == b"24"
    view.multi_set(["x", "y"], ["7", "8"])
    assert view.multi_get(["y", "x"]) == [b"8", b"7"]
    view.wait(["x", "y"])
    view.wait(["x"], timedelta(seconds=1))
    assert view.has_extended_api()
    count = view.num_keys()
    assert view.delete_key("x")
    assert not view.delete_key("x")
    assert view.num_keys() == count - 1


def test_list_keys(store):
    store.multi_set(["b", "a"], ["1", "2"])
    assert store.list_keys() == ["a", "b"]


def operations():
    return [name for name in dir(dist.Store) if not name.startswith("_") and not hasattr(object, name)]


def test_an_operation_that_is_missing_says_so(store, cpp):
    inherited = {name for name in operations() if name not in vars(TorchStore)}
    queues = {"queue_push", "queue_pop", "queue_len"}
    # barrier() of the base class calls add() and wait().
    assert inherited <= {"timeout", "set_timeout", "barrier"} | queues
    for name in sorted(queues & inherited):
        arguments = ("key", "value") if name == "queue_push" else ("key",)
        with pytest.raises(NotImplementedError, match="not implemented"):
            getattr(store, name)(*arguments)
    if hasattr(dist.Store, "list_keys"):
        with pytest.raises(NotImplementedError, match="not implemented"):
            cpp.list_keys()  # torch's C++ code does not call Python for it


@pytest.mark.skipif(not hasattr(dist.Store, "barrier"), reason="this torch's stores have no barrier()")
@pytest.mark.parametrize("through", ["python", "cpp"])
def test_the_barrier_of_torch_s_stores(store, cpp, through):
    view = store if through == "python" else cpp
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(view.barrier, "barrier", 3) for _ in range(3)]:
            outcome.result(BOUND)
    with pytest.raises(dist.DistStoreError):
        view.barrier("alone", 2, timedelta(seconds=0.1))


@pytest.mark.parametrize("through", ["python", "cpp"])
def test_only_integers_can_be_added(store, cpp, through):
    view = store if through == "python" else cpp
    assert view.add("n", True) == 1
    for amount in (1.5, "1"):
        with pytest.raises(TypeError):
            view.add("n", amount)
    assert view.get("n") == b"1"


@pytest.mark.parametrize("through", ["python", "cpp"])
def test_a_timeout_is_a_dist_store_error_and_a_lookup_error(store, cpp, through):
    view = store if through == "python" else cpp
    store.set_timeout(timedelta(seconds=0.2))
    for call in (
        lambda: view.get("never"),
        lambda: view.multi_get(["never"]),
        lambda: view.wait(["never"]),
        lambda: view.wait(["never"], timedelta(seconds=0.1)),
    ):
        with pytest.raises(dist.DistStoreError, match="never") as caught:
            call()
        assert isinstance(caught.value, LookupError)
        assert "direct cause" not in "".join(traceback.format_exception(caught.value))


def test_if_etcd_does_not_answer_the_error_is_torch_s_network_error(v2_binary, run_id):
    with EtcdServer(etcd_binary_path=v2_binary, enable_v2=True) as server:
        store = make_store(server.get_endpoint(), run_id)
    store._store.set_timeout(timedelta(seconds=0.2))
    for call in (lambda: store.set("key", "value"), lambda: store.check(["key"]), lambda: store.delete_key("key")):
        with pytest.raises(dist.DistNetworkError, match=r"cannot (read|write|delete) '.*key'") as caught:
            call()
        assert "direct cause" not in "".join(traceback.format_exception(caught.value))


def test_the_timeout_is_torch_s(store):
    assert store.timeout == timedelta(seconds=300)
    with torch_store_util.store_timeout(store, 7):
        assert store.timeout == timedelta(seconds=7)
    assert store.timeout == timedelta(seconds=300)


def test_torch_s_barrier_and_synchronize(etcd, run_id):
    def member(rank):
        store = make_store(etcd.get_endpoint(), run_id)
        torch_store_util.barrier(store, 4, "barrier", 30, rank)
        return torch_store_util.synchronize(store, f"data{rank}".encode(), rank, 4, "data", 30)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(member, range(4))) == [[b"data0", b"data1", b"data2", b"data3"]] * 4


def test_a_barrier_that_is_not_reached_times_out_as_torch_expects(store):
    with pytest.raises(dist.DistStoreError):
        torch_store_util.barrier(store, 2, "barrier", 0.3)


def sum_of_ranks(endpoint: str, run_id: str, rank: int, results) -> None:
    dist.init_process_group("gloo", store=make_store(endpoint, run_id), rank=rank, world_size=2)
    tensor = torch.tensor([rank + 1.0])
    dist.all_reduce(tensor)
    subgroup = dist.new_group([0, 1])
    dist.barrier(group=subgroup)
    results.put((rank, tensor.item()))
    dist.destroy_process_group()


def test_a_process_group_starts_from_the_store(etcd, run_id):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=sum_of_ranks, args=(etcd.get_endpoint(), run_id, rank, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    try:
        assert sorted(results.get(timeout=BOUND) for _ in processes) == [(0, 3.0), (1, 3.0)]
        for process in processes:
            process.join(BOUND)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def test_importing_the_bridge_before_torch_finds_the_backend_and_is_quiet():
    code = (
        "import rendezvous.torchrun; from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as r;"
        "print('etcd-v2-watch' in r._registry)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("True", "")


def test_a_store_outlives_its_python_reference(etcd, run_id):
    view = dist.PrefixStore("outer", make_store(etcd.get_endpoint(), run_id))
    gc.collect()
    view.set("key", "value")
    assert view.clone().get("key") == b"value"


# The handler.


def run_all(handlers):
    with ThreadPoolExecutor(len(handlers)) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), handlers))
    assert sorted(info.rank for info in infos) == list(range(len(infos)))
    assert {info.world_size for info in infos} == {len(infos)}
    return sorted(infos, key=lambda info: info.rank)


def test_torch_finds_the_backend(etcd, run_id):
    handler = get_rendezvous_handler(torch_params(etcd, run_id))
    assert isinstance(handler, torch_api.RendezvousHandler)
    assert (handler.get_backend(), handler.get_run_id()) == ("etcd-v2-watch", run_id)
    assert handler.use_agent_store
    (info,) = run_all([handler])
    assert isinstance(info, torch_api.RendezvousInfo)
    assert isinstance(info.store, dist.Store)
    assert (handler.num_nodes_waiting(), handler.is_closed()) == (0, False)
    handler.set_closed()
    assert handler.shutdown()
    with pytest.raises(torch_api.RendezvousClosedError, match="is closed"):
        handler.next_rendezvous()


def test_rank_0_shares_a_store_that_is_new_each_round(etcd, run_id):
    handlers = [get_rendezvous_handler(torch_params(etcd, run_id, least=2, most=2)) for _ in range(2)]
    ports = []
    for _ in range(2):
        (place,) = {
            (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) for info in run_all(handlers)
        }
        shared = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=10))
        assert not shared.check(["key"])
        shared.set("key", "of this round")
        ports.append(place[1])
    assert ports[0] != ports[1]
    assert [handler._server is not None for handler in handlers].count(True) == 1
    assert handlers[0].shutdown()


def test_sharing_can_be_switched_off(etcd, run_id, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    handler = get_rendezvous_handler(torch_params(etcd, run_id))
    assert not handler.use_agent_store
    (info,) = run_all([handler])
    with pytest.raises(dist.DistNetworkError):
        dist.TCPStore(
            "127.0.0.1",
            info.bootstrap_store_info.master_port,
            is_master=False,
            timeout=timedelta(seconds=1),
        )
    handler.shutdown()


@pytest.mark.parametrize("backend", ["etcd-v2-watch", "etcd-v3"])
def test_an_address_that_does_not_resolve_is_an_error_that_names_it(etcd, etcd3, run_id, backend, monkeypatch):
    monkeypatch.setattr("rendezvous.torchrun._LONGEST_START", 1.0)
    params = torch_params(etcd if backend == "etcd-v2-watch" else etcd3, run_id, backend)
    params.local_addr = "no-such-host.invalid"
    handler = get_rendezvous_handler(params)
    with pytest.raises(
        torch_api.RendezvousError, match=r"'no-such-host\.invalid', .* cannot be resolved .*--local-addr"
    ):
        handler.next_rendezvous()


def test_the_join_timeout_is_kept_if_the_address_of_rank_0_does_not_resolve(etcd3, run_id):
    params = torch_params(etcd3, run_id, "etcd-v3", join_timeout="3")
    params.local_addr = "no-such-host.invalid"
    handler = get_rendezvous_handler(params)
    with pytest.raises(
        torch_api.RendezvousTimeoutError, match=r"at 'no-such-host\.invalid' did not start in time.*--local-addr"
    ):
        join(handler).result(BOUND)


@pytest.mark.parametrize("name", [name for name in api.__all__ if name.endswith("Error")])
def test_every_error_has_torch_s_of_the_same_name(name):
    from rendezvous.torchrun import _as_torch

    error = getattr(api, name)("why")
    error.__cause__ = ValueError("the cause")
    with pytest.raises(getattr(torch_api, name), match="why") as caught, _as_torch():
        raise error
    assert "the cause" not in "".join(traceback.format_exception(caught.value))


def test_a_torch_node_on_the_same_key_is_told_apart(etcd, run_id):
    torch_handler = get_rendezvous_handler(torch_params(etcd, run_id, "etcd-v2", 2, 2, join_timeout=60))
    ours = get_rendezvous_handler(torch_params(etcd, run_id, least=2, most=2))

    def join_until_closed() -> None:
        with pytest.raises(torch_api.RendezvousClosedError):
            torch_handler.next_rendezvous()

    thread = threading.Thread(target=join_until_closed, daemon=True)
    thread.start()
    backend, _ = create_backend(RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 1, 1))
    eventually(backend.get_state, "torch's node has written its pickle")
    with pytest.raises(torch_api.RendezvousStateError, match=r"torch's own rendezvous uses the same key"):
        ours.next_rendezvous()
    torch_handler.set_closed()
    thread.join(BOUND)


def test_torch_s_own_handler_over_our_backend(etcd, run_id):
    handlers = []
    for _ in range(2):
        params = torch_params(etcd, run_id, "etcd-v2", 2, 2)
        backend, store = create_backend(RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 2, 2))
        handlers.append(torch_dynamic.create_handler(TorchStore(store), backend, params))
    for number in range(2):
        infos = run_all(handlers)
        infos[0].store.set("key", f"value {number}")
        assert infos[1].store.get("key") == f"value {number}".encode()
    assert handlers[0].shutdown()
    eventually(handlers[1].is_closed, "the other is closed too")
    for handler in handlers:
        handler._stop_heartbeats()


def test_torch_s_own_handler_over_our_backend_of_v3(etcd3, run_id):
    handlers = []
    for _ in range(2):
        backend, store = create_backend_of_v3(RendezvousParameters("etcd-v3", etcd3.get_endpoint(), run_id, 2, 2))
        handlers.append(
            torch_dynamic.DynamicRendezvousHandler.from_backend(run_id, TorchStore(store), backend, 2, 2, "127.0.0.1")
        )
    try:
        infos = run_all(handlers)
        infos[0].store.set("key", "value")
        assert infos[1].store.get("key") == b"value"
    finally:
        assert all([handler.shutdown() for handler in handlers])
    assert handlers[1].is_closed()
