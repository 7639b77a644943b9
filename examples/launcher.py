"""A small elastic launcher without torch: one on each host runs the command once in each round.

python launcher.py --endpoint localhost:2379 --run-id job --nodes 2:4 -- python work.py

The command finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment. If a node joins or is lost, the
command is stopped, and started again in the next round. The job ends when the command ends with 0.
"""

import argparse
import os
import subprocess

from rendezvous import RendezvousClosedError, RendezvousParameters, get_rendezvous_handler


def main() -> None:
    """Run the command in each round until it has succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="localhost:2379")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--nodes", default="1:2", metavar="MIN:MAX")
    parser.add_argument("--addr", help="the address of this host for the others; by default its full name")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    least, most = map(int, options.nodes.split(":"))
    handler = get_rendezvous_handler(
        RendezvousParameters(
            "etcd-v3", options.endpoint, options.run_id, least, most, options.addr, last_call_timeout=2
        )
    )
    while True:
        try:
            info = handler.next_rendezvous()
        except RendezvousClosedError:
            return  # another node's command has succeeded
        meet = info.bootstrap_store_info
        assert meet is not None
        print(f"rank {info.rank} of {info.world_size}", flush=True)
        environment = {
            **os.environ,
            "RANK": str(info.rank),
            "WORLD_SIZE": str(info.world_size),
            "MASTER_ADDR": meet.master_addr,
            "MASTER_PORT": str(meet.master_port),
        }
        with subprocess.Popen(options.command, env=environment) as worker:
            while worker.poll() is None:
                if handler.num_nodes_waiting():
                    print("another node waits, or a node is lost: joining again", flush=True)
                    worker.terminate()
                    break
                try:
                    worker.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass
            else:
                if worker.returncode == 0:
                    handler.shutdown()
                    return


if __name__ == "__main__":
    main()
