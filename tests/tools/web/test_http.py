"""The bounded client against servers that misbehave, one way at a time."""

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forkgym.tools.web import circuit_breaker
from forkgym.tools.web.circuit_breaker import CircuitBreaker, CircuitBreakers
from forkgym.tools.web.http import BoundedClient, HttpLimits, HttpProblem, ProblemKind
from tests.tools.web.hostile_server import Behave, Connection, HostileServer, Received, always, response

QUICK = HttpLimits(total_s=0.3, max_bytes=1_000, max_redirects=2, retries=2, backoff_s=0.01)
PATIENT = HttpLimits(total_s=30, max_bytes=1_000, max_redirects=2, retries=2, backoff_s=0.01)
FAR_TOO_LONG_S = 10.0  # a busy machine may take its time, but a limit that is not kept takes for ever
OK = response(body=b"ok")

MakeClient = Callable[..., BoundedClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    clients: list[BoundedClient] = []

    def make(limits: HttpLimits = PATIENT, **arguments: Any) -> BoundedClient:
        clients.append(BoundedClient(limits, **arguments))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def one_after_the_other(*answers: bytes) -> Behave:
    """The first answer to the first request, and so on; an empty one closes the connection."""
    left = list(answers)

    def behave(connection: Connection, _: Received) -> None:
        answer = left.pop(0)
        if answer:
            connection.send(answer)
        else:
            connection.close()

    return behave


def problem_of(client: BoundedClient, url: str, method: str = "GET", **arguments: Any) -> HttpProblem:
    begun_s = time.monotonic()
    with pytest.raises(HttpProblem) as caught:
        client.request(method, url, **arguments)
    assert time.monotonic() - begun_s < FAR_TOO_LONG_S
    return caught.value


# Replies.


def test_a_reply(make_client: MakeClient) -> None:
    sent = response(201, b"hello", {"Content-Type": "text/plain; charset=latin-1"})
    with HostileServer(always(sent)) as server:
        reply = make_client().request("GET", server.url)
        assert (reply.status, reply.url, reply.content_type, reply.body) == (
            201,
            server.url,
            "text/plain; charset=latin-1",
            b"hello",
        )
        assert server.requests[0].header("user-agent") == "forkgym"


def test_json_is_sent_in_ascii_so_that_half_a_pair_is_no_error(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        make_client().request("POST", server.url, json={"query": "Zoë\0\ud800\r\n"}, headers={"X-Key": "1"})
        (received,) = server.requests
        assert received.body == b'{"query":"Zo\\u00eb\\u0000\\ud800\\r\\n"}'
        assert (received.header("content-type"), received.header("x-key")) == ("application/json", "1")


def test_a_connection_is_kept(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        client = make_client()
        for _ in range(3):
            client.request("GET", server.url)
        assert (len(server.requests), server.connections) == (3, 1)
        client.close()
        client.request("GET", server.url)
        assert server.connections == 2


def test_threads_share_a_client(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        client = make_client()
        threads = [threading.Thread(target=client.request, args=("GET", server.url)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 20


def test_cookies_are_not_kept(make_client: MakeClient) -> None:
    with HostileServer(always(response(body=b"ok", headers={"Set-Cookie": "id=1"}))) as server:
        client = make_client()
        client.request("GET", server.url)
        client.request("GET", server.url)
        assert server.requests[1].header("cookie") is None


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: it is what is tested
def test_a_forked_child_opens_connections_of_its_own(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        client = make_client()
        client.request("GET", server.url)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if client.request("GET", server.url).body == b"ok" else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert (status, server.connections) == (0, 2)
        client.request("GET", server.url)
        assert server.connections == 2


# The deadline.


def send_slowly(connection: Connection, data: bytes) -> None:
    for byte in data:
        if connection.over.is_set():
            return
        connection.send(bytes([byte]))
        connection.pause(0.05)


def slow_head(connection: Connection, _: Received) -> None:
    send_slowly(connection, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000)


def slow_body(connection: Connection, _: Received) -> None:
    connection.send(response(headers={"Content-Length": "900"}))
    send_slowly(connection, bytes(900))


def slow_chunks(connection: Connection, _: Received) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    send_slowly(connection, b"1\r\nx\r\n" * 200)


def endless_interim_responses(connection: Connection, _: Received) -> None:
    while not connection.over.is_set():
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        connection.pause(0.01)


def silence(connection: Connection, _: Received) -> None:
    connection.hang()


@pytest.mark.parametrize("behave", [silence, slow_head, slow_body, slow_chunks, endless_interim_responses])
def test_the_deadline_holds_however_slowly_a_server_answers(behave: Behave, make_client: MakeClient) -> None:
    with HostileServer(behave) as server:
        problem = problem_of(make_client(QUICK), server.url)
        assert problem.kind is ProblemKind.TIMEOUT
        assert "timeout" in str(problem)
        assert len(server.requests) == 1


def test_the_deadline_of_one_request_can_be_another(make_client: MakeClient) -> None:
    with HostileServer(silence) as server:
        assert problem_of(make_client(), server.url, total_s=0.2).kind is ProblemKind.TIMEOUT
        assert problem_of(make_client(), server.url, total_s=-1.0).kind is ProblemKind.TIMEOUT


def test_the_deadline_holds_where_nobody_reads_what_is_sent(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert problem_of(make_client(QUICK), url, "POST", json="x" * 20_000_000).kind is ProblemKind.TIMEOUT


def test_the_deadline_holds_in_the_tls_handshake(make_client: MakeClient) -> None:
    with HostileServer(silence) as server:
        url = server.url.replace("http:", "https:")
        assert problem_of(make_client(QUICK), url).kind is ProblemKind.TIMEOUT


def test_the_deadline_holds_while_a_name_is_looked_up(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        over.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert problem_of(make_client(QUICK), "http://slow.test/").kind is ProblemKind.TIMEOUT
    over.set()


def test_pauses_and_retries_are_within_the_deadline(make_client: MakeClient) -> None:
    with HostileServer(always(response(503, headers={"Retry-After": "4"}))) as server:
        problem = problem_of(make_client(HttpLimits(total_s=2.0)), server.url)
        assert (problem.kind, problem.status, problem.retry_after_s) == (ProblemKind.STATUS, 503, 4.0)
        assert len(server.requests) == 1  # the pause would end after the deadline


# Sizes.


def test_a_body_of_the_largest_size_is_read(make_client: MakeClient) -> None:
    with HostileServer(always(response(body=b"x" * 1_000))) as server:
        assert len(make_client().request("GET", server.url).body) == 1_000


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize(
    "sent",
    [
        response(body=b"x" * 1_001),
        response(headers={"Content-Length": "10000000000"}),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_001 + b"0\r\n\r\n",
        response(body=gzip.compress(b"x" * 1_001), headers={"Content-Encoding": "gzip"}),
        response(body=gzip.compress(b"x") + bytes(1_000), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["plain", "declared", "chunked", "inflated", "after the gzip"],
)
def test_a_larger_body_is_not(sent: bytes, make_client: MakeClient) -> None:
    with HostileServer(always(sent)) as server:
        problem = problem_of(make_client(), server.url)
        assert problem.kind is ProblemKind.TOO_LARGE
        assert str(problem) == "the reply is larger than 1000 bytes"


def test_gzip_is_inflated(make_client: MakeClient) -> None:
    with HostileServer(
        always(response(body=gzip.compress(b"x" * 1_000), headers={"Content-Encoding": "GZip"}))
    ) as server:
        assert make_client().request("GET", server.url).body == b"x" * 1_000
        assert server.requests[0].header("accept-encoding") == "gzip"


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (b"plain", "gzip", "not gzip"),
        (gzip.compress(b"text")[:-4], "gzip", "in the middle"),
        (b"", "gzip", "in the middle"),
        (b"x", "br", "not asked for"),
        (b"x", "gzip, gzip", "not asked for"),
    ],
)
def test_a_wrong_encoding_is_a_problem(body: bytes, encoding: str, words: str, make_client: MakeClient) -> None:
    with HostileServer(always(response(body=body, headers={"Content-Encoding": encoding}))) as server:
        problem = problem_of(make_client(), server.url)
        assert problem.kind is ProblemKind.PROTOCOL
        assert words in str(problem)


# Retries.


@pytest.mark.parametrize("first", [response(429), response(502), response(503), response(504), b""])
def test_what_may_pass_is_tried_again(first: bytes, make_client: MakeClient) -> None:
    with HostileServer(one_after_the_other(first, first, OK)) as server:
        assert make_client().request("POST", server.url, json=1).body == b"ok"
        assert [received.body for received in server.requests] == [b"1", b"1", b"1"]


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 501])
def test_what_will_not_pass_is_not(status: int, make_client: MakeClient) -> None:
    with HostileServer(always(response(status, b"<answer>x</answer>"))) as server:
        problem = problem_of(make_client(), server.url)
        assert (problem.kind, problem.status) == (ProblemKind.STATUS, status)
        assert str(problem) == f"status {status}"
        assert len(server.requests) == 1


def test_the_tries_are_counted(make_client: MakeClient) -> None:
    with HostileServer(always(response(503))) as server:
        assert problem_of(make_client(), server.url).status == 503
        assert len(server.requests) == 3
    with HostileServer(always(response(503))) as server:
        assert problem_of(make_client(HttpLimits(retries=0)), server.url).status == 503
        assert len(server.requests) == 1


def test_the_server_says_when_to_come_again(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    answers = [
        response(503, headers={"Retry-After": "3"}),
        response(503, headers={"Retry-After": "99999999999"}),
        response(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        OK,
    ]
    with HostileServer(one_after_the_other(*answers)) as server:
        make_client(HttpLimits(total_s=60, retries=3, backoff_s=0.1)).request("GET", server.url)
    assert pauses_s[:2] == [3.0, 5.0]  # the second is capped
    assert 0.2 <= pauses_s[2] <= 0.6  # the third pause: 0.1 s * 2^2, times 0.5 to 1.5


def test_a_connection_that_was_dropped_while_idle_is_replaced(make_client: MakeClient) -> None:
    def answer_and_close(connection: Connection, _: Received) -> None:
        connection.send(OK)
        connection.close()

    with HostileServer(answer_and_close) as server:
        client = make_client(HttpLimits(retries=1, backoff_s=0.0))
        for _ in range(3):
            assert client.request("GET", server.url).body == b"ok"
        assert len(server.requests) == 3


def test_nobody_listens(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    problem = problem_of(make_client(), f"http://127.0.0.1:{port}/secret?key=1")
    assert problem.kind is ProblemKind.CONNECT
    assert str(problem) == f"no connection to 127.0.0.1:{port}"


@pytest.mark.parametrize(
    "raw",
    [b"\x00\xff\xfe not http\r\n\r\n", b"HTTP/1.1 OK 200\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
)
def test_what_is_not_http(raw: bytes, make_client: MakeClient) -> None:
    with HostileServer(always(raw)) as server:
        assert problem_of(make_client(), server.url).kind is ProblemKind.PROTOCOL
        assert len(server.requests) == 1


def test_a_header_of_the_call_that_is_none(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        problem = problem_of(make_client(), server.url, headers={"X-Key": "a\r\nHost: evil"})
        assert problem.kind is ProblemKind.INVALID
        assert "evil" not in str(problem)
        assert server.requests == []


# Redirects.


def redirect(location: str, status: int = 307) -> bytes:
    return response(status, headers={"Location": location})


def test_a_redirect_on_the_same_server_is_followed_with_body_and_headers(make_client: MakeClient) -> None:
    with HostileServer(one_after_the_other(redirect("/there"), OK)) as server:
        reply = make_client().request("POST", server.url, json=1, headers={"Authorization": "Bearer secret"})
        assert reply.url == f"http://127.0.0.1:{server.port}/there"
        first, second = server.requests
        assert (second.path, second.body, second.header("authorization")) == ("/there", b"1", "Bearer secret")
        assert (first.path, first.body) == ("/retrieve", b"1")


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_post_is_never_turned_into_a_get(status: int, make_client: MakeClient) -> None:
    with HostileServer(always(redirect("/there", status))) as server:
        problem = problem_of(make_client(), server.url, "POST", json=1)
        assert (problem.kind, problem.status, len(server.requests)) == (ProblemKind.REDIRECT, status, 1)
        assert problem_of(make_client(), server.url, "GET").status is None  # followed, until there were too many


def test_redirects_are_counted(make_client: MakeClient) -> None:
    with HostileServer(always(redirect("/again"))) as server:
        problem = problem_of(make_client(), server.url)
        assert (problem.kind, str(problem)) == (ProblemKind.REDIRECT, "more than 2 redirects")
        assert len(server.requests) == 3
    with HostileServer(one_after_the_other(redirect("/a"), redirect("/b"), OK)) as server:
        assert make_client().request("GET", server.url).body == b"ok"


def test_a_redirect_to_another_server_is_refused(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as other, HostileServer(always(redirect(other.url))) as server:
        for method in ("GET", "POST"):
            problem = problem_of(make_client(), server.url, method, json=1, headers={"Authorization": "Bearer secret"})
            assert (problem.kind, problem.status) == (ProblemKind.REDIRECT, 307)
        assert other.connections == 0


def test_where_other_servers_are_allowed_only_a_get_goes_there_and_no_header(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as other, HostileServer(always(redirect(other.url))) as server:
        client = make_client(other_hosts=True)
        headers = {"Authorization": "Bearer secret"}
        assert client.request("GET", server.url, headers=headers).url == other.url
        assert server.requests[0].header("authorization") == "Bearer secret"
        assert other.requests[0].header("authorization") is None
        assert problem_of(client, server.url, "POST", json=1).kind is ProblemKind.REDIRECT
        assert len(other.requests) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://xn--a/",
        "file:///etc/passwd",
        "http://[::1",
        "http://",
        "//",
        "gopher://x/",
        "http://a\x01b/",
        "\xff",
        "x:y",
    ],
)
def test_a_redirect_to_what_is_no_web_address(location: str, make_client: MakeClient) -> None:
    with HostileServer(always(redirect(location))) as server:
        problem = problem_of(make_client(other_hosts=True), server.url)
        assert problem.kind in (ProblemKind.REDIRECT, ProblemKind.PROTOCOL)


@given(
    st.binary(max_size=40) | st.text("htp:/.@[]#?%ax1\x01\xff", max_size=20).map(lambda text: text.encode("latin-1"))
)
def test_any_location_gives_a_problem_or_another_request(location: bytes) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers=[(b"Location", location)], content=b"")

    client = BoundedClient(HttpLimits(retries=0), other_hosts=True)
    client._client = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.raises(HttpProblem) as caught:
        client.request("GET", "http://127.0.0.1:1/start")
    assert caught.value.kind is ProblemKind.REDIRECT
    client.close()


# Checks of the caller's.


def refuse(*_: object) -> None:
    raise HttpProblem(ProblemKind.REFUSED, "not there")


def test_every_url_is_checked_before_it_is_asked_for(make_client: MakeClient) -> None:
    seen: list[str] = []

    def check(url: httpx.URL) -> None:
        seen.append(url.path)
        if url.path == "/there":
            refuse()

    with HostileServer(always(redirect("/there"))) as server:
        assert problem_of(make_client(check_url=check), server.url).kind is ProblemKind.REFUSED
        assert seen == ["/retrieve", "/there"]
        assert len(server.requests) == 1


def test_addresses_are_checked_and_the_checked_one_is_used(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[str] = []
    get_address = socket.getaddrinfo

    def rebind(host: str, *rest: Any, **named: Any) -> Any:
        if host == "rebind.test":
            resolved.append(host)
            host = "127.0.0.1" if len(resolved) == 1 else "127.0.0.2"  # another one after the check
        return get_address(host, *rest, **named)

    seen: list[tuple[str, Sequence[str]]] = []

    def see(host: str, addresses: Sequence[str]) -> None:
        seen.append((host, addresses))

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with HostileServer(always(OK)) as server:
        client = make_client(check_addresses=see)
        url = f"http://rebind.test:{server.port}/"
        assert client.request("GET", url).body == b"ok"
        assert server.requests[0].header("host") == f"rebind.test:{server.port}"
        client.request("GET", url)
    assert seen == [("rebind.test", ("127.0.0.1",))]  # the second request used the first one's connection


def test_a_refused_address_is_not_connected_to(make_client: MakeClient) -> None:
    with HostileServer(always(OK)) as server:
        problem = problem_of(make_client(check_addresses=refuse), server.url)
        assert (problem.kind, server.connections) == (ProblemKind.REFUSED, 0)


def test_the_next_address_is_tried(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    get_address = socket.getaddrinfo

    def two(host: str, *rest: Any, **named: Any) -> Any:
        hosts = ("127.0.0.9", "127.0.0.1") if host == "two.test" else (host,)
        return [entry for one in hosts for entry in get_address(one, *rest, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with HostileServer(always(OK)) as server:  # listens on 127.0.0.1 only
        assert make_client().request("GET", f"http://two.test:{server.port}/").body == b"ok"


def nowhere(url: httpx.URL) -> None:
    raise HttpProblem(ProblemKind.REFUSED, "not there")


@example("http://xn--a/")  # another library's error, and only once the host is asked for
@given(
    st.text() | st.text().map("http://".__add__) | st.text("0123456789abcdef.:[]@/?#%\ud800\0").map("http://".__add__)
)
def test_any_text_as_url_is_a_problem_and_nothing_else(text: str) -> None:
    client = BoundedClient(check_url=nowhere)
    with pytest.raises(HttpProblem) as caught:
        client.request("GET", text)
    assert caught.value.kind in (ProblemKind.INVALID, ProblemKind.REFUSED)


# The circuit breaker.


def test_a_server_that_keeps_failing_is_left_alone_for_a_while(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = HttpLimits(total_s=30, retries=0, breaker_failures=3, breaker_s=1_000)
    with HostileServer(one_after_the_other(b"", b"", b"", OK, b"")) as server:
        client = make_client(limits)
        for _ in range(3):
            assert problem_of(client, server.url).kind is ProblemKind.DISCONNECTED
        problem = problem_of(client, server.url)
        assert (problem.kind, len(server.requests)) == (ProblemKind.UNAVAILABLE, 3)
        # Another server is another matter.
        with HostileServer(always(OK)) as other:
            assert client.request("GET", other.url).body == b"ok"
        clock = Clock(monkeypatch)
        clock.now_s = time.monotonic() + 1_001
        assert client.request("GET", server.url).body == b"ok"
        assert problem_of(client, server.url).kind is ProblemKind.DISCONNECTED


def test_a_status_is_no_failure_of_the_server(make_client: MakeClient) -> None:
    with HostileServer(always(response(404))) as server:
        client = make_client(HttpLimits(breaker_failures=1, breaker_s=1_000))
        for _ in range(3):
            assert problem_of(client, server.url).status == 404


def test_a_server_that_waits_for_a_free_connection_is_not_the_one_that_fails(make_client: MakeClient) -> None:
    reached, opened = threading.Event(), threading.Event()

    def hold(connection: Connection, _: Received) -> None:
        reached.set()
        opened.wait(30)
        connection.send(OK)

    client = make_client(HttpLimits(total_s=30, retries=0, max_connections=1, breaker_failures=1, breaker_s=1_000))
    with HostileServer(hold) as slow, HostileServer(always(OK)) as other, ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.request, "GET", slow.url)
        assert reached.wait(30)
        with pytest.raises(HttpProblem, match="timeout: no connection was free") as caught:
            client.request("GET", other.url, total_s=0.1)
        assert caught.value.kind is ProblemKind.BUSY
        opened.set()
        assert held.result(30).body == b"ok"
        assert client.request("GET", other.url).body == b"ok"  # it is asked: nothing was held against it


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(circuit_breaker, "time", SimpleNamespace(monotonic=lambda: self.now_s))


def test_the_states_of_a_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    breaker = CircuitBreaker(most=2, open_s=10.0)
    breaker.note(failed=True)
    breaker.note(failed=False)
    breaker.note(failed=True)
    assert breaker.admits()  # two failures, but not in a row
    breaker.note(failed=True)
    assert not breaker.admits()
    clock.now_s += 9.9
    assert not breaker.admits()
    clock.now_s += 0.1
    assert breaker.admits()  # one may try
    assert not breaker.admits()
    breaker.note(failed=True)
    clock.now_s += 9.9
    assert not breaker.admits()
    clock.now_s += 0.1
    assert breaker.admits()
    breaker.note(failed=False)
    assert breaker.admits()
    assert breaker.admits()


def test_the_oldest_breaker_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "MAX_KNOWN", 2)
    breakers = CircuitBreakers(most=1, open_s=10.0)
    for name in ("a", "b"):
        breakers.of(name).note(failed=True)
    assert breakers.of("c").admits()
    assert not breakers.of("b").admits()
    assert breakers.of("a").admits()


@pytest.mark.parametrize(
    ("field", "value"),
    [("total_s", 0), ("max_bytes", 0), ("retries", -1), ("backoff_s", -0.1), ("total_s", float("nan"))],
)
def test_limits_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        HttpLimits(**{field: value})  # type: ignore[arg-type]
