from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.nodes import BOUND, eventually

TRAIN = Path(__file__).parent / "train.py"


@pytest.fixture(autouse=True)
def torch_is_there() -> None:
    pytest.importorskip("torch")


class Agents:
    """torchrun agents of one job."""

    def __init__(self, backend: str, endpoint: str, run_id: str, folder: Path) -> None:
        self.backend, self.endpoint, self.run_id, self.folder = backend, endpoint, run_id, folder
        self.log = folder / "log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, nnodes: str, *script: str, workers: int = 2, conf: str = ""):
        short = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"
        number = len(self.processes)
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes={nnodes}",
            f"--nproc-per-node={workers}",
            f"--rdzv-backend={self.backend}",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.run_id}",
            f"--rdzv-conf={','.join(filter(None, (short, conf)))}",
            "--local-addr=127.0.0.1",
            "--max-restarts=3",
            *(script or (str(TRAIN), f"--journal={self.log}")),
        ]
        with open(self.folder / f"agent-{number}.out", "wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.processes.append(process)
        return process

    def lines(self, word: str) -> list[list[str]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [line.split() for line in text.splitlines() if line.startswith(word)]

    def wait_for(self, word: str, count: int, world_size: int) -> None:
        def there() -> bool:
            return sum(line[2] == str(world_size) for line in self.lines(word)) >= count

        eventually(there, f"{count} x {word} in a world of {world_size}\n{self.outputs()}", 2 * BOUND)

    def output(self, number: int) -> str:
        return (self.folder / f"agent-{number}.out").read_text()

    def outputs(self) -> str:
        return "\n".join(f"--- agent {i}\n{self.output(i)[-3000:]}" for i in range(len(self.processes)))

    def finish(self, *numbers: int) -> list[int]:
        chosen = numbers or range(len(self.processes))
        try:
            return [self.processes[number].wait(timeout=2 * BOUND) for number in chosen]
        except subprocess.TimeoutExpired:
            raise AssertionError(self.outputs()) from None

    def kill(self, number: int) -> None:
        """Let a whole node die: the agent and its workers, which torch puts into sessions of their own."""
        agent = psutil.Process(self.processes[number].pid)
        for process in (agent, *agent.children(recursive=True)):
            process.kill()
        self.processes[number].wait()


@pytest.fixture(params=["etcd-v3", "etcd-v2-watch"])
def agents(run_id, tmp_path, request) -> Iterator[Agents]:
    etcd = request.getfixturevalue("etcd3" if request.param == "etcd-v3" else "etcd")
    job = Agents(request.param, etcd.get_endpoint(), run_id, tmp_path)
    yield job
    for number, process in enumerate(job.processes):
        if process.poll() is None:
            job.kill(number)
