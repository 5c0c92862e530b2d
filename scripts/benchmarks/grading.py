"""What it costs to grade an answer: numbers, mathematics as text, and the comparison in a process that can be killed.

Run ``python scripts/benchmarks/grading.py``. The first table has microseconds of this process's CPU time for answers
that were not seen before; the second has milliseconds of wall-clock time, medians, of pairs that are asked anew each
time. The project's limits are 10 µs for a number and 3 s for the longest comparison.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from forkgym.envs.gsm8k import GSM8KEnv
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import Task
from forkgym.envs.verification.verifier import verdict_on
from forkgym.envs.verification.verify_process import shared_process

ANSWERS = 20_000
REPEATS = 20
NUMBER_LIMIT_US = 10.0
COMPARISON_LIMIT_S = 3.0

PAIRS = {
    "the same": ("x", "x"),
    "roots": (r"2\sqrt{2}", r"\sqrt{8}"),
    "polynomials": ("(x+1)^2", "x^2+2x+1"),
    "an interval and a relation": (r"(-\infty,3)", "x<3"),
    "matrices": (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\4/2\end{pmatrix}"),
}
ENDLESS = (r"9^{9^{9^{9}}}", r"10^{10^{10}}", r"\sqrt{2}^{9^{9^{9}}}")


def main() -> None:
    """Measure and print."""
    console = Console()
    numbers = Table("grading an answer", "CPU time, µs")
    task = Task("How many?", "1,500")
    env = MathEnv(tools=[])
    forms: dict[str, Callable[[int], str]] = {
        "boxed": lambda number: rf"\boxed{{{number}}}",
        "#### with commas": lambda number: f"#### ${number:,}",
        "in a sentence": lambda number: f"So there are {number} apples.",
    }
    for name, form in forms.items():
        answers = (form(number) for number in range(ANSWERS))
        cost_us = mean_us(lambda answer: env.score(answer, task), answers)
        numbers.add_row(f"{GSM8KEnv.__name__}, {name} (limit {NUMBER_LIMIT_US:g})", f"{cost_us:.1f}")
    answers = (rf"\boxed{{{number}}}" for number in range(ANSWERS))
    numbers.add_row("as mathematics, a number", f"{mean_us(lambda answer: verdict_on('1,500', answer), answers):.1f}")
    answers = (r"\boxed{\frac{1}{2}}" for _ in range(ANSWERS))
    numbers.add_row("as mathematics, known", f"{mean_us(lambda answer: verdict_on('1/2', answer), answers):.1f}")
    console.print(numbers)

    process = shared_process()
    begun_s = time.perf_counter()
    process.compare("x", "x")
    algebra = Table("comparing in the other process", "wall-clock time, ms")
    algebra.add_row("start", f"{1_000 * (time.perf_counter() - begun_s):.0f}")
    for name, (gold, prediction) in PAIRS.items():
        times_s = [wall_s(lambda: process.compare(gold, prediction)) for _ in range(REPEATS)]  # noqa: B023
        algebra.add_row(name, f"{1_000 * statistics.median(times_s):.1f}")
    longest_s = max(wall_s(lambda: verdict_on("5", answer)) for answer in ENDLESS)  # noqa: B023
    algebra.add_row(f"endless, the longest (limit {1_000 * COMPARISON_LIMIT_S:g})", f"{1_000 * longest_s:.0f}")
    console.print(algebra)


def mean_us(action: Callable[[str], object], answers: Iterator[str]) -> float:
    """The mean CPU time of an action on answers that are written beforehand, microseconds."""
    written = list(answers)
    begun_ns = time.process_time_ns()
    for answer in written:
        action(answer)
    return (time.process_time_ns() - begun_ns) / len(written) / 1_000


def wall_s(action: Callable[[], object]) -> float:
    """The wall-clock time of an action, seconds."""
    begun_s = time.perf_counter()
    action()
    return time.perf_counter() - begun_s


if __name__ == "__main__":
    main()
