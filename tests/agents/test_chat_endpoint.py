"""The client of a chat endpoint: patience, limits, and errors in words."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from forkgym.agents import chat_endpoint
from forkgym.agents.chat_endpoint import ChatEndpoint, Choice, ContextTooLong
from forkgym.agents.config import OpenAIConfig
from forkgym.agents.errors import AgentFailure
from tests.agents.chat_server import Body, ChatServer, Raw, said, serving, wrong

BODY: Body = {"model": "m", "messages": []}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv(chat_endpoint.KEY_VARIABLE, raising=False)


def ask(url: str, *, retries: int = 2, timeout_s: float = 10.0) -> Choice:
    async def once() -> Choice:
        endpoint = ChatEndpoint(OpenAIConfig(base_url=url, retries=retries, timeout_s=timeout_s), 2)
        try:
            return await endpoint.ask(BODY)
        finally:
            await endpoint.close()

    return asyncio.run(once())


def ask_one_that_says(*replies: Raw, retries: int = 2) -> tuple[Choice, ChatServer]:
    following: Iterator[Raw] = iter(replies)
    with serving(lambda _: next(following)) as server:
        return ask(server.url, retries=retries), server


def failure(*replies: Raw, retries: int = 0) -> str:
    with pytest.raises(AgentFailure) as caught:
        ask_one_that_says(*replies, retries=retries)
    return str(caught.value)


def test_a_reply() -> None:
    choice, server = ask_one_that_says(said("hello", "length"))
    assert (choice.message.content, choice.finish_reason) == ("hello", "length")
    assert (server.bodies, server.paths) == ([BODY], ["/v1/chat/completions"])
    assert "authorization" not in server.headers[0]


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    _, server = ask_one_that_says(said(""))
    assert server.headers[0]["authorization"] == "Bearer k-123"
    message = failure(wrong(401, "Incorrect API key"))
    assert message.endswith("answered with status 401 (is OPENAI_API_KEY right?): Incorrect API key")
    assert "k-123" not in message


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ", "\ud800"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds blanks") as caught:
        chat_endpoint.authorization(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    choice, server = ask_one_that_says(wrong(status, "busy"), wrong(status, "busy"), said("at last"))
    assert (choice.message.content, len(server.bodies)) == ("at last", 3)


def test_until_there_were_enough_tries() -> None:
    message = failure(wrong(500, "a"), wrong(502, "b"), wrong(500, "engine dead"), retries=2)
    assert message.endswith("/chat/completions failed 3 times, the last: status 500: engine dead")


@pytest.mark.parametrize(
    ("header", "least_s"), [("7", 7.0), ("100000", 120.0), ("-3", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)]
)
def test_retry_after(header: str, least_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        ask_one_that_says(wrong(429, "slow down", retry_after=header), said("x"))
    assert any(abs(pause_s - least_s) < 0.01 for pause_s in pauses)


def test_the_model_is_not_there() -> None:
    message = failure(wrong(404, "The model `m` does not exist."), retries=5)
    assert message.endswith("status 404 (is agent.model one of its models?): The model `m` does not exist.")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"object": "error", "message": "bad temperature"}', "bad temperature"),
        (b'{"detail": [{"msg": "missing"}]}', "[{'msg': 'missing'}]"),
        (b"<html>\x1b[2J\r\nno\x00</html>", "<html> [2J no </html>"),
        (b"[" * 100_000, "[" * 300 + "..."),
        (b"", "no words"),
    ],
)
def test_words_of_errors_are_short_and_printable(body: bytes, words: str) -> None:
    assert failure(Raw(400, body)).endswith(f"status 400: {words}")


def test_a_redirect_is_not_followed() -> None:
    assert "answered with status 307" in failure(Raw(307, b"", {"location": "http://127.0.0.1:9/"}), retries=5)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
        (400, "the request exceeds the available context size"),
        (422, "prompt is too long: 9 tokens > 8 maximum"),
    ],
)
def test_a_context_that_is_too_long(status: int, words: str) -> None:
    with pytest.raises(ContextTooLong):
        ask_one_that_says(wrong(status, words))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "its choices is wrong"),
        (b'{"choices": []}', "its choices is wrong"),
        (b'{"choices": [{"message": {"content": 5}}]}', "its choices.0.message.content is wrong"),
        (b"null", "its JSON is wrong"),
    ],
)
def test_a_reply_that_is_none(body: bytes, why: str) -> None:
    message = failure(Raw(200, body), Raw(200, body), retries=1)
    assert "failed 2 times" in message
    assert why in message


def test_a_reply_that_is_too_large_or_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "MAX_BYTES", 1000)
    assert "more than 1000 bytes" in failure(said("x" * 1001))
    assert "encoding that was not asked for" in failure(Raw(200, b"x", {"content-encoding": "gzip"}))


def test_half_a_surrogate_pair() -> None:
    choice, _ = ask_one_that_says(Raw(200, b'{"choices": [{"message": {"content": "a\\ud800b\\u0000"}}]}'))
    assert choice.message.content == "a?b\x00"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(AgentFailure, match=r"failed 2 times, the last: no connection"):
        ask(f"http://127.0.0.1:{port}/v1", retries=1)


def drip(listener: socket.socket, stop: threading.Event) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not stop.wait(0.02):
            try:
                connection.sendall(b" ")
            except OSError:
                return


def test_a_body_that_drips_meets_the_deadline() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener, stop))
        thread.start()
        try:
            with pytest.raises(AgentFailure, match=r"the last: no reply within 0\.3 s"):
                ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", retries=0, timeout_s=0.3)
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host/v1?key=1", "http://host/v1#a", "http://[::1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"agent\.openai\.base_url is|Invalid IPv6"):
        OpenAIConfig(base_url=url)


def test_settings() -> None:
    wrong_settings: Sequence[tuple[dict[str, object], str]] = (
        ({"base_url": "http://me:secret@host/v1"}, "holds a user or a password"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0"),
        ({"retries": -1}, "retries is -1"),
        ({"extra": "{"}, "extra is '{', expected a JSON object"),
        ({"extra": "[]"}, "expected a JSON object"),
        ({"extra": '{"stream": true}'}, "extra holds 'stream', which the agent sets itself"),
    )
    for settings, words in wrong_settings:
        with pytest.raises(ValueError, match=words) as caught:
            OpenAIConfig(**settings)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
