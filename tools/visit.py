"""The tool ``visit``: the readable text of a web page, in pieces of a bounded size.

A policy may name any address, so what is fetched is fenced in: http and https, the ports 80 and 443, hosts of the
public internet, two megabytes and some seconds at most, and the same again at every redirect. A name is resolved once,
and the connection goes to the address that was checked, so that a name which changes its address in between (DNS
rebinding) gains nothing. Pages are taken apart in a process beside this one, see `page_program`.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from forkgym.tools.base import FunctionSession, Tool, ToolError
from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.web.documents import Document, Fetch
from forkgym.tools.web.fence import Fence, host_pattern
from forkgym.tools.web.http import BoundedClient, HttpLimits, HttpProblem, HttpReply
from forkgym.tools.web.page_program import Form, Outcome, Page
from forkgym.tools.web.page_reader import shared_reader
from forkgym.tools.web.plain_text import printable
from forkgym.tools.web.saved_pages import saved_pages

DESCRIPTION = (
    "Read a web page: write its URL. A long page comes in pieces; write the URL, a space and a number for another one."
)
MAX_SHOWN_HOSTS = 10
MAX_URL_CHARACTERS = 2_000
MAX_PROBLEM_CHARACTERS = 300  # it may name a host that a redirect made up
MAX_PAGE_BYTES = 2_000_000
MAX_CACHED_CHARACTERS = 10_000_000
READ_LIMIT_S = 3.0  # for finding the article in a page, and again for all its words where that takes longer
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
MEDIA_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}", re.ASCII)
TEXT_TYPE = re.compile(r"text/.*|application/(.*\+)?(json|xml)|application/(x-)?(yaml|javascript|ndjson)")
CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:+-]{1,40})""", re.ASCII | re.IGNORECASE)
WIDE_CHARSETS = ("utf-16", "utf-32")  # their text holds NUL bytes
BINARY = re.compile(rb"%PDF-|[^\x00]{0,1024}\x00")


class VisitArguments(BaseModel):
    """The arguments of a visit."""

    model_config = ConfigDict(extra="forbid")
    url: str


@dataclass(frozen=True, slots=True)
class ReadablePage:
    """A page as the policy sees it.

    Attributes:
        title: One line; empty where there is none.
        pieces: The text, cut between words where that is possible; none where it cannot be read.
        problem: Why it cannot be read; it is remembered, as finding it out again may take seconds.
    """

    title: str = ""
    pieces: tuple[str, ...] = ()
    problem: str = ""

    @property
    def characters(self) -> int:
        """Its size."""
        return len(self.title) + sum(map(len, self.pieces)) + len(self.problem)


class PageCache(OwnedByProcess):
    """The pages that were visited last, up to a number of characters; threads may share it.

    It makes the pieces of a page come from one state of it, and the forks of an episode see the same page.
    """

    def __init__(self, max_characters: int) -> None:
        super().__init__()
        self.max_characters = max_characters
        self.start()

    def start(self) -> None:
        """Be empty."""
        self.lock = threading.Lock()
        self.pages: OrderedDict[str, ReadablePage] = OrderedDict()
        self.characters = 0

    def get(self, url: str) -> ReadablePage | None:
        """A page, where it is here."""
        with self.lock:
            if url in self.pages:
                self.pages.move_to_end(url)
            return self.pages.get(url)

    def put(self, url: str, page: ReadablePage) -> ReadablePage:
        """Keep a page, unless another thread did so first; return the one that is kept."""
        with self.lock:
            if url not in self.pages:
                self.pages[url] = page
                self.characters += page.characters
                while self.characters > self.max_characters and len(self.pages) > 1:
                    _, oldest = self.pages.popitem(last=False)
                    self.characters -= oldest.characters
            return self.pages[url]


class Visitor:
    """Reads pages, and keeps the last ones; threads and forks share it.

    Args:
        fetch: Where pages come from.
        max_chars: Length of a piece, characters.
        max_links: Links that are listed after a page's text.
        timeout_s: Of one visit, seconds.
    """

    def __init__(self, fetch: Fetch, max_chars: int, max_links: int, timeout_s: float) -> None:
        self.fetch = fetch
        self.max_chars = max_chars
        self.max_links = max_links
        self.timeout_s = timeout_s
        self.cache = PageCache(MAX_CACHED_CHARACTERS)

    def visit(self, url: str) -> str:
        """Return one piece of a page; ``url`` is a URL, and perhaps a space and the number of the piece.

        Raises:
            ToolError: There is no such page, piece or URL, it may not be visited, or it cannot be read in time.
            ToolFailure: Pages cannot be read at all.
        """
        address, number = address_and_number(url)
        page = self.cache.get(address)
        if page is None:
            page = self.cache.put(address, self._read(address))
        if page.problem:
            raise ToolError(page.problem)
        if not 1 <= number <= len(page.pieces):
            raise ToolError(f"there is no piece {number}; that page has {len(page.pieces)}")
        lines = [page.title] if page.title else []
        lines.append(page.pieces[number - 1])
        if number < len(page.pieces):
            lines.append(f"[piece {number} of {len(page.pieces)}; for the next one: {address} {number + 1}]")
        elif number > 1:
            lines.append(f"[piece {number} of {len(page.pieces)}, the last]")
        return "\n".join(lines)

    def _read(self, url: str) -> ReadablePage:
        deadline_s = time.monotonic() + self.timeout_s
        document = self.fetch(url, self.timeout_s)
        forms = [Form.ARTICLE, Form.WORDS] if document.form is Form.ARTICLE else [document.form]
        outcome, text = Outcome.TIMEOUT, ""
        for form in forms:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or outcome is not Outcome.TIMEOUT:
                break
            page = Page(form, document.charset, document.url, self.max_links, min(READ_LIMIT_S, left_s))
            outcome, text = shared_reader().read(page, document.body)
        if outcome is not Outcome.TEXT:
            reason = "it takes too long" if outcome is Outcome.TIMEOUT else "it is made so that no program can"
            return ReadablePage(problem=f"the page cannot be read: {reason}")
        title, _, text = text.partition("\n")
        text = tidy(text)
        if not text:
            return ReadablePage(problem="there is no text on that page")
        return ReadablePage(document.title or " ".join(printable(title).split()), split_text(text, self.max_chars))


def address_and_number(text: str) -> tuple[str, int]:
    """Read the argument of a visit; the part of a URL after ``#`` is left out, as it chooses no page."""
    words = text.split()
    if len(words) == 1:
        words.append("1")
    if len(words) != 2 or not re.fullmatch(r"[0-9]{1,6}", words[1]):
        raise ToolError("write one URL, and after a space the number of a piece where it is not the first")
    address = words[0].partition("#")[0]
    if len(address) > MAX_URL_CHARACTERS:
        raise ToolError(f"the URL has {len(address)} characters; at most {MAX_URL_CHARACTERS} are allowed")
    return address, int(words[1])


def tidy(text: str) -> str:
    """A text without control characters, spaces at the ends of lines, and several empty lines in a row."""
    lines = "\n".join(map(str.rstrip, printable(text).split("\n")))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def split_text(text: str, max_chars: int) -> tuple[str, ...]:
    """Cut a text into pieces, between lines, else words, where there are any in the second half of a piece."""
    pieces: list[str] = []
    start = 0
    while len(text) - start > max_chars:
        middle, end = start + max_chars // 2, start + max_chars + 1
        cut = max(text.rfind("\n", middle, end), start)
        if cut == start:
            cut = max(text.rfind(" ", middle, end), start)
        if cut == start:
            cut = start + max_chars
        pieces.append(text[start:cut].strip())
        start = cut + (text[cut] in " \n")
    return (*pieces, text[start:].strip())


def from_the_web(client: BoundedClient) -> Fetch:
    """Fetch pages from the web."""

    def fetch(url: str, timeout_s: float) -> Document:
        try:
            return document_of(client.request("GET", url, total_s=timeout_s))
        except HttpProblem as problem:
            raise ToolError(f"not visited: {str(problem)[:MAX_PROBLEM_CHARACTERS]}") from problem

    return fetch


def document_of(reply: HttpReply) -> Document:
    """Tell from a reply's headers and first bytes what it is; ToolError where it is no text."""
    media_type = reply.content_type.partition(";")[0].strip().lower()
    charset = found[1].lower() if (found := CHARSET.search(reply.content_type)) else ""
    if not media_type:
        form = Form.ARTICLE if reply.body.lstrip()[:1] == b"<" else Form.PLAIN
    elif media_type in HTML_TYPES:
        form = Form.ARTICLE
    elif TEXT_TYPE.fullmatch(media_type):
        form = Form.PLAIN
    else:
        raise ToolError(f"it is no text but {media_type if MEDIA_TYPE.fullmatch(media_type) else 'something else'}")
    if not charset.startswith(WIDE_CHARSETS) and BINARY.match(reply.body):
        raise ToolError("it is no text, although it says so")
    return Document(reply.url, form, charset, reply.body)


def visit_tool(  # noqa: PLR0913 - the keyword arguments are flat
    allow: Sequence[str] | None = None,
    *,
    allow_private: bool = False,
    pages: str | Path | None = None,
    max_chars: int = 4_000,
    max_links: int = 0,
    timeout_s: float = 15.0,
) -> Tool:
    """Make the tool ``visit``, which answers with a page's title and one piece of its text.

    Of HTML it is the article, without menus and the like; plain text, JSON and XML come as they are; anything else is
    refused in words. What keeps a page from being read, a refused address or a 404, is the model's mistake, as it chose
    the page. Tools that are made with the same arguments share their connections and the pages that were read last.

    Args:
        allow: Hosts that may be visited: ``example.org``, ``*.example.org`` (those below it) or ``*`` (any), each with
            ``:PORT`` after it where it is another port than 80 and 443. Every public host by default.
        allow_private: Whether addresses may be visited that are not on the public internet, such as this machine's own.
        pages: A file of saved pages to visit instead of the web, see `SavedPages`.
        max_chars: Length of a piece, characters; > 0.
        max_links: Links that are listed after a page's text, as ``words: URL``, at most; for walking from page to page.
        timeout_s: Of one visit, with name, redirects and reading, seconds. Where more pages wait to be read than there
            are processors, the wait for a turn comes on top, 30 s at most.

    Raises:
        ValueError: A number is out of range, a host is no host, ``pages`` is given together with ``allow`` or
            ``allow_private``, or the library that reads pages is missing.
        FileNotFoundError: There is no such file of pages.
    """
    if max_chars < 1 or max_links < 0:
        raise ValueError(f"visit: max_chars is {max_chars} and max_links {max_links}, expected at least 1 and 0")
    if importlib.util.find_spec("trafilatura") is None:
        raise ValueError("the tool visit needs the extra web: pip install 'forkgym[web]'")
    if pages is None:
        hosts = ("*",) if allow is None else tuple(allow)
        visitor = web_visitor(hosts, allow_private, max_chars, max_links, timeout_s)
    elif allow is None and not allow_private:
        visitor = Visitor(saved_pages(pages).fetch, max_chars, max_links, timeout_s)
    else:
        raise ValueError("visit: saved pages are not on the web, so allow and allow_private have no meaning for them")
    session = FunctionSession(visitor.visit)
    description = DESCRIPTION if allow is None else f"{DESCRIPTION} {hosts_in_words(allow)}"
    return Tool("visit", description, VisitArguments, lambda: session, timeout_s=timeout_s, keeps_limit=True)


def hosts_in_words(allow: Sequence[str]) -> str:
    """What the model is told about the hosts that it may visit."""
    more = f" and {len(allow) - MAX_SHOWN_HOSTS} more" if len(allow) > MAX_SHOWN_HOSTS else ""
    return f"Hosts that can be visited: {', '.join(allow[:MAX_SHOWN_HOSTS])}{more}."


@lru_cache(maxsize=16)
def web_visitor(
    hosts: tuple[str, ...], allow_private: bool, max_chars: int, max_links: int, timeout_s: float
) -> Visitor:
    """The visitor of the web with these settings."""
    fence = Fence(tuple(map(host_pattern, hosts)), allow_private)
    client = BoundedClient(
        HttpLimits(total_s=timeout_s, max_bytes=MAX_PAGE_BYTES),
        check_url=fence.check_url,
        check_addresses=fence.check_addresses,
        other_hosts=True,
    )
    return Visitor(from_the_web(client), max_chars, max_links, timeout_s)
