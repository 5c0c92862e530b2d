"""The client of search servers: dialects, batches, and replies that are not what they should be."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.base import ToolFailure
from forkgym.tools.passages import Passage
from forkgym.tools.web.http import HttpLimits, HttpProblem, ProblemKind
from forkgym.tools.web.remote_search import RemoteRetriever, read_reply, search_server
from forkgym.tools.web.search_cache import CachedRetriever
from tests.tools.web.hostile_server import Behave, Connection, HostileServer, Received, always, response

PATIENT = HttpLimits(total_s=30, backoff_s=0.01)
ENOUGH_S = 20.0  # for what happens at once on an idle machine

MakeRetriever = Callable[..., RemoteRetriever]


@pytest.fixture
def make_retriever() -> Iterator[MakeRetriever]:
    retrievers: list[RemoteRetriever] = []

    def make(url: str, *arguments: Any, limits: HttpLimits = PATIENT, **named: Any) -> RemoteRetriever:
        retrievers.append(RemoteRetriever(url, *arguments, limits=limits, **named))
        return retrievers[-1]

    yield make
    for retriever in retrievers:
        retriever.close()


def found(query: str) -> list[dict[str, Any]]:
    return [{"document": {"id": "1", "contents": f'"About {query}"\ntext'}, "score": 0.5}]


def reply(*queries: str) -> bytes:
    return response(body=json.dumps({"result": [found(query) for query in queries]}).encode())


def search_r1(connection: Connection, received: Received) -> None:
    """Knows ``queries`` only, as FastAPI does with a required field."""
    queries = received.json.get("queries")
    connection.send(response(422, b'{"detail": "Field required"}') if queries is None else reply(*queries))


def skyrl(connection: Connection, received: Received) -> None:
    query = received.json.get("query")
    connection.send(response(422, b'{"detail": "Field required"}') if query is None else reply(query))


def titles(passages: list[Passage]) -> list[str]:
    return [passage.title for passage in passages]


# Dialects.


def test_search_r1s_dialect(make_retriever: MakeRetriever) -> None:
    with HostileServer(search_r1) as server:
        retriever = make_retriever(server.url, "search_r1")
        assert retriever.search("ayr", 3) == [Passage("About ayr", "text", "1")]
        assert server.requests[0].json == {"queries": ["ayr"], "topk": 3, "return_scores": True}


def test_skyrls_dialect(make_retriever: MakeRetriever) -> None:
    with HostileServer(skyrl) as server:
        retriever = make_retriever(server.url, "skyrl")
        assert retriever.search("ayr", 2) == [Passage("About ayr", "text", "1")]
        assert server.requests[0].json == {"query": "ayr", "topk": 2, "return_scores": True}


@pytest.mark.parametrize(("behave", "requests"), [(search_r1, 2), (skyrl, 3)])
def test_the_dialect_is_found_out_once(behave: Behave, requests: int, make_retriever: MakeRetriever) -> None:
    with HostileServer(behave) as server:
        retriever = make_retriever(server.url)
        for query in ("ayr", "bly"):
            assert titles(retriever.search(query, 3)) == [f"About {query}"]
        assert len(server.requests) == requests


def test_many_threads_find_out_together(make_retriever: MakeRetriever) -> None:
    for behave in (search_r1, skyrl):
        with HostileServer(behave) as server, ThreadPoolExecutor(16) as pool:
            retriever = make_retriever(server.url)
            queries = [f"q{number}" for number in range(64)]
            futures = [pool.submit(retriever.search, query, 3) for query in queries]
            assert [titles(future.result(ENOUGH_S)) for future in futures] == [[f"About {query}"] for query in queries]


def test_a_server_that_knows_neither_dialect_fails(make_retriever: MakeRetriever) -> None:
    with HostileServer(always(response(422))) as server:
        with pytest.raises(ToolFailure, match="search server: status 422"):
            make_retriever(server.url).search("ayr", 3)
        assert len(server.requests) == 2


def test_a_query_is_data(make_retriever: MakeRetriever) -> None:
    with HostileServer(search_r1) as server:
        retriever = make_retriever(server.url)
        query = 'http://169.254.169.254/\r\nHost: evil"}],'
        assert titles(retriever.search(query, 3)) == ['"About http://169.254.169.254/']  # the first line
        retriever.search("a\0b\ud800c", 3)
        assert server.requests[0].json["queries"] == [query]
        assert server.requests[1].json["queries"] == ["a\ufffdb\ufffdc"]


def test_a_key_is_sent_and_never_shown(make_retriever: MakeRetriever) -> None:
    with HostileServer(always(response(401, b"wrong key: secret"))) as server:
        with pytest.raises(ToolFailure) as caught:
            make_retriever(server.url, api_key="secret").search("ayr", 3)
        assert str(caught.value) == "search server: status 401"
        assert server.requests[0].header("authorization") == "Bearer secret"
    with pytest.raises(ValueError, match="api_key holds white space") as refused:
        RemoteRetriever(server.url, api_key="secret\n")
    assert "secret" not in str(refused.value)


def test_the_usual_path_may_be_left_out(make_retriever: MakeRetriever) -> None:
    with HostileServer(search_r1) as server:
        base = f"http://127.0.0.1:{server.port}"
        for url in (base, f"{base}/", f"{base}/retrieve", f"{base}/a/b", f"{base}/?k=1"):
            make_retriever(url, "search_r1").search("ayr", 3)
        assert [received.path for received in server.requests] == ["/retrieve"] * 3 + ["/a/b", "/?k=1"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x/", "http://", "http:///retrieve", "corpus.json"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL such as http://"):
        RemoteRetriever(url)


def test_numbers_are_checked(make_retriever: MakeRetriever) -> None:
    with pytest.raises(ValueError, match="max_batch is 0"):
        RemoteRetriever("http://127.0.0.1:1/", max_batch=0)
    with pytest.raises(ValueError, match="top_k is 0"):
        make_retriever("http://127.0.0.1:1/").search("ayr", 0)
    with pytest.raises(ValueError, match="esperanto"):
        RemoteRetriever("http://127.0.0.1:1/", "esperanto")


# Batches.


class Gate:
    """A Search-R1 server that holds its first request back until it is opened."""

    def __init__(self, behave: Behave = search_r1) -> None:
        self.behave = behave
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: Connection, received: Received) -> None:
        if not self.reached.is_set():
            self.reached.set()
            self.opened.wait(ENOUGH_S)
        self.behave(connection, received)


def ask_behind(
    gate: Gate, retriever: RemoteRetriever, asked: list[tuple[str, int]], pool: ThreadPoolExecutor
) -> list[Future[list[Passage]]]:
    """Ask while another request is under way, then let all go on."""
    first = pool.submit(retriever.search, "first", 3)
    assert gate.reached.wait(ENOUGH_S)
    futures = [pool.submit(retriever.search, query, top_k) for query, top_k in asked]
    wait_until(lambda: len(retriever._waiting) == len(asked))
    gate.opened.set()
    assert titles(first.result(ENOUGH_S)) == ["About first"]
    return futures


def wait_until(happened: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(ENOUGH_S / 0.01)):
        if happened():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def test_what_arrives_during_a_request_leaves_together(make_retriever: MakeRetriever) -> None:
    gate = Gate()
    with HostileServer(gate) as server, ThreadPoolExecutor(11) as pool:
        asked = [(f"q{number}", 3) for number in range(10)]
        futures = ask_behind(gate, make_retriever(server.url, "search_r1"), asked, pool)
        assert [titles(future.result(ENOUGH_S)) for future in futures] == [[f"About {query}"] for query, _ in asked]
        sizes = [len(received.json["queries"]) for received in server.requests]
        assert sizes == [1, 10]


def test_a_batch_has_a_limit_and_one_number_of_passages(make_retriever: MakeRetriever) -> None:
    gate = Gate()
    with HostileServer(gate) as server, ThreadPoolExecutor(8) as pool:
        retriever = make_retriever(server.url, "search_r1", max_batch=2)
        futures = ask_behind(gate, retriever, [(f"q{number}", 3) for number in range(5)], pool)
        for future in futures:
            future.result(ENOUGH_S)
        assert [len(received.json["queries"]) for received in server.requests] == [1, 2, 2, 1]
    gate = Gate()
    with HostileServer(gate) as server, ThreadPoolExecutor(4) as pool:
        asked = [("a", 1), ("b", 2), ("c", 1)]
        for future in ask_behind(gate, make_retriever(server.url, "search_r1"), asked, pool):
            future.result(ENOUGH_S)
        assert sorted(received.json["topk"] for received in server.requests) in ([1, 1, 2, 3], [1, 2, 3])


def test_without_batches_each_query_is_a_request(make_retriever: MakeRetriever) -> None:
    with HostileServer(search_r1) as server, ThreadPoolExecutor(8) as pool:
        retriever = make_retriever(server.url, max_batch=1)
        for future in [pool.submit(retriever.search, f"q{number}", 3) for number in range(20)]:
            future.result(ENOUGH_S)
        assert [len(received.json["queries"]) for received in server.requests] == [1] * 20


def refuse_poison(connection: Connection, received: Received) -> None:
    queries = received.json["queries"]
    connection.send(response(500) if "poison" in queries else reply(*queries))


def swallow_poison(connection: Connection, received: Received) -> None:
    queries = received.json["queries"]
    if "poison" in queries:
        connection.hang()
    connection.send(reply(*queries))


def drop_one(connection: Connection, received: Received) -> None:
    """Leaves out a result where there are several queries."""
    queries = received.json["queries"]
    connection.send(reply(*(queries if len(queries) == 1 else queries[1:])))


@pytest.mark.parametrize(
    ("behave", "limit_s", "fails"), [(refuse_poison, 30.0, True), (swallow_poison, 4.0, True), (drop_one, 30.0, False)]
)
def test_a_query_that_spoils_its_batch_costs_the_others_nothing_else(
    behave: Behave, limit_s: float, fails: bool, make_retriever: MakeRetriever
) -> None:
    gate = Gate(behave)
    with HostileServer(gate) as server, ThreadPoolExecutor(6) as pool:
        retriever = make_retriever(server.url, "search_r1", limits=HttpLimits(total_s=limit_s))
        asked = [("a", 3), ("b", 3), ("poison", 3), ("c", 3)]
        futures = ask_behind(gate, retriever, asked, pool)
        for (query, _), future in zip(asked, futures, strict=True):
            if query == "poison" and fails:
                with pytest.raises(ToolFailure):
                    future.result(ENOUGH_S)
            else:
                assert titles(future.result(ENOUGH_S)) == [f"About {query}"]


def test_an_exception_in_the_thread_that_sends_a_batch_stays_there(
    make_retriever: MakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with HostileServer(gate) as server, ThreadPoolExecutor(4) as pool:
        retriever = make_retriever(server.url, "search_r1", limits=HttpLimits(total_s=10 * ENOUGH_S))
        post = retriever._post

        def interrupted(question: dict[str, Any], top_k: int, limit_s: float) -> list[list[Passage]]:
            if len(question["queries"]) > 1:
                raise InterruptedError("Ctrl-C")
            return post(question, top_k, limit_s)

        monkeypatch.setattr(retriever, "_post", interrupted)
        futures = ask_behind(gate, retriever, [("a", 3), ("b", 3), ("c", 3)], pool)
        errors = [future.exception(ENOUGH_S) for future in futures]
        assert sorted(type(error).__name__ for error in errors) == ["InterruptedError", "NoneType", "NoneType"]


def test_nobody_waits_behind_a_hanging_request_for_ever(make_retriever: MakeRetriever) -> None:
    with HostileServer(swallow_poison) as server, ThreadPoolExecutor(2) as pool:
        retriever = make_retriever(server.url, "search_r1", limits=HttpLimits(total_s=2.0))
        hanging = pool.submit(retriever.search, "poison", 3)
        wait_until(lambda: len(server.requests) == 1)
        assert titles(pool.submit(retriever.search, "a", 3).result(ENOUGH_S)) == ["About a"]
        with pytest.raises(ToolFailure, match="timeout"):
            hanging.result(ENOUGH_S)


def test_a_dead_server_is_asked_a_few_times_only(make_retriever: MakeRetriever) -> None:
    with HostileServer(lambda connection, _: connection.close()) as server, ThreadPoolExecutor(8) as pool:
        retriever = make_retriever(server.url, limits=HttpLimits(total_s=30, retries=0, breaker_failures=3))
        futures = [pool.submit(retriever.search, f"q{number}", 3) for number in range(100)]
        assert all(isinstance(future.exception(ENOUGH_S), ToolFailure) for future in futures)
        assert len(server.requests) <= 3 + 8


def test_many_threads_get_their_own_results(make_retriever: MakeRetriever) -> None:
    with HostileServer(search_r1) as server, ThreadPoolExecutor(32) as pool:
        retriever = make_retriever(server.url)
        queries = [f"q{number}" for number in range(400)]
        futures = [pool.submit(retriever.search, query, 3) for query in queries]
        assert [titles(future.result(ENOUGH_S)) for future in futures] == [[f"About {query}"] for query in queries]
        assert not retriever._waiting
        assert not retriever._under_way


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: it is what is tested
def test_a_forked_child_searches_although_the_parent_was_in_a_request(make_retriever: MakeRetriever) -> None:
    gate = Gate()
    with HostileServer(gate) as server, ThreadPoolExecutor(2) as pool:
        retriever = make_retriever(server.url, "search_r1")
        first = pool.submit(retriever.search, "first", 3)
        assert gate.reached.wait(ENOUGH_S)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if titles(retriever.search("child", 3)) == ["About child"] else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        gate.opened.set()
        assert titles(first.result(ENOUGH_S)) == ["About first"]


# Replies.


def test_documents_in_every_layout() -> None:
    scored = {"document": {"id": 7, "contents": '"Ayr"\nA town.'}, "score": 1}
    bare = {"id": "8", "contents": "Bly\nA river."}
    titled = {"document": {"title": "Col", "text": "A café."}}
    body = json.dumps({"took": 3, "result": [[scored, bare], [titled], []]})
    assert read_reply(body.encode(), 3) == [
        [Passage("Ayr", "A town.", "7"), Passage("Bly", "A river.", "8")],
        [Passage("Col", "A café.")],
        [],
    ]


def test_no_more_passages_than_were_asked_for() -> None:
    body = json.dumps({"result": [found("a") * 5]}).encode()
    assert len(read_reply(body, 3)[0]) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[1, 2, 3]",
        b"null",
        b'{"result": null}',
        b'{"result": [null]}',
        b'{"result": [[null]]}',
        b'{"results": [[]]}',
        b'{"result": [[{"document": null}]]}',
        b'{"result": [[{"document": {"contents": 7}}]]}',
        b'{"result": [[{"document": {"contents": "a"}, "score": NaN}]]}',
        b'{"result": [[{"document": {"contents": "a"}, "score": Infinity}]]}',
        b'{"result": [[{"document": {"contents": "a"}, "score": "high"}]]}',
        b'{"result": [[{"document": {"contents": "\\ud800"}}]]}',
        b'{"result": [[{"document": {"contents": "\xe9"}}]]}',
        b'{"result": [[{"document": {"contents": "a"',
        b"[" * 100_000,
        b'{"result":' * 10_000,
        b"9" * 100_000,
    ],
)
def test_a_reply_of_another_kind_is_a_failure(body: bytes, make_retriever: MakeRetriever) -> None:
    with HostileServer(always(response(body=body))) as server:
        with pytest.raises(ToolFailure) as caught:
            make_retriever(server.url).search("ayr", 3)
        assert str(caught.value) == "search server: error in the reply: it is not what the protocol says"


@pytest.mark.parametrize("results", [0, 2])
def test_a_wrong_number_of_results_is_a_failure(results: int, make_retriever: MakeRetriever) -> None:
    with HostileServer(always(reply(*["other"] * results))) as server:
        with pytest.raises(ToolFailure, match=f"{results} results for one query"):
            make_retriever(server.url).search("ayr", 3)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["result", "document", "contents", "title", "text", "id", "score"]), inner)
    ),
    max_leaves=12,
)


@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps({"result": [[value]]}).encode()))
def test_any_body_gives_passages_or_a_problem(body: bytes) -> None:
    try:
        lists = read_reply(body, 3)
    except HttpProblem as problem:
        assert problem.kind is ProblemKind.PROTOCOL
    else:
        assert all(isinstance(passage, Passage) for passages in lists for passage in passages)


# What the environment says.


def test_the_key_and_the_cache_are_taken_from_the_environment(tmp_path: Path) -> None:
    with HostileServer(search_r1) as server:
        cache = str(tmp_path / "found.sqlite")
        environment = {"FORKGYM_SEARCH_API_KEY": "secret", "FORKGYM_SEARCH_CACHE": cache}
        for _ in range(2):
            retriever = search_server(server.url, environment)
            assert retriever.search("ayr", 3) == [Passage("About ayr", "text", "1")]
        assert len(server.requests) == 1
        assert server.requests[0].header("authorization") == "Bearer secret"
        assert isinstance(search_server(server.url, {}), RemoteRetriever)


def test_a_cache_of_arpos_is_read_first(tmp_path: Path) -> None:
    path = tmp_path / "search_cache.json"
    path.write_text(json.dumps({"Where is Ayr?": "Page 1: In Scotland."}))
    with HostileServer(search_r1) as server:
        retriever = search_server(server.url, {"FORKGYM_SEARCH_CACHE": str(path)})
        assert isinstance(retriever, CachedRetriever)
        assert retriever.search("Where is  ayr?", 3) == [Passage("Page 1", "In Scotland.")]
        assert titles(retriever.search("bly", 3)) == ["About bly"]
        assert len(server.requests) == 1
        assert json.loads(path.read_text()) == {"Where is Ayr?": "Page 1: In Scotland."}
