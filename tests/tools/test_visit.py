"""The tool visit: pages of a server on loopback, what may not be visited, and pages that are made to do harm."""

import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import Tool, ToolError, ToolFailure
from forkgym.tools.visit import PageCache, ReadablePage, split_text, visit_tool
from forkgym.tools.web import http_transport, page_reader
from forkgym.tools.web.addresses import is_public
from forkgym.tools.web.fence import host_pattern
from forkgym.tools.web.page_program import Form, Outcome, Page
from forkgym.tools.web.page_reader import PageReader

ARTICLE = """<html><head><title> Ada
Lovelace </title></head><body><nav><a href="/home">Home</a></nav><main><h1>Ada Lovelace</h1>
<p>Ada Lovelace was a mathematician, known for her work on the Analytical Engine, which was never built.</p>
<table><tr><td>Born</td><td>1815</td></tr></table>
<p>She wrote the first program, for the numbers of Bernoulli. See <a href="engine#top">the engine</a>.</p></main>
<script>var answer = 42</script></body></html>"""
LONG = "\n".join(f"line {number:03}" for number in range(100))  # 899 characters


@dataclass
class Site:
    """A web server: what it replies by path, and which paths it was asked for."""

    pages: dict[str, tuple[int, Mapping[str, str], bytes]] = field(
        default_factory=dict[str, tuple[int, Mapping[str, str], bytes]]
    )
    asked: list[str] = field(default_factory=list[str])
    delays_s: dict[str, float] = field(default_factory=dict[str, float])
    port: int = 0

    def add(self, path: str, body: str | bytes, kind: str = "text/html", status: int = 200, **headers: str) -> str:
        content = body.encode() if isinstance(body, str) else body
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, {"Content-Type": kind, **sent} if kind else sent, content)
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            site.asked.append(self.path)
            time.sleep(site.delays_s.get(self.path, 0))
            status, headers, body = site.pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()


@pytest.fixture
def tool(site: Site) -> Tool:
    return visit_tool([f"127.0.0.1:{site.port}"], allow_private=True, max_chars=300, timeout_s=30)


def visit(tool: Tool, text: str) -> str:
    return tool.new_session().call(tool.arguments_from_text(text))


def mistake(tool: Tool, text: str) -> str:
    with pytest.raises(ToolError) as caught:
        visit(tool, text)
    return str(caught.value)


# What is read.


def test_an_article(site: Site, tool: Tool) -> None:
    assert visit(tool, site.add("/ada", ARTICLE)).splitlines() == [
        "Ada Lovelace",  # the title
        "Ada Lovelace",
        "Ada Lovelace was a mathematician, known for her work on the Analytical Engine, which was never built.",
        "| Born | 1815 |",
        "She wrote the first program, for the numbers of Bernoulli. See the engine.",
    ]


def test_links(site: Site) -> None:
    url = site.add("/people/ada", ARTICLE + "<a href='javascript:x()'>no</a><a href='http://[bad'>bad</a><a>none</a>")
    root = f"http://127.0.0.1:{site.port}"
    for max_links, links in (
        (5, [f"Home: {root}/home", f"the engine: {root}/people/engine"]),
        (1, [f"Home: {root}/home"]),
    ):
        tool = visit_tool([f"127.0.0.1:{site.port}"], allow_private=True, max_links=max_links)
        assert visit(tool, url).splitlines()[-len(links) - 3 :] == [
            "She wrote the first program, for the numbers of Bernoulli. See the engine.",
            "",
            "Links:",
            *links,
        ]


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (("/text", "text/plain; charset=utf-8", "a <b>\r\nç\x1b[31m".encode()), "a <b>\nç[31m"),
        (("/latin", "text/plain; charset=latin-1", "ç".encode("latin-1")), "ç"),
        (("/wide", "text/plain; charset=UTF-16", "ç".encode("utf-16")), "ç"),
        (("/odd", "text/plain; charset=no-such", "ç".encode()), "ç"),
        (("/puny", "text/plain; charset=punycode", b"a-b"), "a-b"),
        (("/rot", "text/plain; charset=rot13", b"abc"), "abc"),
        (("/lines", "text/plain", b"a  \n\n\n\n\tb \n"), "a\n\n\tb"),
        (("/json", "application/json", b'{"a": [1]}'), '{"a": [1]}'),
        (("/ld", "application/ld+json", b"{}"), "{}"),
        (("/none", "", b"plain"), "plain"),
        (("/none-html", "", b" <title>T</title><p>words"), "T\nwords"),
        (("/meta", "text/html", "<meta charset=latin-1><p>ç à la".encode("latin-1")), "ç à la"),
        (
            ("/broken", "text/html; charset=UTF-8", b"<html><p>a <b>c</p></div> \xff d"),
            "a c\n\N{REPLACEMENT CHARACTER} d",
        ),
    ],
)
def test_kinds_of_text(site: Site, tool: Tool, page: tuple[str, str, bytes], shown: str) -> None:
    path, kind, body = page
    assert visit(tool, site.add(path, body, kind)) == shown


def test_pieces_come_from_one_fetch(site: Site, tool: Tool) -> None:
    url = site.add("/long", LONG, "text/plain")
    first = visit(tool, url)
    assert first.startswith("line 000\nline 001\n")
    assert first.endswith(f"line 032\n[piece 1 of 4; for the next one: {url} 2]")  # 33 lines of 9 characters, less one
    assert visit(tool, f"{url} 2").startswith("line 033\n")
    assert visit(tool, f" {url}#part  4 ") == "line 099\n[piece 4 of 4, the last]"
    assert mistake(tool, f"{url} 5") == mistake(tool, f"{url} 5")
    assert mistake(tool, f"{url} 0") == "there is no piece 0; that page has 4"
    assert site.asked.count("/long") == 1


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 9))
def test_pieces_hold_all_words_in_order(text: str, max_chars: int) -> None:
    pieces = split_text(text.strip(), max_chars)
    assert all(len(piece) <= max_chars for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    if max_chars >= max(map(len, text.split()), default=0) * 2 + 1:  # then no word is cut
        assert " ".join(pieces).split() == text.split()


def test_a_redirect_within_the_fence(site: Site, tool: Tool) -> None:
    site.add("/target", "there", "text/plain")
    assert visit(tool, site.add("/moved", "", status=302, Location="/target")) == "there"


def test_compressed_pages(site: Site, tool: Tool) -> None:
    url = site.add("/gzip", gzip.compress(b"packed"), "text/plain", Content_Encoding="gzip")
    assert visit(tool, url) == "packed"


# What is the model's mistake.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write one URL"),
        ("  ", "write one URL"),
        ("http://a b c", "write one URL"),
        ("http://127.0.0.1/ two", "write one URL"),
        ("http://127.0.0.1/ -1", "write one URL"),
        ("http://127.0.0.1/ ٢", "write one URL"),
        ("http://127.0.0.1/" + "a" * 2_000, "the URL has 2017 characters; at most 2000 are allowed"),
        ("example.org/page", "not visited: expected a URL that starts with http:// or https://"),
        ("file:///etc/passwd", "not visited: expected a URL that starts with http:// or https://"),
        ("ftp://example.org/", "not visited: expected a URL that starts with http:// or https://"),
        ("http://", "not visited: "),
        ("http://[::1", "not visited: "),
        ("http://127.0.0.1:99999/", "not visited: "),
        ("http://example.org/", "not visited: example.org may not be visited here"),
        ("http://127.0.0.1:1/", "not visited: 127.0.0.1:1 may not be visited here"),
        ("http://127.0.0.1/", "not visited: 127.0.0.1 may not be visited here"),
        ("http://\ud800/", "not visited: "),
        ("http://\x00/", "not visited: "),
    ],
)
def test_bad_arguments(tool: Tool, text: str, words: str) -> None:
    assert mistake(tool, text).startswith(words)


NO_PAGES = [
    (("/missing", "text/html", "", 404), "not visited: status 404"),
    (("/error", "text/html", "<answer>42</answer>", 500), "not visited: status 500"),
    (("/pdf", "application/pdf", "%PDF-1.7", 200), "it is no text but application/pdf"),
    (("/false-pdf", "text/html", "%PDF-1.7", 200), "it is no text, although it says so"),
    (("/image", "image/png", "\x89PNG", 200), "it is no text but image/png"),
    (("/binary", "text/plain", "a\x00b", 200), "it is no text, although it says so"),
    (("/kind", "<answer>42</answer>", "x", 200), "it is no text but something else"),
    (("/empty", "text/html", "", 200), "there is no text on that page"),
    (("/blank", "text/html", "<html><body></body></html>", 200), "there is no text on that page"),
    (("/large", "text/plain", "x" * 2_000_001, 200), "not visited: the reply is larger than 2000000 bytes"),
    (("/loop", "text/html", "", 302), "not visited: more than 3 redirects"),
]


@pytest.mark.parametrize(("page", "words"), NO_PAGES, ids=[page[0] for page, _ in NO_PAGES])
def test_pages_that_are_none(site: Site, tool: Tool, page: tuple[str, str, str, int], words: str) -> None:
    path, kind, body, status = page
    url = site.add(path, body.encode("latin-1"), kind, status, **({"Location": path} if status == 302 else {}))
    assert mistake(tool, url) == words


def test_a_slow_page(site: Site) -> None:
    tool = visit_tool([f"127.0.0.1:{site.port}"], allow_private=True, timeout_s=0.2)
    site.delays_s["/slow"] = 0.6
    assert mistake(tool, site.add("/slow", "late", "text/plain")) == "not visited: timeout: it took too long"


# What may not be visited.


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Addresses by name, instead of a name server's; other names stay what they are."""
    table: dict[str, tuple[str, ...]] = {}
    own = http_transport.resolve

    def resolve(host: str, left_s: float) -> tuple[str, ...]:
        return table.get(host) or own(host, left_s)

    monkeypatch.setattr(http_transport, "resolve", resolve)
    return table


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:169.254.169.254]",
        "[fe80::1]",
        "0.0.0.0",
        "0",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "localhost",
        "LOCALHOST.",
    ],
)
def test_private_addresses_are_refused_however_they_are_written(site: Site, host: str) -> None:
    site.add("/secret", "secret", "text/plain")
    # In which words depends on the system's resolver, which knows some of the ways to write them, or all.
    assert mistake(visit_tool([f"*:{site.port}"]), f"http://{host}:{site.port}/secret").startswith("not visited: ")
    assert "/secret" not in site.asked


def test_an_address_that_is_not_public_is_refused_in_words() -> None:
    assert (
        mistake(visit_tool(), "http://169.254.169.254/") == "not visited: 169.254.169.254 is not on the public internet"
    )


def test_a_name_with_one_private_address_is_refused(resolved: dict[str, tuple[str, ...]]) -> None:
    resolved["example.org"] = ("93.184.215.14", "10.0.0.1")
    assert mistake(visit_tool(), "https://example.org/") == "not visited: example.org is not on the public internet"


def test_a_name_that_changes_its_address_is_asked_where_it_was_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([("127.0.0.1",), ("169.254.169.254",)])

    def resolve(host: str, left_s: float) -> tuple[str, ...]:
        return next(answers)

    monkeypatch.setattr(http_transport, "resolve", resolve)
    tool = visit_tool([f"rebound.test:{site.port}"], allow_private=True)
    site.add("/rebound", "there", "text/plain")
    assert visit(tool, f"http://rebound.test:{site.port}/rebound") == "there"
    assert next(answers) == ("169.254.169.254",)  # it was asked for an address once


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://inside.test/", "inside.test is not on the public internet"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 is not on the public internet"),
        ("http://public.test:22/", "public.test:22 may not be visited here"),
        ("http://user:password@public.test/", "a URL with a name or password in it is not visited"),
        ("file:///etc/passwd", "it redirects to what is no web address"),
        ("gopher://public.test/", "it redirects to what is no web address"),
    ],
)
def test_redirects_out_of_the_fence(
    site: Site, resolved: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, location: str, words: str
) -> None:
    def passes_for_public(address: str) -> bool:
        return address == "127.0.0.1" or is_public(address)

    # The first hop is on loopback, which passes for public here, and no other address.
    monkeypatch.setattr("forkgym.tools.web.fence.is_public", passes_for_public)
    resolved["inside.test"] = ("192.168.0.1",)
    tool = visit_tool(["*", f"127.0.0.1:{site.port}"])
    url = site.add("/out", "", status=302, Location=location)
    assert mistake(tool, url) == f"not visited: {words}"


def test_credentials_are_refused(site: Site, tool: Tool) -> None:
    words = "not visited: a URL with a name or password in it is not visited"
    assert mistake(tool, f"http://user:secret@127.0.0.1:{site.port}/") == words


@pytest.mark.parametrize(
    ("pattern", "host", "port", "allowed"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "example.org", 80, True),
        ("example.org", "example.org", 8080, False),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "notexample.org", 443, False),
        ("*.example.org", "www.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "notexample.org", 443, False),
        ("Example.ORG:8080", "example.org", 8080, True),
        ("example.org:8080", "example.org", 80, False),
        ("*", "example.org", 443, True),
        ("*", "example.org", 22, False),
        ("*:8080", "example.org", 8080, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::1]", "::1", 80, True),
        ("müsli.test", "xn--msli-0ra.test", 80, True),
    ],
)
def test_host_patterns(pattern: str, host: str, port: int, allowed: bool) -> None:
    assert host_pattern(pattern).allows(host, port) is allowed


@pytest.mark.parametrize(
    "pattern", ["", "*.", "a.*.org", "http://a.org", "a.org/b", "a.org:x", "u@a.org", "a b", "*a.org", "a.org#b"]
)
def test_what_is_no_host_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected such as example.org"):
        host_pattern(pattern)


# Pages that are made to do harm.


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + "text",
        "<table><tr><td>" * 20_000 + "text",
        "<" * 1_900_000,
        "&amp;" * 300_000,
        "<!--" * 400_000,
        "<p>" + " " * 1_900_000,
    ],
    ids=["divs", "tables", "brackets", "entities", "comments", "spaces"],
)
@pytest.mark.usefixtures("bounded_memory")
def test_hostile_pages_are_text_or_a_mistake(site: Site, tool: Tool, page: str) -> None:
    url = site.add("/hostile", page)
    try:
        assert len(visit(tool, f"{url}?{len(page)}")) < 1_000
    except ToolError as error:
        assert len(str(error)) < 200


# The parser takes quadratic time over the attributes: half a minute.
SLOW = "<div " + " ".join(f"a{number}=1" for number in range(100_000)) + ">x</div>"


@pytest.fixture
def reader() -> Iterator[PageReader]:
    reader = PageReader()
    yield reader
    reader.close()


def test_a_page_that_takes_too_long_is_given_up_and_the_next_is_read(reader: PageReader) -> None:
    assert reader.read(Page(Form.ARTICLE, "", "", 0, 0.3), SLOW.encode()) == (Outcome.TIMEOUT, "")
    process = reader.idle[0].process
    page = Page(Form.ARTICLE, "", "", 0, 30.0)
    assert reader.read(page, b"<title>T</title><p>words") == (Outcome.TEXT, "T\nwords")
    assert reader.idle[0].process is process
    reader.close()
    assert process.returncode is not None


def test_a_page_that_cannot_be_read_is_not_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkgym.tools.visit.READ_LIMIT_S", 0.1)
    tool = visit_tool([f"127.0.0.1:{site.port}"], allow_private=True, max_chars=299)
    url = site.add("/slow-to-read", SLOW)
    for _ in range(2):
        assert mistake(tool, url) == "the page cannot be read: it takes too long"
    assert site.asked.count("/slow-to-read") == 1


def test_where_the_article_takes_too_long_all_words_are_read(
    site: Site, reader: PageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowForArticles:
        def read(self, page: Page, body: bytes) -> tuple[Outcome, str]:
            return (Outcome.TIMEOUT, "") if page.form is Form.ARTICLE else reader.read(page, body)

    monkeypatch.setattr("forkgym.tools.visit.shared_reader", SlowForArticles)
    tool = visit_tool([f"127.0.0.1:{site.port}"], allow_private=True)
    url = site.add("/words", "<title>T</title><nav>menu</nav><p>one</p><p>two</p>")
    assert visit(tool, url) == "T\none two"


@pytest.mark.slow
def test_a_page_that_takes_too_much_memory(reader: PageReader) -> None:
    # As many elements as fit take more than the gigabyte that there is.
    outcome, _ = reader.read(Page(Form.WORDS, "", "", 0, 60.0), b"<p>" * 4_000_000)
    assert outcome is Outcome.FAILED
    assert reader.read(Page(Form.PLAIN, "", "", 0, 30.0), b"a") == (Outcome.TEXT, "\na")


def test_a_program_that_dies_is_replaced(reader: PageReader) -> None:
    page = Page(Form.PLAIN, "", "", 0, 30.0)
    assert reader.read(page, b"a") == (Outcome.TEXT, "\na")
    reader.idle[0].process.kill()
    assert reader.read(page, b"b") == (Outcome.TEXT, "\nb")


def test_programs_that_do_not_start_are_a_failure_of_the_infrastructure(
    reader: PageReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page_reader, "PROGRAM", tmp_path / "missing.py")
    with pytest.raises(ToolFailure, match="the program that reads pages failed 2 times, at last: it ended"):
        reader.read(Page(Form.PLAIN, "", "", 0, 5.0), b"a")


def test_a_system_without_room_for_the_program_is_the_infrastructures_fault(
    reader: PageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(page_reader, "Program", fail)
    with pytest.raises(ToolFailure, match="failed 2 times, at last: .* temporarily unavailable"):
        reader.read(Page(Form.PLAIN, "", "", 0, 1.0), b"x")


def test_a_page_that_waits_too_long_is_a_failure_of_the_infrastructure(
    reader: PageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_reader, "TURN_LIMIT_S", 0.05)
    reader.slots = threading.BoundedSemaphore(1)
    with reader.slots, pytest.raises(ToolFailure, match=r"a page waited 0.05 s to be read"):
        reader.read(Page(Form.PLAIN, "", "", 0, 5.0), b"a")


def test_the_cache_forgets_the_oldest_page() -> None:
    cache = PageCache(max_characters=10)
    one, two, three = (ReadablePage("", ("x" * 5,)) for _ in range(3))
    assert cache.put("one", one) is one
    assert cache.put("one", two) is one
    cache.put("two", two)
    assert cache.get("one") is one
    cache.put("three", three)
    assert (cache.get("one"), cache.get("two"), cache.get("three")) == (one, None, three)
    large = ReadablePage("t", ("x" * 100,))
    assert cache.put("large", large) is large
    assert (cache.get("one"), cache.get("large"), cache.characters) == (None, large, 101)


# Saved pages, and in an environment.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "pages.jsonl"
    pages = [
        {"url": "https://example.org/ada/", "title": "Ada", "text": "She was born in 1815.", "more": 1},
        {"url": "https://example.org/html", "html": ARTICLE},
        {"url": "https://example.org/ada", "text": "another"},
    ]
    path.write_text("\n".join(map(json.dumps, pages)) + "\n\n", encoding="utf-8")
    return path


def test_saved_pages(saved: Path) -> None:
    tool = visit_tool(pages=saved)
    assert visit(tool, "https://example.org/ada#life") == "Ada\nShe was born in 1815."
    assert visit(tool, "https://example.org/html/").startswith("Ada Lovelace\nAda Lovelace\nAda Lovelace was a")
    assert mistake(tool, "https://example.org/other") == "not visited: there is no such page"
    with pytest.raises(ValueError, match="saved pages are not on the web"):
        visit_tool(["example.org"], pages=saved)
    with pytest.raises(FileNotFoundError):
        visit_tool(pages=saved.with_name("missing"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: page: Invalid JSON"),
        ("[]", "line 2: page: "),
        ('{"text": "a"}', "line 2: url: Field required"),
        ('{"url": "a"}', "line 2: page: Value error, expected either text or html"),
        ('{"url": "a", "text": "b", "html": "c"}', "line 2: page: Value error, expected either text or html"),
        ('{"url": "a", "text": 1}', "line 2: text: Input should be a valid string"),
    ],
)
def test_files_that_hold_no_pages(saved: Path, line: str, words: str) -> None:
    saved.write_text('{"url": "a", "text": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        visit_tool(pages=saved)


class BirthEnv(ToolEnv):
    """One task, whose answer is on a page."""

    def task(self, index: int) -> Task:
        return Task(f"birth-{index}", "When was Ada born? See https://example.org/ada", "1815")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return {"exact": float(answer == task.answer)}


def test_in_an_environment(saved: Path) -> None:
    env = BirthEnv(tools=[visit_tool(pages=saved)])
    env.reset(options={"index": 0})
    twin = env.fork()
    for each in (env, twin):
        observation, reward, *_ = each.step("<visit>https://example.org/ada</visit>")
        assert "She was born in 1815." in observation
        assert reward == 0
    assert "not visited: there is no such page" in env.step("<visit>https://example.org/</visit>")[0]


def test_arguments_of_the_tool() -> None:
    assert visit_tool().text_parameter == "url"
    assert visit_tool().keeps_limit
    assert visit_tool().description.endswith("a space and a number for another one.")
    assert visit_tool(["a.org", "b.org"]).description.endswith(" Hosts that can be visited: a.org, b.org.")
    assert visit_tool(["a.org"] * 12).description.endswith("a.org and 2 more.")
    assert mistake(visit_tool([]), "http://a.org/") == "not visited: a.org may not be visited here"
    for wrong in ({"max_chars": 0}, {"max_links": -1}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="expected"):
            visit_tool(**wrong)  # type: ignore[arg-type]  # pyright: ignore
