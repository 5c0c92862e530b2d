"""The HTTP of connections to Model Context Protocol servers, with a bound on an answer's size.

The official client reads a JSON body whole, whatever its size. Here one that is too large becomes an error in answer to
the same request, as over stdio (see `mcp_relay`). Events have a bound of the client's own. Imported where a connection
is opened, because it needs the extra ``mcp``.
"""

from __future__ import annotations

import json

import httpx2
from mcp.types import INVALID_PARAMS

CONNECT_LIMIT_S = 30.0
QUIET_LIMIT_S = 300.0  # a stream of events may say nothing for as long


def bounded_client(max_bytes: int) -> httpx2.AsyncClient:
    """The HTTP client of a connection; it uses no proxy and no password of the environment."""
    return httpx2.AsyncClient(
        transport=BoundedTransport(max_bytes),
        headers={"Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(CONNECT_LIMIT_S, read=QUIET_LIMIT_S),
        trust_env=False,
    )


class BoundedTransport(httpx2.AsyncHTTPTransport):
    """Sends requests, and replaces a JSON answer of more than ``max_bytes`` by an error."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the answer has an encoding that was not asked for", request=request)
        if not response.headers.get("content-type", "").lower().startswith("application/json"):
            return response
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        body = bytearray()
        try:
            async for piece in response.stream:
                body += piece
                if len(body) > self.max_bytes:
                    return refusal(self.max_bytes)
        finally:
            await response.aclose()
        return httpx2.Response(response.status_code, headers=response.headers, content=bytes(body))


def refusal(max_bytes: int) -> httpx2.Response:
    """The answer in place of one that is too large; the client gives it to the request that it belongs to."""
    error = {"code": INVALID_PARAMS, "message": f"the answer has more than {max_bytes} bytes"}
    content = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
    return httpx2.Response(400, headers={"Content-Type": "application/json"}, content=content)
