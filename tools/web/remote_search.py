"""Search over HTTP: a client for servers that speak the protocol of Search-R1 or of SkyRL."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from forkgym.tools.base import ToolFailure
from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.passages import ContentsRow, Passage, TitledRow
from forkgym.tools.search import Retriever
from forkgym.tools.web.http import BoundedClient, HttpLimits, HttpProblem, ProblemKind
from forkgym.tools.web.search_cache import CachedRetriever, SearchCache, is_arpo_cache, load_arpo_cache

DEFAULT_LIMITS = HttpLimits(total_s=10.0, max_bytes=4_000_000, max_connections=64)
MAX_BATCH = 32
BATCH_SHARE = 0.5
UNKNOWN_FIELDS = frozenset({400, 422})
HOPELESS_KINDS = frozenset({ProblemKind.CONNECT, ProblemKind.UNAVAILABLE})  # for each query of the batch alike
ADDRESS = re.compile(r"https?://[^/]")
BARE_HOST = re.compile(r"https?://[^/?#]+/?")
UNSENDABLE = re.compile("[\0\ud800-\udfff]")  # no UTF-8, or the end of the text for a server in C


class Dialect(StrEnum):
    """How a query is put into the body of ``POST /retrieve``; the reply is the same."""

    AUTO = "auto"  # Search-R1's, then SkyRL's where the server does not know its fields
    SEARCH_R1 = "search_r1"  # {"queries": ["..."], "topk": 3, "return_scores": true}
    SKYRL = "skyrl"  # {"query": "...", "topk": 3, "return_scores": true}


Document = Annotated[ContentsRow | TitledRow, Field(union_mode="left_to_right")]


class ScoredDocument(BaseModel):
    """A found document. Its score is only checked: a server that ranks by nan has a broken index."""

    document: Document
    score: FiniteFloat | None = None


class RetrieveReply(BaseModel):
    """The reply: a list of documents for each query, the best first. Without scores they stand there bare."""

    result: list[list[Annotated[ScoredDocument | Document, Field(union_mode="left_to_right")]]]


REPLY = TypeAdapter(RetrieveReply)


class _Query:
    """A query on its way: what its thread waits for."""

    __slots__ = ("alone", "changed", "deadline_s", "failure", "found", "patient_until_s", "text", "top_k")

    def __init__(self, text: str, top_k: int, limit_s: float) -> None:
        self.text = text
        self.top_k = top_k
        now_s = time.monotonic()
        self.patient_until_s = now_s + BATCH_SHARE * limit_s
        self.deadline_s = now_s + limit_s
        self.found: list[Passage] | None = None
        self.failure: HttpProblem | None = None
        self.alone = False  # to be sent by itself: its batch failed, or never left
        self.changed = threading.Event()

    @property
    def settled(self) -> bool:
        return self.found is not None or self.failure is not None or self.alone


class RemoteRetriever(OwnedByProcess):
    """Asks a search server; a `Retriever` that all threads of a process should share.

    Queries of several threads leave together: while a request is under way, what arrives waits, and the first to wait
    takes the others along. Waiting may take half of a query's time, and a batch half of what is left; where a batch
    fails or never leaves, each of its queries is sent alone in the rest, so that one which upsets the server costs the
    others nothing but time. SkyRL's dialect knows no batches.

    A reply has no ids of queries, so a server that mixes up the order of a batch cannot be caught; one that returns too
    few or too many lists is. ``max_batch=1`` does without batches.

    Args:
        url: Of the endpoint, such as ``http://127.0.0.1:8000/retrieve``; ``/retrieve`` may be left out.
        dialect: How the server wants to be asked.
        limits: Of a request; ``total_s`` is the limit of a search, with its retries.
        api_key: Sent to this server only, as ``Authorization: Bearer``.
        max_batch: Queries in a request, at most.

    Raises:
        ValueError: ``url`` is no web address, ``api_key`` cannot be sent, or ``max_batch`` is not positive.
    """

    inline = False

    def __init__(
        self,
        url: str,
        dialect: Dialect | str = Dialect.AUTO,
        *,
        limits: HttpLimits = DEFAULT_LIMITS,
        api_key: str | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        if not ADDRESS.match(url):
            raise ValueError(f"search server {url!r}: expected a URL such as http://127.0.0.1:8000/retrieve")
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError("api_key holds white space or letters outside ASCII, which no header can carry")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, expected at least 1")
        super().__init__()
        self._url = f"{url.rstrip('/')}/retrieve" if BARE_HOST.fullmatch(url) else url
        self._dialect = Dialect(dialect)
        self._limits = limits
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._max_batch = max_batch
        self._client = BoundedClient(limits)
        self.start()

    def start(self) -> None:
        """Forget the queries of the parent process's threads."""
        self._lock = threading.Lock()
        self._waiting: deque[_Query] = deque()
        self._under_way = False

    @property
    def timeout_s(self) -> float:
        """Limit of one search, seconds."""
        return self._limits.total_s

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Ask the server.

        Raises:
            ToolFailure: It gave no answer, or one that is not of the protocol.
            ValueError: ``top_k`` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        mine = _Query(UNSENDABLE.sub("\ufffd", query), top_k, self._limits.total_s)
        try:
            if self._dialect is Dialect.SKYRL or self._max_batch == 1:
                return self._ask_alone(mine)
            self._travel(mine)
            if mine.alone:
                return self._ask_alone(mine)
        except HttpProblem as problem:
            mine.failure = problem
        if mine.failure is not None:
            raise ToolFailure(f"search server: {mine.failure}") from mine.failure
        assert mine.found is not None
        return mine.found

    def _travel(self, mine: _Query) -> None:
        """Bring a query to the server, in this thread or in another one's batch."""
        with self._lock:
            self._waiting.append(mine)
        while not mine.settled:
            batch = self._board()
            if batch:
                try:
                    self._serve(batch)
                finally:
                    self._leave(batch)
            elif mine.changed.wait(max(0.0, mine.patient_until_s - time.monotonic())):
                mine.changed.clear()
            else:
                self._lose_patience(mine)

    def _board(self) -> list[_Query]:
        """Take what waits, unless a request is under way. Queries of one request want as many passages each."""
        with self._lock:
            if self._under_way or not self._waiting:
                return []
            self._under_way = True
            most = self._max_batch if self._dialect is Dialect.SEARCH_R1 else 1
            batch = [self._waiting.popleft()]
            while self._waiting and len(batch) < most and self._waiting[0].top_k == batch[0].top_k:
                batch.append(self._waiting.popleft())
            return batch

    def _leave(self, batch: list[_Query]) -> None:
        with self._lock:
            self._under_way = False
            if self._dialect is Dialect.SKYRL:  # as it has just turned out
                for query in self._waiting:
                    query.alone = True
                    query.changed.set()
                self._waiting.clear()
            self._wake_next()
        for query in batch:
            if not query.settled:  # an exception, such as Ctrl-C, has ended this thread in the middle
                query.alone = True
            query.changed.set()

    def _lose_patience(self, mine: _Query) -> None:
        """Do without a batch that never left; one that is under way has until the deadline."""
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                mine.alone = True
                self._wake_next()  # it may have been woken to send the next request just now
            elif mine.patient_until_s < mine.deadline_s:
                mine.patient_until_s = mine.deadline_s
            else:
                mine.failure = HttpProblem(ProblemKind.TIMEOUT, "timeout: it took too long")

    def _wake_next(self) -> None:
        if self._waiting and not self._under_way:
            self._waiting[0].changed.set()

    def _serve(self, batch: list[_Query]) -> None:
        """Send a batch and hand out what comes back."""
        first = batch[0]
        try:
            if len(batch) == 1:
                first.found = self._ask_alone(first)
                return
            limit_s = BATCH_SHARE * (first.deadline_s - time.monotonic())
            lists = self._post({"queries": [query.text for query in batch]}, first.top_k, limit_s)
            if len(lists) != len(batch):
                raise HttpProblem(ProblemKind.PROTOCOL, f"{len(lists)} results for {len(batch)} queries")
        except HttpProblem as problem:
            for query in batch:
                if len(batch) == 1 or problem.kind in HOPELESS_KINDS:
                    query.failure = problem
                else:
                    query.alone = True
            return
        for query, found in zip(batch, lists, strict=True):
            query.found = found

    def _ask_alone(self, query: _Query) -> list[Passage]:
        """Send one query, in the dialect that the server knows."""
        left_s = query.deadline_s - time.monotonic()
        if self._dialect is Dialect.SKYRL:
            return self._post_one({"query": query.text}, query.top_k, left_s)
        try:
            found = self._post_one({"queries": [query.text]}, query.top_k, left_s)
        except HttpProblem as problem:
            if self._dialect is not Dialect.AUTO or problem.status not in UNKNOWN_FIELDS:
                raise
            found = self._post_one({"query": query.text}, query.top_k, query.deadline_s - time.monotonic())
            self._dialect = Dialect.SKYRL
        else:
            self._dialect = Dialect.SEARCH_R1
        return found

    def _post_one(self, question: dict[str, Any], top_k: int, limit_s: float) -> list[Passage]:
        lists = self._post(question, top_k, limit_s)
        if len(lists) != 1:
            raise HttpProblem(ProblemKind.PROTOCOL, f"{len(lists)} results for one query")
        return lists[0]

    def _post(self, question: dict[str, Any], top_k: int, limit_s: float) -> list[list[Passage]]:
        body = {**question, "topk": top_k, "return_scores": True}
        reply = self._client.request("POST", self._url, json=body, headers=self._headers, total_s=limit_s)
        return read_reply(reply.body, top_k)


def read_reply(body: bytes, top_k: int) -> list[list[Passage]]:
    """The passages for each query, at most ``top_k``, in the server's order.

    Raises:
        HttpProblem: The body is not what the protocol says.
    """
    try:
        lists = REPLY.validate_json(body).result
    except ValidationError as error:
        raise HttpProblem(ProblemKind.PROTOCOL, "error in the reply: it is not what the protocol says") from error
    return [[_passage(entry) for entry in entries[:top_k]] for entries in lists]


def _passage(entry: ScoredDocument | ContentsRow | TitledRow) -> Passage:
    (passage,) = (entry.document if isinstance(entry, ScoredDocument) else entry).passages()
    return passage


def search_server(url: str, environment: Mapping[str, str] = os.environ) -> Retriever:
    """The retriever of a server, with what environment variables say that belongs in no file of settings.

    - ``FORKGYM_SEARCH_API_KEY``: see ``api_key``.
    - ``FORKGYM_SEARCH_CACHE``: a file. One of ARPO's search caches is read before the server is asked; any other is
      made into a `SearchCache`, where there is none, and keeps what the server finds.

    Raises:
        ValueError: The URL, the key or the cache is none.
    """
    server = RemoteRetriever(url, api_key=environment.get("FORKGYM_SEARCH_API_KEY") or None)
    path = environment.get("FORKGYM_SEARCH_CACHE")
    if not path:
        return server
    if Path(path).is_file() and is_arpo_cache(path):
        return CachedRetriever(server, url, known=load_arpo_cache(path))
    return CachedRetriever(server, url, SearchCache(path))
