"""A TCP proxy. Tests break its connections, stop its traffic, or change its target."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Forwards connections from a free port to ``port`` on localhost."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = True
        self._requests_flow, self._answers_flow = threading.Event(), threading.Event()
        self.resume()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._clients: set[socket.socket] = set()
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
            self._clients.clear()
        for sock in sockets:
            _close(sock)

    def strand(self) -> None:
        """Break the connections to the clients only, and forward requests: the server still gets what was stalled."""
        with self._lock:
            clients, self._clients = self._clients, set()
        for sock in clients:
            _close(sock)
        self._requests_flow.set()

    def restore(self, port: int | None = None) -> None:
        """Forward again, to ``port`` if given."""
        with self._lock:
            self._target = self._target if port is None else port
            self._open = True

    def stall(self, requests: bool = True, answers: bool = True) -> None:
        """Keep all connections open, but stop forwarding what clients send, or what they get, or both."""
        if requests:
            self._requests_flow.clear()
        if answers:
            self._answers_flow.clear()

    def resume(self) -> None:
        self._requests_flow.set()
        self._answers_flow.set()

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
            self._clients.add(client)
        threading.Thread(target=self._send_requests, args=(client, server), daemon=True).start()
        _pump(server, client, self._answers_flow)
        self._forget(client, server)

    def _send_requests(self, client: socket.socket, server: socket.socket) -> None:
        _pump(client, server, self._requests_flow)
        with self._lock:
            stranded = client in self._sockets and client not in self._clients
        if not stranded:  # else the server is about to answer what it got last
            self._forget(client, server)

    def _forget(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._sockets.difference_update(sockets)
            self._clients.difference_update(sockets)
        for sock in sockets:
            _close(sock)


def _pump(source: socket.socket, sink: socket.socket, flows: threading.Event) -> None:
    try:
        while data := source.recv(65536):
            flows.wait()
            sink.sendall(data)
    except OSError:
        pass


def _close(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()
