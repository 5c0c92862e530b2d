"""An HTTP client for servers that nobody vouches for: every request is bounded in time, size and number of tries."""

from __future__ import annotations

import json as json_library
import random
import time
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.web.circuit_breaker import CircuitBreakers
from forkgym.tools.web.http_transport import CheckAddresses, DeadlineTransport, Exchange, exchange

CheckUrl = Callable[[httpx.URL], None]
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_THAT_KEEP_THE_METHOD = frozenset({307, 308})
MAX_RETRY_AFTER_S = 5.0
NO_ADDRESS = "it redirects to what is no web address"
USER_AGENT = "forkgym"
GZIP = zlib.MAX_WBITS | 16


class ProblemKind(StrEnum):
    """Why a request gave no reply."""

    INVALID = "invalid"  # no URL that can be asked, or a header that cannot be sent
    REFUSED = "refused"  # by a check of the caller's
    CONNECT = "connect"  # no address, or nobody listens there
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"  # before the reply was complete
    PROTOCOL = "protocol"  # what came is not HTTP, or not encoded as it says
    TOO_LARGE = "too large"
    REDIRECT = "redirect"  # too many, or to where none may lead
    STATUS = "status"  # other than 2xx
    UNAVAILABLE = "unavailable"  # not asked: the last requests all failed
    BUSY = "busy"  # not asked: until the deadline, other requests had all the connections


RETRIED_KINDS = frozenset({ProblemKind.CONNECT, ProblemKind.DISCONNECTED})
TRANSPORT_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpx.InvalidURL,  # this and the next two: of a Location
    httpx.RemoteProtocolError,
    UnicodeError,
)
BREAKING_KINDS = frozenset({ProblemKind.CONNECT, ProblemKind.DISCONNECTED, ProblemKind.TIMEOUT})


class HttpProblem(Exception):
    """A request gave no reply. The message is short, in our words, and holds nothing that the server sent.

    Attributes:
        kind: What went wrong.
        status: The status code where there was one.
        retry_after_s: How long the server asked to wait, seconds, where it did.
    """

    def __init__(
        self, kind: ProblemKind, message: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a request may take.

    Attributes:
        total_s: From the call to the last byte, with name resolution, redirects, retries and pauses, seconds.
        max_bytes: Of a body, as sent and after decompression.
        max_redirects: Followed in one request.
        retries: Tries after the first.
        backoff_s: Pause before the first retry, seconds; it doubles each time, times a random factor of 0.5 to 1.5.
        max_connections: To all hosts at once.
        breaker_failures: Failed requests in a row after which a server is not asked for a while.
        breaker_s: How long it is not asked, seconds; then one request tries it.
    """

    total_s: float = 5.0
    max_bytes: int = 2_000_000
    max_redirects: int = 3
    retries: int = 2
    backoff_s: float = 0.1
    max_connections: int = 32
    breaker_failures: int = 5
    breaker_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("total_s", "max_bytes", "max_connections", "breaker_failures"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("max_redirects", "retries", "backoff_s", "breaker_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A reply with a status of 2xx.

    Attributes:
        status: Its status code.
        url: Where it came from, after redirects.
        content_type: The header as it was sent; empty where there is none.
        body: Decompressed.
    """

    status: int
    url: str
    content_type: str
    body: bytes


class BoundedClient(OwnedByProcess):
    """A pooled client whose requests end within their limits, whatever the server does. Threads may share it.

    - One deadline covers everything; see ``http_transport``.
    - A body is cut off while it is read and inflated, so that neither ten declared gigabytes nor a gzip bomb arrive.
    - Redirects stay on the same host and port, unless ``other_hosts``; then only a GET leaves it, without the headers
      of the call. No body or key is ever sent to another host.
    - What may pass by itself is tried again, with growing random pauses: a refused or dropped connection, and the
      statuses 429, 502, 503 and 504, after the time that the server asks for. Requests are reads, a POST of a query
      included, so that it does no harm to send one twice.
    - A server that failed several times in a row is not asked for a while (a circuit breaker): a dead one must not
      cost every call its whole time.
    - Proxies and passwords of the environment are not used, and cookies are not kept.

    Args:
        limits: Of each request.
        check_url: Called with every URL before it is asked for, also after a redirect; what it raises ends the request.
        check_addresses: Called with a host and its addresses before a connection is made; see ``DeadlineTransport``.
        other_hosts: Whether redirects may lead to other hosts.
    """

    def __init__(
        self,
        limits: HttpLimits | None = None,
        *,
        check_url: CheckUrl | None = None,
        check_addresses: CheckAddresses | None = None,
        other_hosts: bool = False,
    ) -> None:
        super().__init__()
        self.limits = limits if limits is not None else HttpLimits()
        self._check_url = check_url
        self._check_addresses = check_addresses
        self._other_hosts = other_hosts
        self._finalizer: weakref.finalize[[], BoundedClient] | None = None
        self.start()

    def start(self) -> None:
        """Make the connection pool of this process."""
        transport = DeadlineTransport(self.limits.max_connections, self._check_addresses)
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip", "Accept": "*/*"}
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx.Client(transport=transport, headers=headers, cookies=cookies, trust_env=False)
        self._breakers = CircuitBreakers(self.limits.breaker_failures, self.limits.breaker_s)
        # In a forked child the parent's pool is only forgotten: to close it takes a lock that may be held for ever.
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        self._client.close()
        self.start()

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        total_s: float | None = None,
    ) -> HttpReply:
        """Send a request.

        Args:
            method: "GET" or "POST".
            url: Where to, http or https.
            json: Body, sent as JSON in ASCII, so that half a surrogate pair is no error here.
            headers: Of the request; they go to the host of ``url`` only.
            total_s: Limit of this request where it is another than the client's, seconds.

        Returns:
            The reply; its status is 2xx.

        Raises:
            HttpProblem: There is none, for any reason that lies outside this program.
        """
        target = _parse(url)
        sent = dict(headers or {})
        content = None
        if json is not None:
            content = json_library.dumps(json, separators=(",", ":")).encode("ascii")
            sent["Content-Type"] = "application/json"
        call = _Call(method, content, sent)
        breaker = self._breakers.of(_origin(target))
        if not breaker.admits():
            raise HttpProblem(ProblemKind.UNAVAILABLE, f"{_place(target)} failed several times and is left alone now")
        with exchange(time.monotonic() + (self.limits.total_s if total_s is None else total_s)) as current:
            try:
                reply = self._with_retries(call, target, current)
            except HttpProblem as problem:
                if problem.kind is not ProblemKind.BUSY:  # which says nothing about this server
                    breaker.note(failed=problem.kind in BREAKING_KINDS)
                raise
        breaker.note(failed=False)
        return reply

    def _with_retries(self, call: _Call, target: httpx.URL, current: Exchange) -> HttpReply:
        for number in range(self.limits.retries + 1):
            try:
                return self._follow(call, target, current)
            except HttpProblem as problem:
                if problem.kind not in RETRIED_KINDS and problem.status not in RETRIED_STATUSES:
                    raise
                pause_s = self.limits.backoff_s * 2**number * random.uniform(0.5, 1.5)
                pause_s = max(pause_s, problem.retry_after_s or 0.0)
                if number == self.limits.retries or time.monotonic() + pause_s >= current.deadline_s:
                    raise
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _follow(self, call: _Call, target: httpx.URL, current: Exchange) -> HttpReply:
        """Send one request and go where its redirects lead."""
        for _ in range(self.limits.max_redirects + 1):
            answer = self._send(call, target, current)
            if isinstance(answer, HttpReply):
                return answer
            if call.method != "GET" and answer.status not in REDIRECTS_THAT_KEEP_THE_METHOD:
                raise HttpProblem(ProblemKind.REDIRECT, f"status {answer.status} to a {call.method}", answer.status)
            if _origin(answer.location) != _origin(target):
                if not self._other_hosts or call.method != "GET":
                    raise HttpProblem(ProblemKind.REDIRECT, "it redirects to another host", answer.status)
                call = _Call(call.method, None, {})
            target = answer.location
        raise HttpProblem(ProblemKind.REDIRECT, f"more than {self.limits.max_redirects} redirects")

    def _send(self, call: _Call, target: httpx.URL, current: Exchange) -> HttpReply | _Redirect:
        if self._check_url is not None:
            self._check_url(target)
        current.closed = False
        try:
            request = self._client.build_request(call.method, target, content=call.content, headers=call.headers)
            response = self._client.send(request, stream=True)
            try:
                if response.status_code in REDIRECTS:
                    return _Redirect(response.status_code, _location(response))
                if not response.is_success:
                    raise _status_problem(response)
                body = self._read(response, current)
            finally:
                response.close()
        except TRANSPORT_ERRORS as error:
            raise _problem_of(error, target, current) from error
        return HttpReply(response.status_code, str(target), response.headers.get("content-type", ""), body)

    def _read(self, response: httpx.Response, current: Exchange) -> bytes:
        """Read a body up to the limit.

        httpx would inflate each piece whole, a thousand times its size where a bomb was sent.
        """
        most = self.limits.max_bytes
        too_large = HttpProblem(ProblemKind.TOO_LARGE, f"the reply is larger than {most} bytes")
        if int(response.headers.get("content-length", 0)) > most:
            raise too_large
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise HttpProblem(ProblemKind.PROTOCOL, "the reply has an encoding that was not asked for")
        inflater = zlib.decompressobj(GZIP) if encoding == "gzip" else None
        body = bytearray()
        for piece in response.iter_raw():
            current.remaining_s()  # a chunked body can be slow to take apart, although it is here
            try:
                body += piece if inflater is None else inflater.decompress(piece, most + 1 - len(body))
            except zlib.error as error:
                raise HttpProblem(ProblemKind.PROTOCOL, "the reply is not gzip, which it says it is") from error
            if len(body) > most or response.num_bytes_downloaded > most:
                raise too_large
        if inflater is not None and not inflater.eof:
            raise HttpProblem(ProblemKind.PROTOCOL, "the reply ends in the middle of its gzip")
        return bytes(body)


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    content: bytes | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Redirect:
    status: int
    location: httpx.URL


def _problem_of(error: Exception, target: httpx.URL, current: Exchange) -> HttpProblem:
    match error:
        case httpcore.PoolTimeout():
            return HttpProblem(ProblemKind.BUSY, "timeout: no connection was free")
        case httpcore.TimeoutException():
            return HttpProblem(ProblemKind.TIMEOUT, "timeout: it took too long")
        case httpcore.ConnectError():
            return HttpProblem(ProblemKind.CONNECT, f"no connection to {_place(target)}")
        case httpcore.NetworkError():
            return HttpProblem(ProblemKind.DISCONNECTED, "the connection was lost")
        case httpcore.LocalProtocolError():
            return HttpProblem(ProblemKind.INVALID, "the request cannot be written as HTTP")
        case httpcore.ProtocolError() if current.closed:
            return HttpProblem(ProblemKind.DISCONNECTED, "the server closed the connection")
        case httpcore.ProtocolError():
            return HttpProblem(ProblemKind.PROTOCOL, "what the server sent is not HTTP")
        case _:  # httpx reads every Location, although it is told to follow none
            return HttpProblem(ProblemKind.REDIRECT, NO_ADDRESS)


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # where it starts with "xn--", it is only decoded, and may be refused, here
    except (httpx.InvalidURL, ValueError) as error:
        raise HttpProblem(ProblemKind.INVALID, "that is no URL") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise HttpProblem(ProblemKind.INVALID, "expected a URL that starts with http:// or https:// and has a host")
    return parsed


def _location(response: httpx.Response) -> httpx.URL:
    try:
        location = response.request.url.join(response.headers.get("location", ""))
        return _parse(str(location))
    except (httpx.InvalidURL, ValueError, HttpProblem) as error:
        raise HttpProblem(ProblemKind.REDIRECT, NO_ADDRESS, response.status_code) from error


def _status_problem(response: httpx.Response) -> HttpProblem:
    after = response.headers.get("retry-after", "")
    # The other form of the header is a date; a clock of someone else's is not worth much.
    retry_after_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdecimal() and after.isascii() else None
    status = response.status_code
    return HttpProblem(ProblemKind.STATUS, f"status {status}", status, retry_after_s)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _place(url: httpx.URL) -> str:
    return url.netloc.decode("ascii", "replace")
