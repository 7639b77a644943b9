"""Several nodes on this machine meet, exchange their names through the store of the round, and leave.

python meet.py --endpoint localhost:2379 --nodes 3
"""

import argparse
import multiprocessing
import os

from rendezvous import RendezvousParameters, get_rendezvous_handler


def node(endpoint: str, run_id: str, nodes: int) -> None:
    """Take part as one node; each node has a process of its own."""
    handler = get_rendezvous_handler(
        RendezvousParameters("etcd-v3", endpoint, run_id, min_nodes=nodes, max_nodes=nodes, local_addr="localhost")
    )
    info = handler.next_rendezvous()
    info.store.set(f"name/{info.rank}", f"process {os.getpid()}")
    names = info.store.multi_get([f"name/{rank}" for rank in range(info.world_size)])
    if info.rank == 0:
        print(f"{info.world_size} nodes met: {', '.join(name.decode() for name in names)}", flush=True)
    # The last node closes the rendezvous, so that the run id cannot be used again by accident.
    if info.store.add("done", 1) == info.world_size:
        handler.shutdown()


def main() -> None:
    """Start the nodes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="localhost:2379")
    parser.add_argument("--run-id", default=f"meet-{os.getpid()}")
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    # "spawn", because gRPC does not work in a forked process.
    context = multiprocessing.get_context("spawn")
    arguments = (options.endpoint, options.run_id, options.nodes)
    processes = [context.Process(target=node, args=arguments) for _ in range(options.nodes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(max(abs(process.exitcode or 0) for process in processes))


if __name__ == "__main__":
    main()
