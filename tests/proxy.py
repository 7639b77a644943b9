"""A TCP proxy. Tests break its connections, stop its traffic, or change its target."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Forwards connections from a free port to ``port`` on localhost."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = True
        self._stalled = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break all connections, and each new one."""
        with self._lock:
            self._open = False
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            _close(sock)

    def restore(self, port: int | None = None) -> None:
        """Forward again, to ``port`` if given."""
        with self._lock:
            self._target = self._target if port is None else port
            self._open = True

    def stall(self) -> None:
        """Keep all connections open, but stop forwarding data."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if not self._open:
                return _close(client)
            server = socket.create_connection(("localhost", self._target), timeout=5)
            server.settimeout(None)
        except OSError:
            return _close(client)
        with self._lock:
            self._sockets |= {client, server}
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        self._pump(server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        _close(source)
        _close(sink)


def _close(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()
