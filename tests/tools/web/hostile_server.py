"""A server on loopback that does with a connection what a test tells it, by bytes."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

POLL_S = 0.05


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    head: bytes
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name.lower():
                return value
        return None


class Connection:
    """One connection, with the few ways in which tests misuse it."""

    def __init__(self, plain: socket.socket, over: threading.Event) -> None:
        self.plain = plain
        self.over = over

    def send(self, data: bytes) -> None:
        self.plain.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, at most until the test ends."""
        self.over.wait(seconds)

    def hang(self) -> None:
        self.over.wait()

    def reset(self) -> None:
        """Close with RST."""
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.plain.close()

    def close(self) -> None:
        self.plain.close()


Behave = Callable[[Connection, Received], None]


def response(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response; its length is in its head unless ``headers`` say otherwise."""
    lines = {"Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


def always(data: bytes) -> Behave:
    """Answer every request with the same bytes."""
    return lambda connection, _: connection.send(data)


class HostileServer:
    """Listens on a free port; calls ``behave`` for each request, in a thread for each connection."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.requests: list[Received] = []
        self.connections = 0
        self._over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listening.settimeout(POLL_S)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/retrieve"

    def __enter__(self) -> HostileServer:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        self._listening.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                plain, _ = self._listening.accept()
            except TimeoutError:
                continue
            plain.settimeout(None)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with plain:
            try:
                while (received := self._receive(plain)) is not None:
                    self.requests.append(received)
                    self.behave(Connection(plain, self._over), received)
            except OSError:  # the client has gone, or ``behave`` has closed
                return

    def _receive(self, plain: socket.socket) -> Received | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := self._read(plain)):
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(Received(head, b"").header("content-length") or 0)
        while len(body) < length:
            if not (piece := self._read(plain)):
                return None
            body += piece
        return Received(head, body)

    def _read(self, plain: socket.socket) -> bytes:
        plain.settimeout(POLL_S)
        while not self._over.is_set():
            try:
                piece = plain.recv(65_536)
            except TimeoutError:
                continue
            plain.settimeout(None)
            return piece
        return b""
