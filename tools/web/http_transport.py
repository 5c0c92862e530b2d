"""One deadline for everything that a request does on the network: names, connections, TLS, every read and write.

The time limits of httpx are per operation: a server that sends one byte each half second never meets a read limit of
one second, and name resolution has no limit at all. Here each operation may take what is left until one deadline. A
request runs in one thread from its first byte to its last, so that a context variable carries the deadline to the
connection, which serves many requests.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Any, cast

import httpcore
import httpx

CheckAddresses = Callable[[str, Sequence[str]], None]
KEEP_ALIVE_S = 30.0


@dataclass(slots=True)
class Exchange:
    """What a request shares with the connection that serves it.

    Attributes:
        deadline_s: When everything has to be over, on the clock of ``time.monotonic``.
        closed: Whether the server has closed the connection.
    """

    deadline_s: float
    closed: bool = False

    def remaining_s(self, timeout: type[httpcore.TimeoutException] = httpcore.ReadTimeout) -> float:
        """Seconds until the deadline, more than 0.

        Raises:
            httpcore.TimeoutException: None are left; as the class that is given.
        """
        remaining = self.deadline_s - time.monotonic()
        if remaining <= 0:
            raise timeout("the deadline has passed")
        return remaining


_EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")


@contextmanager
def exchange(deadline_s: float) -> Generator[Exchange]:
    """Set the deadline of what this thread sends and receives inside."""
    current = Exchange(deadline_s)
    token = _EXCHANGE.set(current)
    try:
        yield current
    finally:
        _EXCHANGE.reset(token)


class DeadlineTransport(httpx.BaseTransport):
    """A pool of connections for httpx that keeps the deadline of the running ``exchange``.

    It raises httpcore's exceptions. It knows nothing of proxies, and reads no environment variable but those of
    OpenSSL (``SSL_CERT_FILE``).

    Args:
        max_connections: Connections at once, at most.
        check_addresses: Called with a host and all its addresses before a connection is made; what it raises ends the
            request. The connection then goes to an address that was checked, so a name that resolves to another
            address the next time (DNS rebinding) changes nothing.
    """

    def __init__(self, max_connections: int, check_addresses: CheckAddresses | None = None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls_context(),
            max_connections=max_connections,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=_DeadlineBackend(check_addresses),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the body of the response is read as it is iterated over."""
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                target,
                headers=request.headers.raw,
                content=cast(Iterable[bytes], request.stream),
                extensions={"timeout": {"pool": _EXCHANGE.get().remaining_s()}},
            )
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _DeadlineBackend(httpcore.NetworkBackend):
    def __init__(self, check_addresses: CheckAddresses | None) -> None:
        self._check_addresses = check_addresses
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout  # the deadline is the limit
        current = _EXCHANGE.get()
        addresses = resolve(host, current.remaining_s(httpcore.ConnectTimeout))
        if self._check_addresses is not None:
            self._check_addresses(host, addresses)
        for place, address in enumerate(addresses, start=1):
            # An address that swallows packets must leave time for those after it.
            share_s = current.remaining_s(httpcore.ConnectTimeout) / (len(addresses) - place + 1)
            try:
                return _DeadlineStream(self._backend.connect_tcp(address, port, share_s, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place == len(addresses):
                    raise
        raise httpcore.ConnectError(f"{host} has no address")


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        current = _EXCHANGE.get()
        data = self._stream.read(max_bytes, current.remaining_s())
        current.closed = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Not by the wrapped stream, which grants the whole time to each piece that the system takes.
        del timeout
        current, rest = _EXCHANGE.get(), memoryview(buffer)
        while rest:
            self._socket.settimeout(current.remaining_s(httpcore.WriteTimeout))
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError as error:
                raise httpcore.WriteTimeout("the deadline has passed") from error
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        remaining_s = _EXCHANGE.get().remaining_s(httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, remaining_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def resolve(host: str, timeout_s: float) -> tuple[str, ...]:
    """The addresses of a host, in the system's order.

    The system's resolver cannot be interrupted: one that hangs is left behind in a daemon thread.

    Raises:
        httpcore.ConnectError: The name has no address.
        httpcore.ConnectTimeout: The resolver took longer.
    """
    try:
        return (str(ip_address(host)),)
    except ValueError:  # a name
        pass
    found: list[str] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # the second where a label is empty, too long or not encodable
            errors.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise httpcore.ConnectError(f"{host} has no address") from errors[0]
    if not found:
        raise httpcore.ConnectTimeout(f"the address of {host} was not found in time")
    return tuple(dict.fromkeys(found))


@cache
def _tls_context() -> ssl.SSLContext:
    return httpcore.default_ssl_context()
