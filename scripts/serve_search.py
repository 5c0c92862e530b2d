"""Serve a corpus over HTTP to the search tools of many processes, in the protocols of Search-R1 and of SkyRL."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from forkgym.tools.web.search_server import DEFAULT_TOP_K, MISSING_LIBRARIES
from forkgym.trainers.commands.command_line import user_errors

GRACE_S = 5  # for requests under way when it is stopped; more than a body may take
MAX_PORT = 65_535


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, and where."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """File of passages: JSON or JSON Lines, in the layouts that the search environments read."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is reachable from other machines, which nothing here protects."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    retriever: str = "bm25"
    """How to search the corpus: bm25 by words, or dense:ENCODER by meaning, with a model of sentence-transformers."""
    top_k: int = DEFAULT_TOP_K
    """Documents for a query where the client does not say how many."""
    max_connections: int = 1_000
    """Clients at once; more are told to come again (status 503)."""


def main(config: ServeConfig) -> int:
    """Load the corpus and serve it until Ctrl-C or SIGTERM."""
    try:
        import uvicorn
    except ImportError:
        sys.stderr.write(f"error: {MISSING_LIBRARIES}\n")
        return 2
    from forkgym.tools.retrieval import retriever_for
    from forkgym.tools.web.search_server import search_app

    # uvicorn raises a signal again once it has shut down; that is no reason to end with another status than 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with user_errors():
        listening = listen(config.host, config.port)  # first: to read a corpus may take minutes
    with listening:
        with user_errors():
            app = search_app(retriever_for(config.corpus, config.retriever), config.top_k)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            limit_concurrency=config.max_connections,
            timeout_graceful_shutdown=GRACE_S,
        )
        host, port = listening.getsockname()[:2]
        print(f"serving {config.corpus}; use it with --env.corpus {address(host, port)}", flush=True)
        uvicorn.Server(settings).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        ValueError: It is in use, not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"cannot listen on port {port} of {host}: expected 0 to {MAX_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1_024)
    except OSError as error:
        busy = "another program listens there; choose another port with --port"
        reason = busy if error.errno == errno.EADDRINUSE else error.strerror
        raise ValueError(f"cannot listen on port {port} of {host}: {reason}") from error
    # Connections inherit it. Without it a reply's body waits 40 ms for the client's delayed acknowledgement of the
    # head; asyncio sets it only on sockets that were made with a protocol number.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address(host: str, port: int) -> str:
    """The URL of the endpoint on this machine."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/retrieve" if ":" in host else f"http://{host}:{port}/retrieve"


def _stop(number: int, frame: object) -> None:
    del number, frame
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ServeConfig, description=__doc__, use_underscores=True)))
