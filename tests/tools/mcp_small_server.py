"""A server that starts in no time, of the older protocol, with a state and with bad manners: one argument chooses them.

``python -S mcp_small_server.py [MANNERS]``, MANNERS being one of: ``no-tools``, ``endless-list``, ``bad-schema``,
``stubborn`` (it outlives the end of its input).
"""

import json
import os
import sys
import time
from typing import Any

MANNERS = sys.argv[1] if len(sys.argv) > 1 else ""
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NOTHING = {"type": "object", "$ref": "#"} if MANNERS == "bad-schema" else {"type": "object"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "note": TEXT,  # keep a note and return all
    "process": NOTHING,  # the process's id
    "environment": NOTHING,  # the names of its variables
    "sleep": NOTHING,
    "crash": NOTHING,
    "break-off": NOTHING,  # an answer that breaks the protocol
    "internal": NOTHING,  # an error of the protocol
    "refuse": NOTHING,  # another, which is about the arguments
}
notes: list[str] = []


class ProtocolError(Exception):
    """An answer that is an error of the protocol."""


def call(name: str, arguments: dict[str, Any]) -> Any:
    if name == "sleep":
        time.sleep(60)
    if name == "crash":
        os._exit(1)
    if name == "break-off":
        return {"content": 5}
    if name in ("internal", "refuse"):
        raise ProtocolError(-32603 if name == "internal" else -32602, f"{name} failed")
    if name == "note":
        notes.append(arguments["text"])
    texts = {"note": " ".join(notes), "process": str(os.getpid()), "environment": " ".join(os.environ)}
    return {"content": [{"type": "text", "text": texts[name]}]}


def answer(method: str, parameters: dict[str, Any]) -> Any:
    if method == "initialize":
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "small", "version": "1"},
        }
    if method == "tools/list":
        offered = {} if MANNERS == "no-tools" else SCHEMAS
        tools = [{"name": name, "description": "d" * 5_000, "inputSchema": schema} for name, schema in offered.items()]
        return {"tools": tools, "nextCursor": "more"} if MANNERS == "endless-list" else {"tools": tools}
    if method == "tools/call":
        return call(parameters["name"], parameters.get("arguments", {}))
    raise ProtocolError(-32601, "there is no such method")


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            reply["result"] = answer(request["method"], request.get("params", {}))
        except ProtocolError as error:
            code, message = error.args
            reply["error"] = {"code": code, "message": message}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    if MANNERS == "stubborn":
        time.sleep(60)


if __name__ == "__main__":
    main()
