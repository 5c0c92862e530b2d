"""The program that reads web pages: a process of its own, and a forked child with limits for each page.

Pages come from anybody, and the libraries that take them apart are written in C: a page of a megabyte can keep them
busy for minutes or take gigabytes. A child that does is ended by the kernel, and nothing that went wrong in it outlives
it. It puts on the layers of the Python tool's sandbox before it looks at the page. `page_reader` starts the program,
with an empty environment.

A request is a line of JSON with the fields of `Page` and ``bytes``, and then that many bytes, the page. A reply is
``REPLY`` and then a text in UTF-8, whose first line is the page's title. One comes first, to say that the program is
ready. It ends when its input does.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import logging
import math
import os
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from encodings.aliases import aliases
from enum import IntEnum, StrEnum
from typing import Any, BinaryIO
from urllib.parse import urldefrag, urljoin

from forkgym.tools.sandbox.layers import interpreter_trees, lock_down
from forkgym.tools.sandbox.limits import SandboxLimits

REPLY = struct.Struct(">BI")  # outcome, bytes of the text
MAX_TEXT_CHARACTERS = 400_000
MAX_TEXT_BYTES = 4_000_000
MAX_TITLE_CHARACTERS = 300
MAX_LINK_TEXT_CHARACTERS = 80
MAX_LINK_CHARACTERS = 500
MEMORY_BYTES = 2**30  # of addresses beyond what the libraries take; a page of two megabytes takes a quarter of it
OPEN_FILES = 16
CPU_GRACE_S = 1
READ_BYTES = 65_536


class Outcome(IntEnum):
    """What came of a page."""

    TEXT = 0
    TIMEOUT = 1
    FAILED = 2  # the libraries gave up, or took too much memory


class Form(StrEnum):
    """What a page is, and what is wanted of it."""

    ARTICLE = "article"  # HTML: the readable text, without menus and the like
    WORDS = "words"  # HTML: the text of whatever is no menu or script, which is found ten times as fast
    PLAIN = "plain"  # no HTML: text as it is


@dataclass(frozen=True, slots=True)
class Page:
    """What is said about a page.

    Attributes:
        form: See there.
        charset: Its character set; empty where it is not known.
        url: Its address, from which its links lead on.
        max_links: Links that are listed after the text.
        limit_s: Wall-clock time for reading it, seconds.
    """

    form: Form
    charset: str
    url: str
    max_links: int
    limit_s: float


def read_page(page: Page, body: bytes) -> str:
    """The title of a page, empty where it has none, a new line, and its text."""
    if page.form is Form.PLAIN:
        return "\n" + decoded(body, page.charset)[:MAX_TEXT_CHARACTERS]
    import trafilatura

    source = decoded(body, page.charset) if page.charset else body  # else the page may name its character set
    tree: Any = trafilatura.load_html(source)
    if tree is None:
        return "\n"
    title = " ".join((tree.findtext(".//title") or "").split())[:MAX_TITLE_CHARACTERS]
    links = list_links(tree, page)
    # Not of this tree: it is changed by what reads it.
    text = trafilatura.extract(source, include_comments=False) if page.form is Form.ARTICLE else None
    text = text or trafilatura.html2txt(tree)  # where there is no article, all that there is has to do
    return f"{title}\n{text[:MAX_TEXT_CHARACTERS]}{links}"


def decoded(body: bytes, charset: str) -> str:
    """A page as text; by UTF-8 where the character set is unknown or is none."""
    with contextlib.suppress(LookupError, UnicodeError):
        if codecs.lookup(charset).name not in ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"):
            return body.decode(charset, "replace")
    return body.decode("utf-8", "replace")


def list_links(tree: Any, page: Page) -> str:
    """The links of a page, a line each, after a heading; empty where there are none or none are wanted."""
    found: dict[str, str] = {}
    for anchor in tree.iter("a") if page.max_links else ():
        if len(found) >= page.max_links:
            break
        words = " ".join("".join(anchor.itertext()).split())[:MAX_LINK_TEXT_CHARACTERS]
        with contextlib.suppress(ValueError):  # it is no address
            target, _ = urldefrag(urljoin(page.url, (anchor.get("href") or "").strip()))
            if words and target != page.url and target.startswith(("http://", "https://")):
                if len(target) <= MAX_LINK_CHARACTERS and not any(map(str.isspace, target)):
                    found.setdefault(target, words)
    return "\n\nLinks:\n" + "\n".join(f"{words}: {target}" for target, words in found.items()) if found else ""


def run_child(page: Page, body: bytes, readable: Sequence[str]) -> tuple[Outcome, bytes]:
    """Read a page in a forked child, which may read these files and folders besides."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine(page.limit_s, readable)
            text = read_page(page, body).encode("utf-8", "replace")
            with open(writer, "wb") as pipe:
                pipe.write(text)
            status = 0
        finally:  # whatever happened: no child may go on as the program
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read(MAX_TEXT_BYTES)
    if len(text) == MAX_TEXT_BYTES:  # no text of ours is as long
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU):
        return Outcome.TIMEOUT, b""
    return (Outcome.TEXT, text) if status == 0 else (Outcome.FAILED, b"")


def confine(limit_s: float, readable: Sequence[str]) -> None:
    """Have the kernel end this process after its time, also inside a library, keep it small, and lock it in.

    Layers that the machine does not have are left out: time and memory are limited everywhere.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    limits = SandboxLimits(
        timeout_s=limit_s,
        cpu_s=math.ceil(limit_s) + CPU_GRACE_S,
        memory_bytes=MEMORY_BYTES,
        file_bytes=1,
        open_files=OPEN_FILES,
        threads=1,
    )
    lock_down(limits, readable)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Read one page after the other until the input ends."""
    readable = interpreter_trees()
    while line := requests.readline(READ_BYTES):
        fields: dict[str, Any] = json.loads(line)
        body = requests.read(fields.pop("bytes"))
        outcome, text = run_child(Page(Form(fields.pop("form")), **fields), body, readable)
        replies.write(REPLY.pack(outcome, len(text)) + text)
        replies.flush()


def main() -> None:
    """Import and warm up, say so, and serve."""
    logging.disable(logging.CRITICAL)
    # A child that is locked in may reach no file any more, where root's own folders hold the libraries: what they load
    # when it is first needed is loaded here. A page with little text takes other ways than an article does.
    for name in set(aliases.values()):
        with contextlib.suppress(LookupError):
            codecs.lookup(name)
    words = "".join(f"<p>These are the words of paragraph {number}, and more words.</p>" for number in range(9))
    for source in (f"<title>T</title><article>{words}</article>", "<title>T</title><p>words <a href=b>c</a>", "<p>"):
        for form in (Form.ARTICLE, Form.WORDS):
            read_page(Page(form, "", "http://a/", 1, 1.0), source.encode())
    gc.freeze()  # children share these pages for as long as nobody writes to them
    sys.stdout.buffer.write(REPLY.pack(Outcome.TEXT, 0))
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
