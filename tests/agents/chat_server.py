"""A chat endpoint on loopback, whose replies a test writes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """A reply with a status and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Respond = Callable[[Body], Raw]


class Server(ThreadingHTTPServer):
    """Its threads end with the test, and say nothing of clients that broke off."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless the client went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class ChatServer:
    """What it was asked, and how many requests it held at once."""

    url: str = ""
    bodies: list[Body] = field(default_factory=list[Body])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    paths: list[str] = field(default_factory=list[str])
    now: int = 0
    most: int = 0


def said(
    content: str | None, finish_reason: str = "stop", calls: Sequence[tuple[str, str, str]] = (), **more: Any
) -> Raw:
    """A completion of one choice; calls as id, name and arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, **more}
    return Raw(200, json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": None}).encode())


def wrong(status: int, message: str, **headers: str) -> Raw:
    """An error as OpenAI words it."""
    return Raw(status, json.dumps({"error": {"message": message, "code": None}}).encode(), headers)


@contextmanager
def serving(respond: Respond) -> Generator[ChatServer, None, None]:
    """Serve until the end of the block."""
    seen = ChatServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body: Body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                seen.bodies.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                seen.paths.append(self.path)
                seen.now += 1
                seen.most = max(seen.most, seen.now)
            reply = respond(body)
            with lock:
                seen.now -= 1
            try:
                self.send_response(reply.status)
                for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(reply.body)
            except ConnectionError:  # a client that gave up
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Write no log."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
