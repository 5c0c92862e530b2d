"""Pages that were saved, to visit without a network: what a run visits stays the same, and costs nobody a request."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ValidationError, model_validator

from forkgym.tools.base import ToolError
from forkgym.tools.web.documents import Document
from forkgym.tools.web.page_program import Form


class SavedPage(BaseModel):
    """One line of the file; what else it holds is not looked at."""

    url: str
    text: str | None = None
    html: str | None = None
    title: str = ""

    @model_validator(mode="after")
    def has_content(self) -> SavedPage:
        """Check that there is something to read."""
        if (self.text is None) == (self.html is None):
            raise ValueError("expected either text or html")
        return self


class SavedPages:
    """A file of pages, JSON Lines: ``url``, and ``text`` or ``html``, and perhaps ``title``.

    Only the URLs are kept in memory. A page is found by its URL with or without a slash at the end; of several with one
    URL the first counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no page.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, int] = {}
        place = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.places.setdefault(key_of(self._parse(line, number).url), place)
                place += len(line)

    def fetch(self, url: str, timeout_s: float) -> Document:
        """Return the page that was saved of a URL; ToolError where there is none."""
        del timeout_s  # reading a line takes no time
        if key_of(url) not in self.places:
            raise ToolError("not visited: there is no such page")
        with self.path.open("rb") as file:
            file.seek(self.places[key_of(url)])
            page = SavedPage.model_validate_json(file.readline())
        if page.html is not None:
            return Document(page.url, Form.ARTICLE, "utf-8", page.html.encode(), page.title)
        assert page.text is not None  # see has_content
        return Document(page.url, Form.PLAIN, "utf-8", page.text.encode(), page.title)

    def _parse(self, line: bytes, number: int) -> SavedPage:
        try:
            return SavedPage.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "page"
            raise ValueError(f"{self.path}, line {number}: {where}: {first['msg']}") from error


def key_of(url: str) -> str:
    """What pages are found by."""
    return url.partition("#")[0].rstrip("/")


def saved_pages(path: str | Path) -> SavedPages:
    """The pages of a file, whose URLs are read once in a process for as long as it stays the same."""
    resolved = Path(path).resolve()
    status = resolved.stat()
    return cached_pages(resolved, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def cached_pages(path: Path, modified_ns: int, size_bytes: int) -> SavedPages:
    """The pages of one version of a file; the time and the size only tell versions apart."""
    del modified_ns, size_bytes
    return SavedPages(path)
