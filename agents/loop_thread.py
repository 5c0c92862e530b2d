"""An event loop in a thread of its own, for agents whose engine is behind a network."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread: work goes on while tools run, and a caller may have a loop of its own.

    Args:
        name: Of the thread.
        close: Awaited at the end.
    """

    def __init__(self, name: str, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=run_loop, args=(self._loop, close), name=name, daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, end_loop, self._loop, thread)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs and end the thread."""
        self._finalizer()


def run_loop(loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run until the loop is stopped, then clean up; the body of a thread."""
    try:
        loop.run_forever()
        loop.run_until_complete(cancel_all())
        loop.run_until_complete(close())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def cancel_all() -> None:
    """Cancel what else runs in this loop, and wait until it is over."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def end_loop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Stop a loop and wait for its thread; not where that thread itself collects the garbage that this is about."""
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()
