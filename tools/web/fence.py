"""Which hosts, ports and addresses may be asked for pages that a policy names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from forkgym.tools.web.addresses import is_public
from forkgym.tools.web.http import HttpProblem, ProblemKind

STANDARD_PORTS = frozenset({80, 443})
PATTERN = re.compile(r"(?P<below>\*\.)?(?P<host>\*|\[[0-9a-fA-F:.]+\]|[^\s*/@:#?%\\\[\]]+)(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class HostPattern:
    """A host that may be visited.

    Attributes:
        host: In lower case and ASCII, as it goes into a request; empty for any.
        subdomains: Whether hosts below it are meant, and not itself.
        port: The only port, or None for the standard ones.
    """

    host: str
    subdomains: bool
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        """Whether a host in lower case and ASCII may be visited at a port."""
        if port != self.port and not (self.port is None and port in STANDARD_PORTS):
            return False
        if self.subdomains:
            return host.endswith(f".{self.host}")
        return not self.host or host == self.host


def host_pattern(text: str) -> HostPattern:
    """Read a pattern: ``example.org``, ``*.example.org`` (hosts below it), ``*`` (any), each with ``:PORT`` or without.

    Raises:
        ValueError: It is none of these.
    """
    found = PATTERN.fullmatch(text)
    try:
        if found is None or (found["below"] and found["host"] == "*"):
            raise ValueError("it has no such form")
        host = "" if found["host"] == "*" else ascii_host(httpx.URL(f"http://{found['host']}/"))
        port = int(found["port"]) if found["port"] else None
    except (httpx.InvalidURL, ValueError) as error:
        expected = "expected such as example.org, *.example.org, example.org:8080 or *"
        raise ValueError(f"visit: host {text!r}, {expected}") from error
    return HostPattern(host, bool(found["below"]), port)


def ascii_host(url: httpx.URL) -> str:
    """The host of a URL in lower case and ASCII."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


@dataclass(frozen=True, slots=True)
class Fence:
    """Which URLs and addresses may be asked.

    Attributes:
        patterns: Of hosts.
        allow_private: Whether addresses that are not public may be.
    """

    patterns: tuple[HostPattern, ...]
    allow_private: bool

    def check_url(self, url: httpx.URL) -> None:
        """Refuse a URL, also one that a redirect leads to.

        Raises:
            HttpProblem: It may not be asked; the message says why.
        """
        if url.userinfo:
            raise HttpProblem(ProblemKind.REFUSED, "a URL with a name or password in it is not visited")
        host = ascii_host(url)
        port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
        if not any(pattern.allows(host, port) for pattern in self.patterns):
            place = host if port in STANDARD_PORTS else f"{host}:{port}"
            raise HttpProblem(ProblemKind.REFUSED, f"{place} may not be visited here")

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Refuse a host that has an address which is not public.

        Raises:
            HttpProblem: It has one.
        """
        if not self.allow_private and not all(map(is_public, addresses)):
            raise HttpProblem(ProblemKind.REFUSED, f"{host} is not on the public internet")
