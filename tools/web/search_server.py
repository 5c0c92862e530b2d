r"""A search server: any retriever behind ``POST /retrieve``, in the protocols of Search-R1 and of SkyRL.

A request is ``{"queries": ["...", "..."], "topk": 3, "return_scores": true}`` or, SkyRL's, ``{"query": "..."}`` with
the same other fields; both are optional. The reply has a list for each query, the best document first::

    {"result": [[{"document": {"id": "7", "contents": "\"Title\"\ntext"}, "score": 1.0}]]}

A score is one over the rank: clients of these protocols use the order only, and the scores of different retrievers do
not compare. Without ``return_scores`` the documents stand there bare. ``GET /health`` says ``{"status": "ok"}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import to_json

from forkgym.tools.base import ToolError, ToolFailure
from forkgym.tools.passages import Passage
from forkgym.tools.search import Retriever

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY_BYTES = 1_000_000
MAX_BODY_S = 4.0  # from the head to the last byte; a client that stops in the middle must not keep its place
MAX_QUERIES = 512
MAX_QUERY_CHARACTERS = 10_000
MAX_TOP_K = 100
DEFAULT_TOP_K = 3
MISSING_LIBRARIES = "a search server needs starlette and uvicorn: pip install 'forkgym[serve]'"

Query = Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]


class RetrieveRequest(BaseModel):
    """The body of a request in either protocol; fields that neither has are ignored."""

    queries: list[Query] | None = Field(None, max_length=MAX_QUERIES)
    query: Query | None = None
    topk: int | None = Field(None, ge=0, le=MAX_TOP_K)
    return_scores: bool = False

    @model_validator(mode="after")
    def _has_one_kind(self) -> RetrieveRequest:
        if (self.queries is None) == (self.query is None):
            raise ValueError("expected either 'queries', a list of texts, or 'query', a text")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        return self.queries if self.queries is not None else [self.query or ""]


def search_app(retriever: Retriever, top_k: int = DEFAULT_TOP_K) -> Starlette:
    """Make the web application.

    Args:
        retriever: Answers the queries: in the event loop's thread, one after the other, where it is inline, else each
            in a thread of a pool.
        top_k: Documents for a query where the client does not say how many; 1 to ``MAX_TOP_K``.

    Raises:
        ImportError: The extra ``serve`` is not installed.
        ValueError: ``top_k`` is out of its range.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(MISSING_LIBRARIES) from error
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k is {top_k}, expected 1 to {MAX_TOP_K}")
    endpoints = _Endpoints(retriever, top_k)
    return Starlette(
        routes=[Route("/retrieve", endpoints.retrieve, methods=["POST"]), Route("/health", endpoints.health)]
    )


class _Endpoints:
    def __init__(self, retriever: Retriever, top_k: int) -> None:
        self._retriever = retriever
        self._top_k = top_k

    async def health(self, request: Request) -> Response:
        del request
        return _reply({"status": "ok"})

    async def retrieve(self, request: Request) -> Response:
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(MAX_BODY_S):
                body = await _body(request)
        except TimeoutError:
            return _reply({"error": f"the body took longer than {MAX_BODY_S:g} s"}, 408)
        except ClientDisconnect:  # nobody reads the reply, and nothing here is at fault
            return _reply({"error": "the body is not complete"}, 400)
        if len(body) > MAX_BODY_BYTES:
            return _reply({"error": f"the body has more than {MAX_BODY_BYTES} bytes"}, 413)
        try:
            asked = RetrieveRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            mistake = f"{where}: {first['msg']}" if where else first["msg"]
            return _reply({"error": mistake}, 400 if first["type"] == "json_invalid" else 422)
        try:
            found = await self._find(asked.texts, asked.topk or self._top_k)
        except ToolError as mistake:
            return _reply({"error": str(mistake)}, 422)
        except ToolFailure as failure:
            return _reply({"error": str(failure)}, 503)
        return _reply({"result": [_documents(passages, asked.return_scores) for passages in found]})

    async def _find(self, queries: Sequence[str], most: int) -> list[list[Passage]]:
        from starlette.concurrency import run_in_threadpool

        search = self._retriever.search
        if not self._retriever.inline:
            return await asyncio.gather(*(run_in_threadpool(search, query, most) for query in queries))
        found: list[list[Passage]] = []
        for query in queries:
            found.append(search(query, most))
            await asyncio.sleep(0)  # a large batch must not keep the other clients waiting
        return found


async def _body(request: Request) -> bytes:
    """The body, or as much of it as shows that it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


def _reply(content: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(to_json(content), status, media_type="application/json")


def _documents(passages: Sequence[Passage], return_scores: bool) -> list[dict[str, Any]]:
    documents = [{"id": passage.id, "contents": _contents(passage)} for passage in passages]
    if not return_scores:
        return documents
    return [{"document": document, "score": 1.0 / rank} for rank, document in enumerate(documents, start=1)]


def _contents(passage: Passage) -> str:
    title = passage.title.replace("\n", " ")  # the text begins after the first line
    return f'"{title}"\n{passage.text}'
