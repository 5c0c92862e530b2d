"""What stands between this process and a started server: answers of a bounded size."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.mcp_client.mcp_connection import RELAY
from forkgym.tools.mcp_client.mcp_relay import Relay

TOO_LONG = {"code": -32602, "message": "the answer has 128 bytes, at most 100 are allowed"}


@given(st.lists(st.binary(max_size=30)))
def test_short_lines_pass_as_they_are(parts: list[bytes]) -> None:
    relay = Relay(max_bytes=1_000)
    passed = b"".join(map(relay.feed, parts))
    whole, newline, _ = b"".join(parts).rpartition(b"\n")
    assert passed == whole + newline


@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize(
    ("before", "after", "uid"),
    [
        ('{"jsonrpc":"2.0","id":12,"result":"', '"}', 12),
        ('{"id": "a-1", "jsonrpc": "2.0", "result": "', '"}', "a-1"),
        ('{"result":"', '","jsonrpc":"2.0","id":3}', 3),
        ('{"result":"', '","id":4,"jsonrpc":"2.0"}', 4),
        ('{"result":"\\"id\\":9}', '","id":5}', 5),
    ],
)
def test_a_long_line_becomes_an_error(before: str, after: str, uid: int | str, size: int) -> None:
    relay = Relay(max_bytes=100)
    long = before + (128 - len(before) - len(after)) * "x" + after
    data = f"short\n{long}\nshort\n".encode()
    passed = b"".join(relay.feed(data[start : start + size]) for start in range(0, len(data), size))
    first, error, last = passed.decode().splitlines()
    assert (first, last) == ("short", "short")
    assert json.loads(error) == {"jsonrpc": "2.0", "id": uid, "error": TOO_LONG}


def test_a_long_line_of_nobody_is_the_end() -> None:
    relay = Relay(max_bytes=100)
    assert relay.feed(b"x" * 1_000_000) == b""
    assert len(relay.line) == 200
    with pytest.raises(ValueError, match="a line of 1000000 bytes, at most 100 are allowed"):
        relay.feed(b"\n")


def test_the_program_passes_everything_on_and_ends_with_the_server() -> None:
    command = [sys.executable, "-I", "-S", str(RELAY), "100", "cat"]
    done = subprocess.run(command, input=b"one\ntwo\n", capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"one\ntwo\n", b"")


def test_the_program_ends_a_server_that_floods_it() -> None:
    command = [sys.executable, "-I", "-S", str(RELAY), "100", "sh", "-c", "head -c 1000 /dev/zero; echo; exec sleep 60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "a line of 1000 bytes, at most 100 are allowed\n"
