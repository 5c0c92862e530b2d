"""A Model Context Protocol server to test against: ``python mcp_server.py``, or with ``http`` for HTTP on loopback.

Over HTTP it writes the port that it listens on to its output. Its state, the notes, belongs to the process.
"""

import asyncio
import os
import socket
import sys
from typing import Annotated

from mcp.server import MCPServer
from mcp.types import (
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

server = MCPServer("test-server", log_level="CRITICAL")
notes: list[str] = []


@server.tool()
def reverse(text: str) -> str:
    """Write a text backwards."""
    return text[::-1]


@server.tool(name="shop.add-up")
def add_up(
    price: Annotated[float, Field(ge=0, description="of one piece")], count: int, names: list[str] | None = None
) -> str:
    """Add up the prices of some pieces."""
    return f"{price * count:g} for {names}"


@server.tool()
def note(text: str) -> str:
    """Keep a note, and return all of them."""
    notes.append(text)
    return " ".join(notes)


@server.tool()
def forget() -> str:
    """Forget the notes."""
    count = len(notes)
    notes.clear()
    return f"forgot {count}"


@server.tool()
def refuse(reason: str) -> CallToolResult:
    """Fail."""
    return CallToolResult(content=[TextContent(type="text", text=f"refused: {reason}")], is_error=True)


@server.tool()
async def wait(seconds: float) -> str:
    """Wait for some seconds."""
    await asyncio.sleep(seconds)
    return f"waited {seconds:g}"


@server.tool()
def crash(text: str) -> str:
    """End the server."""
    os._exit(len(text))


@server.tool()
def flood(count: int) -> str:
    """Return very much text."""
    return "x" * count


@server.tool()
def process() -> str:
    """Return the server's process id."""
    return str(os.getpid())


@server.tool()
def environment() -> str:
    """Return the names of the environment's variables."""
    return " ".join(sorted(os.environ))


@server.tool()
def mixed(text: str) -> CallToolResult:
    """Return texts and what is none."""
    written = TextResourceContents(uri="file:///notes.txt", mime_type="text/plain", text="a note")
    binary = BlobResourceContents(uri="file:///notes.bin", mime_type="application/octet-stream", blob="AAAA")
    return CallToolResult(
        content=[
            TextContent(type="text", text=f"before {text}"),
            ImageContent(type="image", data="iVBORw0KGgo=", mime_type="image/png"),
            EmbeddedResource(type="resource", resource=written),
            EmbeddedResource(type="resource", resource=binary),
            ResourceLink(type="resource_link", uri="file:///more.txt", name="more"),
            TextContent(type="text", text="\x1b[31mafter\x00"),
        ]
    )


@server.tool()
def nothing(text: str) -> CallToolResult:
    """Return a structure, or nothing at all."""
    return CallToolResult(content=[], structured_content={"text": text} if text else None)


def main() -> None:
    if sys.argv[1:] != ["http"]:
        server.run()
        return
    import uvicorn

    # Named TCP, so that asyncio switches the delay of small packets off: 40 ms a call on loopback.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before anybody is told the port: whoever comes at once waits, and is not refused
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical")).run(sockets=[listener])


if __name__ == "__main__":
    main()
