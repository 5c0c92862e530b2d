"""`SideBySide`: one job for each environment at a time, in threads or in the caller's, and the results as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")
HandedT = TypeVar("HandedT")


class SideBySide(Generic[ResultT]):
    """Runs jobs by number: a job is at work, then its result waits to be taken. One caller drives it.

    Args:
        size: How many jobs there are, 1 or more; their numbers are below it.
    """

    def __init__(self, size: int) -> None:
        self._condition = threading.Condition()  # guards all that follows: threads come back with results
        self._at_work: set[int] = set()
        self._results: dict[int, ResultT] = {}
        self._errors: dict[int, BaseException] = {}
        self._when_late: Callable[[int], None] | None = None
        # As many threads as jobs, started when they are needed: no job ever waits for a free one.
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="forkgym-env")

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._when_late is not None

    def at_work(self, numbers: Iterable[int]) -> list[int]:
        """Those of the jobs that are at work."""
        with self._condition:
            return [number for number in numbers if number in self._at_work]

    def under_way(self, numbers: Iterable[int]) -> list[int]:
        """Those of the jobs that are at work, or whose result was not taken."""
        with self._condition:
            taken = self._at_work | self._results.keys() | self._errors.keys()
        return [number for number in numbers if number in taken]

    def start(self, jobs: Mapping[int, Callable[[], ResultT]], inline: Collection[int]) -> None:
        """Start some jobs, none of which is at work; earlier results of theirs are dropped.

        Args:
            jobs: The jobs by number.
            inline: Those to run in this thread, in the order of ``jobs``, once the others have started.
        """
        self.drop(jobs)
        with self._condition:
            self._at_work.update(jobs)
        for number, job in jobs.items():
            if number not in inline:
                self._executor.submit(self._work, number, job).add_done_callback(raise_error)
        for number, job in jobs.items():
            if number in inline:
                self._work(number, job)

    def wait(self, min_ready: int, timeout: float | None) -> list[int]:
        """Wait for some of the jobs under way, all where they are fewer, or for ``timeout`` seconds.

        Returns:
            The numbers of all jobs whose result is there, in ascending order.
        """
        with self._condition:
            wanted = min(min_ready, len(self._at_work) + len(self._results) + len(self._errors))
            self._condition.wait_for(lambda: len(self._results) + len(self._errors) >= wanted, timeout)
            return sorted(self._results.keys() | self._errors.keys())

    def wait_for(self, numbers: Iterable[int]) -> None:
        """Wait until none of these jobs is at work."""
        wanted = set(numbers)
        with self._condition:
            self._condition.wait_for(lambda: self._at_work.isdisjoint(wanted))

    def take(self, numbers: Iterable[int]) -> list[ResultT]:
        """Take the results of these jobs, none of which raised."""
        with self._condition:
            return [self._results.pop(number) for number in numbers]

    def take_error(self, numbers: Iterable[int]) -> tuple[int, BaseException] | None:
        """Take what the first of these jobs that raised has raised, or nothing; results stay."""
        with self._condition:
            return next(((number, self._errors.pop(number)) for number in numbers if number in self._errors), None)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget what these jobs returned or raised."""
        with self._condition:
            for number in numbers:
                self._results.pop(number, None)
                self._errors.pop(number, None)

    def close(self, when_late: Callable[[int], None]) -> list[int]:
        """Start nothing more, and wait for nothing.

        Args:
            when_late: Called with the number of each job that is at work, in its thread, once it has ended.

        Returns:
            The numbers of those jobs.
        """
        with self._condition:
            self._when_late = when_late
            late = sorted(self._at_work)
        self._executor.shutdown(wait=False)
        return late

    def _work(self, number: int, job: Callable[[], ResultT]) -> None:
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - raised by whoever takes it, in the caller's thread
            self._hand_in(number, self._errors, error)
        else:
            self._hand_in(number, self._results, result)

    def _hand_in(self, number: int, where: dict[int, HandedT], what: HandedT) -> None:
        with self._condition:
            where[number] = what
            self._at_work.remove(number)
            when_late = self._when_late
            self._condition.notify()
        if when_late is not None:
            when_late(number)


def raise_error(future: Future[None]) -> None:
    """Raise what went wrong after a job, such as in ``when_late``: the executor logs it, nobody else would see it."""
    future.result()
