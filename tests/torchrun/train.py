"""A small model in DistributedDataParallel on gloo; what the tests give to torchrun.

It trains until ``--steps`` steps are done since this process started, and until the file ``--until`` exists, if
given; with ``--idle`` it does nothing, no collective either, before that file exists. It writes lines
to ``--journal``: a "start" with the world size, the port where the workers met and the launcher's process id, a
"grpc" with the environment variables meant for gRPC, a "rendezvous" with those meant for us, a "done" with the loss.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--until")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--journal", required=True)
    options = parser.parse_args()

    def write(*words: object) -> None:
        with open(options.journal, "a") as log:
            log.write(" ".join(map(str, words)) + "\n")

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    write("grpc", *(name for name in os.environ if name.startswith("GRPC_")))
    write("rendezvous", *(name for name in os.environ if name.startswith("RENDEZVOUS_")))
    write("start", dist.get_rank(), dist.get_world_size(), os.environ["MASTER_PORT"], os.getppid())
    while options.idle and not Path(options.until).exists():
        time.sleep(0.05)
    step = 0
    while True:
        inputs = torch.randn(32, 4)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        # All ranks must stop at the same step: they agree on it.
        ready = step >= options.steps and (options.until is None or Path(options.until).exists())
        votes = torch.tensor(int(ready))
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        if votes.item():
            break
        time.sleep(0.01)
    write("done", dist.get_rank(), dist.get_world_size(), loss.item())
    dist.destroy_process_group()


main()
# torch's own threads now and then abort a process that ends the ordinary way ("terminate called without an active
# exception"), and the launcher would start all over: what is tested here is over.
os._exit(0)
