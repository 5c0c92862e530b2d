"""The program between this process and a Model Context Protocol server that is started: it bounds an answer's size.

``python mcp_relay.py MAX_BYTES COMMAND...`` starts the server, whose input and log it does not touch, and passes its
output on, line by line. The official client keeps a line in memory whole, whatever its size, and a policy may well find
arguments for which a harmless server answers with a gigabyte. In place of a longer line the client gets an error in
answer to the same request; where the line does not say to which, the server is ended. It imports no part of forkgym.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

READ_BYTES = 65_536
EDGE_BYTES = 200  # at either end of a line, where the request's id stands
INVALID_PARAMS = -32602  # what the arguments led to is theirs
ID = rb'"id"\s*:\s*(\d{1,15}|"[\w.-]{1,60}")'
ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + ID)
ID_LAST = re.compile(ID + rb'\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')


class Relay:
    """Passes lines on, up to a size.

    Args:
        max_bytes: Of a line.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.line = bytearray()  # as far as it has come, or its first bytes once it is too long
        self.size = 0
        self.end = b""

    def feed(self, data: bytes) -> bytes:
        """Take on some output, and return what is to be passed on.

        Raises:
            ValueError: A line is too long, and which request it answers is not to be seen.
        """
        passed = bytearray()
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            passed += self._take_line() + b"\n"
        self._add(rest)
        return bytes(passed)

    def _add(self, part: bytes) -> None:
        self.size += len(part)
        self.end = (self.end + part)[-EDGE_BYTES:]
        if self.size <= self.max_bytes:
            self.line += part
        elif len(self.line) != EDGE_BYTES:
            self.line += part[:EDGE_BYTES]
            del self.line[EDGE_BYTES:]

    def _take_line(self) -> bytes:
        line, size, end = bytes(self.line), self.size, self.end
        self.line, self.size, self.end = bytearray(), 0, b""
        if size <= self.max_bytes:
            return line
        found = ID_FIRST.match(line) or ID_LAST.search(end)
        if found is None:
            raise ValueError(f"a line of {size} bytes, at most {self.max_bytes} are allowed")
        message = f"the answer has {size} bytes, at most {self.max_bytes} are allowed"
        error = {"code": INVALID_PARAMS, "message": message}
        return json.dumps({"jsonrpc": "2.0", "id": json.loads(found[1]), "error": error}).encode()


def main() -> None:
    """Start the server and pass its output on, until there is no more."""
    max_bytes, *command = sys.argv[1:]
    relay = Relay(int(max_bytes))
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as server:
        assert server.stdout is not None
        # Its own copy: with it, the server would not see the end of its input.
        os.close(0)
        try:
            while data := server.stdout.read(READ_BYTES):
                rest = memoryview(relay.feed(data))
                while rest:
                    rest = rest[os.write(1, rest) :]
        except (BrokenPipeError, ValueError) as error:
            server.kill()
            sys.exit(str(error))


if __name__ == "__main__":
    main()
