"""What a hostile search server may send, through the tool, an environment and each grammar's rendering."""

from __future__ import annotations

import json
import math
import socket
import time
import tracemalloc
import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import SolutionStep, StopReason, Task
from forkgym.tools.search import search_tool
from forkgym.tools.web.http import HttpLimits
from forkgym.tools.web.remote_search import RemoteRetriever
from tests.conftest import SHARED_ATTACKS
from tests.tools.web.hostile_server import Connection, HostileServer, Received, response

CASES = SHARED_ATTACKS / "http.jsonl"
LIMITS = HttpLimits(total_s=0.7, max_bytes=2_000_000, backoff_s=0.02)
PATIENT = replace(LIMITS, total_s=4.0)  # where an answer is expected: a busy machine may take its time
ANY_QUERY = "capital of France"
ZEROS = bytes(1_000_000)
EXPECTATIONS = {
    "outcome",
    "max_wall_s",
    "no_exception",
    "contains",
    "observation_contains",
    "observation_contains_any",
    "max_rss_mb",
    "no_nan_in_metrics",
    "rendered_excludes",
    "max_requests",
    "no_request_to",
}


class OneQuestion(ToolEnv):
    """Asks the same thing always."""

    def task(self, index: int) -> Task:
        return Task("What is the capital of France?", answer="Paris")

    def score(self, answer: str, task: Task) -> dict[str, float]:
        return {"right": float(answer == task.answer)}


def unescaped(text: str) -> str:
    r"""The file writes NUL as ``\u0000`` in letters, and so on."""
    return text.encode("ascii").decode("unicode_escape")


def query_of(server: dict[str, Any]) -> str:
    return "x" * server["query_len"] if "query_len" in server else unescaped(server.get("query", ANY_QUERY))


def be_silent(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.hang()


def drip_body(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.send(response(headers={"Content-Length": str(server["total"])}))
    while not connection.over.is_set():
        connection.send(b" " * server["bytes"])
        connection.pause(server["interval_s"])


def send_bomb(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    """Compressed while it is sent: the client hangs up long before the end."""
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for _ in range(server["inflated"] // len(ZEROS)):
        connection.send(compressor.compress(ZEROS))
    connection.send(compressor.flush())
    connection.close()


def reset_after(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.send(response(body=b" " * 1_000)[: server["bytes"]])
    connection.reset()


def close_at_once(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.close()


def send_raw(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.send(unescaped(server["raw"]).encode("latin-1"))
    connection.close()


def send_many_headers(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    headers = b"".join(b"X-%d: x\r\n" % number for number in range(server["n"]))
    connection.send(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")


def mix_up_results(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    """Return one list too many.

    The protocol has no ids: a batch whose results have only changed places looks like any other. Whoever has such a
    server sends no batches, ``max_batch=1``.
    """
    found = [[{"document": {"contents": "of another query"}}]] * (len(received.json["queries"]) + 1)
    connection.send(response(body=json.dumps({"result": found}).encode()))


def send_response(connection: Connection, received: Received, server: dict[str, Any]) -> None:
    connection.send(plain_response(server, received))


BEHAVIOURS = {
    "accept_then_silent": be_silent,
    "drip_body": drip_body,
    "gzip_zeros": send_bomb,
    "port_closed": close_at_once,  # nobody comes here
    "reset_after": reset_after,
    "accept_then_close": close_at_once,
    "raw": send_raw,
    "many_headers": send_many_headers,
    "swap_batch_results": mix_up_results,
    None: send_response,
}


def plain_response(server: dict[str, Any], received: Received) -> bytes:
    if server.get("echo_query"):
        (query,) = received.json["queries"]
        body = json.dumps({"result": [[{"document": {"contents": f'"Echo"\n{query}'}, "score": 1}]]}).encode()
    elif "json" in server:
        body = json.dumps(server["json"]).encode()
    else:
        body = bytes.fromhex(server["body_hex"]) if "body_hex" in server else server.get("body", "").encode()
    return response(server["status"], body, server.get("headers"))


def shown_to_the_model(env: ToolEnv, observation: str) -> str:
    """What stands between the grammar's own result markers."""
    before, after = env.grammar.render_results(["RESULT"], env.tool_names).split("RESULT")
    assert observation.startswith(before)
    assert observation.endswith(after)
    return observation[len(before) : len(observation) - len(after)]


class Spy:
    """Who was connected to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: set[tuple[str, int]] = set()
        connect = socket.create_connection

        def create_connection(address: tuple[str, int], *arguments: Any, **named: Any) -> socket.socket:
            self.places.add(address)
            return connect(address, *arguments, **named)

        monkeypatch.setattr(socket, "create_connection", create_connection)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def check(case: dict[str, Any], grammar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server, expect = case["input"]["server"], case["expect"]
    assert set(expect) <= EXPECTATIONS
    for name, value in server.get("env", {}).items():
        for spelling in (name, name.lower(), "ALL_PROXY"):
            monkeypatch.setenv(spelling, value)
    spy = Spy(monkeypatch)
    with HostileServer(partial(BEHAVIOURS[server.get("behaviour")], server=server)) as hostile:
        port = closed_port() if server.get("behaviour") == "port_closed" else hostile.port
        limits = PATIENT if "ok" in expect["outcome"] else LIMITS
        retriever = RemoteRetriever(f"http://127.0.0.1:{port}/retrieve", limits=limits, api_key="secret")
        env = OneQuestion(tools=[search_tool(retriever)], grammar=grammar)
        env.reset(seed=0)
        call = env.grammar.render_step(SolutionStep(tool="search", argument=query_of(server)), env.tools)
        tracemalloc.start()
        begun_s = time.monotonic()
        observation, reward, _, _, info = env.step(call)
        took_s = time.monotonic() - begun_s
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        retriever.close()

    shown = shown_to_the_model(env, observation)
    failed = info["stop_reason"] == StopReason.TOOL_FAILURE
    assert failed or info["stop_reason"] is None
    outcome = "error" if shown.lstrip().startswith("Error: ") else "ok"
    assert outcome in expect["outcome"] if isinstance(expect["outcome"], list) else outcome == expect["outcome"]
    assert took_s < expect["max_wall_s"]
    # What went wrong with the infrastructure is for whoever reads the log: the model gets to know that search does not
    # work, the episode ends there unscored, and the cause is in ``info``.
    report = f"{shown} {info['failure']}".lower()
    assert expect.get("observation_contains", "") in report
    assert any(text in report for text in expect.get("observation_contains_any", [""]))
    assert all(text in shown for text in expect.get("contains", []))
    assert not [text for text in expect.get("rendered_excludes", []) if text in shown]
    assert peak_mb < expect.get("max_rss_mb", math.inf)
    assert len(hostile.requests) <= expect.get("max_requests", LIMITS.retries + 1)
    assert all(math.isfinite(value) for value in [reward, *info.values()] if isinstance(value, float))
    # To nobody else, whatever a query or a Location says; so the key goes nowhere else either.
    assert spy.places <= {("127.0.0.1", port)}
    assert not {host for host, _ in spy.places} & set(expect.get("no_request_to", []))
    # Nothing that a server sends with an error gets into the observation.
    assert not failed or shown.strip() == "Error: search does not work at the moment."


def cases(*, rendered: bool = False) -> list[Any]:
    lines = CASES.read_text(encoding="utf-8").splitlines() if CASES.is_file() else []
    found = [json.loads(line) for line in lines]
    return [
        pytest.param(case, id=case["id"]) for case in found if not rendered or "rendered_excludes" in case["expect"]
    ]


@pytest.mark.usefixtures("shared_attacks", "bounded_memory")
@pytest.mark.parametrize("case", cases())
def test_a_hostile_server(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, "arpo", monkeypatch)


@pytest.mark.usefixtures("shared_attacks", "bounded_memory")
@pytest.mark.parametrize("grammar", ["search_r1", "hermes"])
@pytest.mark.parametrize("case", cases(rendered=True))
def test_what_it_sends_is_harmless_in_other_grammars_too(
    case: dict[str, Any], grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case, grammar, monkeypatch)
