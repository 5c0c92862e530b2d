"""The search server: its application, and the script that serves it."""

import asyncio
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.base import ToolError, ToolFailure
from forkgym.tools.passages import Passage
from forkgym.tools.retrieval import retriever_for
from forkgym.tools.search import Retriever
from forkgym.tools.web import search_server
from forkgym.tools.web.remote_search import RemoteRetriever
from forkgym.tools.web.search_server import MAX_BODY_BYTES, MAX_QUERIES, search_app

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "serve_search.py"
AYR = Passage("Ayr", 'A "town" on the\ncoast.', "7")
BLY = Passage("Bly River", "It runs to the coast: Zoë.")
STARTED_S = 60.0


class Fixed:
    """Finds the same for every query but "wrong" and "down"."""

    timeout_s = 3.0

    def __init__(self, inline: bool = True) -> None:
        self.inline = inline
        self.asked: list[tuple[str, int, str]] = []

    def search(self, query: str, top_k: int) -> list[Passage]:
        self.asked.append((query, top_k, threading.current_thread().name))
        if query == "wrong":
            raise ToolError("the query is wrong")
        if query == "down":
            raise ToolFailure("the index is gone")
        return [AYR, BLY][:top_k]


async def send(retriever: Retriever, method: str, path: str, content: bytes | None) -> httpx.Response:
    transport = httpx.ASGITransport(app=search_app(retriever, top_k=2))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path, content=content)


def post(body: Mapping[str, Any] | bytes, retriever: Retriever | None = None) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(send(retriever or Fixed(), "POST", "/retrieve", content))


AYR_DOCUMENT = {"id": "7", "contents": '"Ayr"\nA "town" on the\ncoast.'}
BLY_DOCUMENT = {"id": "", "contents": '"Bly River"\nIt runs to the coast: Zoë.'}


def test_the_protocol_of_search_r1() -> None:
    retriever = Fixed()
    answer = post({"queries": ["a", "b"], "topk": 1, "return_scores": True}, retriever)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"result": [[{"document": AYR_DOCUMENT, "score": 1.0}]] * 2}
    assert [(query, top_k) for query, top_k, _ in retriever.asked] == [("a", 1), ("b", 1)]
    both = post({"queries": ["a"], "topk": 2, "return_scores": True}).json()["result"][0]
    assert [entry["score"] for entry in both] == [1.0, 0.5]


def test_the_protocol_of_skyrl() -> None:
    answer = post({"query": "a", "topk": 2, "return_scores": True})
    assert answer.json() == {
        "result": [[{"document": AYR_DOCUMENT, "score": 1.0}, {"document": BLY_DOCUMENT, "score": 0.5}]]
    }


def test_the_number_and_the_scores_are_optional_and_other_fields_are_ignored() -> None:
    for body in ({"query": "a"}, {"query": "a", "topk": None}, {"query": "a", "topk": 0}, {"query": "a", "user": 7}):
        assert post(body).json() == {"result": [[AYR_DOCUMENT, BLY_DOCUMENT]]}
    assert post({"queries": []}).json() == {"result": []}
    assert post({"query": ""}).status_code == 200


def test_health() -> None:
    answer = asyncio.run(send(Fixed(), "GET", "/health", None))
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_an_inline_retriever_runs_in_the_loops_thread_and_another_beside_it() -> None:
    inline, beside = Fixed(), Fixed(inline=False)
    for retriever in (inline, beside):
        assert len(post({"queries": ["a", "b", "c"], "topk": 1}, retriever).json()["result"]) == 3
    main = threading.current_thread().name
    assert {thread for _, _, thread in inline.asked} == {main}
    assert main not in {thread for _, _, thread in beside.asked}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "Invalid JSON"),
        (b"{", 400, "Invalid JSON"),
        (b'{"query": "\xe9"}', 400, "Invalid JSON"),
        (b'{"query": "\\ud800"}', 400, "Invalid JSON"),
        (b"[" * 100_000, 400, "Invalid JSON"),
        (b"[]", 422, "object"),
        (b"{}", 422, "expected either 'queries', a list of texts, or 'query', a text"),
        (b'{"query": "a", "queries": ["b"]}', 422, "expected either"),
        (b'{"queries": "a"}', 422, "queries: "),
        (b'{"queries": [1]}', 422, "queries.0: "),
        (b'{"query": "a", "topk": -1}', 422, "topk: "),
        (b'{"query": "a", "topk": 101}', 422, "topk: "),
        (b'{"query": "a", "topk": 1e400}', 422, "topk: "),
        (json.dumps({"query": "x" * 10_001}).encode(), 422, "query: "),
        (json.dumps({"queries": ["x"] * (MAX_QUERIES + 1)}).encode(), 422, "queries: "),
        (json.dumps({"query": "x" * MAX_BODY_BYTES}).encode(), 413, "more than 1000000 bytes"),
        (b'{"query": "wrong"}', 422, "the query is wrong"),
        (b'{"query": "down"}', 503, "the index is gone"),
        (b'{"queries": ["a", "down"]}', 503, "the index is gone"),
    ],
    ids=range(19),
)
def test_mistakes_are_answered_in_words(body: bytes, status: int, words: str) -> None:
    for retriever in (Fixed(), Fixed(inline=False)):
        answer = post(body, retriever)
        assert answer.status_code == status
        assert words in answer.json()["error"]


def test_other_places_and_methods() -> None:
    assert asyncio.run(send(Fixed(), "GET", "/retrieve", None)).status_code == 405
    assert asyncio.run(send(Fixed(), "POST", "/", b"{}")).status_code == 404


@given(st.binary(max_size=100) | st.text(max_size=50).map(lambda text: json.dumps({"query": text}).encode()))
def test_no_body_breaks_the_server(body: bytes) -> None:
    assert post(body).status_code in (200, 400, 422, 503)


def test_a_title_of_several_lines_leaves_the_text_alone() -> None:
    class Lines(Fixed):
        def search(self, query: str, top_k: int) -> list[Passage]:
            return [Passage("Ayr\nin Scotland", "A town.")]

    assert post({"query": "a"}, Lines()).json() == {"result": [[{"id": "", "contents": '"Ayr in Scotland"\nA town.'}]]}


def test_a_client_that_goes_away_in_the_middle_is_no_error_of_the_server() -> None:
    # An exception would fill the server's log with its traceback.
    assert status_after_half_a_body([{"type": "http.disconnect"}]) == 400


def test_a_client_that_stops_in_the_middle_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_server, "MAX_BODY_S", 0.05)
    assert status_after_half_a_body([]) == 408


def status_after_half_a_body(events: list[dict[str, Any]]) -> int:
    """The status where a client sends half a body, then these events, then nothing."""
    left = [{"type": "http.request", "body": b'{"que', "more_body": True}, *events]
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send_back(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/retrieve", "headers": [], "query_string": b""}
    asyncio.run(search_app(Fixed())(scope, receive, send_back))
    status: int = sent[0]["status"]
    return status


def test_the_number_of_documents_is_checked() -> None:
    for top_k in (0, 101):
        with pytest.raises(ValueError, match=f"top_k is {top_k}, expected 1 to 100"):
            search_app(Fixed(), top_k)


# The script.


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": "7", "contents": '"Ayr"\nAyr is a town on the coast.'},
        {"id": "8", "contents": '"Bly River"\nThe river runs to the coast.'},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def serving(corpus: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The script at work, and the URL that it prints."""
    command = [sys.executable, str(SCRIPT), str(corpus), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"--env\.corpus (http://127\.0\.0\.1:\d+/retrieve)$", line.strip())
            assert found is not None, line
            yield process, found[1]
        finally:
            process.kill()


def test_the_script_serves_many_clients_and_stops_cleanly(corpus: Path) -> None:
    here = retriever_for(str(corpus))
    queries = ["river", "town", "coast", "zebra", "a\0\ud800"] * 20
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(corpus) as (process, url), ThreadPoolExecutor(8) as pool:
            clients = [RemoteRetriever(url, dialect) for dialect in ("auto", "search_r1", "skyrl")]
            for client in clients:
                futures = [pool.submit(client.search, query, 2) for query in queries]
                assert [future.result(STARTED_S) for future in futures] == [here.search(query, 2) for query in queries]
                client.close()
            process.send_signal(number)
            assert process.wait(STARTED_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_the_help_names_the_options() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=STARTED_S, check=False
    )
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("CORPUS", "--port", "--host", "--retriever", "--top_k"))


def load_script() -> ModuleType:
    """The script as a module: what does not serve is tested in this process, which starts faster."""
    spec = importlib.util.spec_from_file_location("script_serve_search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def refusal(capsys: pytest.CaptureFixture[str], corpus: str, port: int) -> str:
    """What the script says on stderr before it ends with status 2."""
    script = load_script()
    with pytest.raises(SystemExit) as caught:
        script.main(script.ServeConfig(corpus, port=port))
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    return err


@pytest.mark.usefixtures("kept_signals")
def test_a_busy_port_is_refused_in_words(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal(capsys, str(corpus), port) == (
            f"error: cannot listen on port {port} of 127.0.0.1: another program listens there; "
            "choose another port with --port\n"
        )


@pytest.mark.usefixtures("kept_signals")
def test_a_corpus_that_is_not_there_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = "error: corpus nowhere.jsonl: no such file; expected JSON or JSON Lines with passages\n"
    assert refusal(capsys, "nowhere.jsonl", 0) == words


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/retrieve"),
        ("0.0.0.0", "http://127.0.0.1:8000/retrieve"),
        ("::", "http://127.0.0.1:8000/retrieve"),
        ("::1", "http://[::1]:8000/retrieve"),
    ],
)
def test_the_printed_address(host: str, expected: str) -> None:
    assert load_script().address(host, 8000) == expected


def test_a_reply_is_not_held_back_for_an_acknowledgement() -> None:
    # Without TCP_NODELAY each reply took 40 ms.
    with load_script().listen("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()) as client, listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getpeername() == listening.getsockname()


@pytest.mark.parametrize(("host", "port"), [("no.such.name.invalid", 8000), ("127.0.0.1", 70_000), ("203.0.113.1", 0)])
def test_an_address_that_is_not_ours_is_refused(host: str, port: int) -> None:
    with pytest.raises(ValueError, match=f"cannot listen on port {port} of {re.escape(host)}: "):
        load_script().listen(host, port)
