"""What a person sees of a run: the live display, the tables and the picture. Matplotlib is imported when it draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from forkgym.trainers.evaluation import Result

RECENT_STEPS = 10  # a single step is too noisy to read
STEP_TIMES = ("time/rollout_s", "time/train_s", "time/sync_s")
ACCURACY_OF = "accuracy/"  # an environment's id follows

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
UNLIMITED = 10**4  # characters
SMOOTHING = 1 / 40  # standard deviation of the smoothing, as a share of the run


class NoProgress:
    """Shows nothing: for a process beside the one that does."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a finished step."""
        del step, metrics


class Progress:
    """Shows how a run is getting on; a context manager.

    In a terminal, a bar and a line of numbers that stay in place; elsewhere, as in a log file, a line of plain text at
    the first step, every tenth and the last. Numbers are means over the last ten steps.
    """

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        """Prepare the display.

        Args:
            num_steps: Of the whole run, those before it was resumed included.
            console: Where to; by default standard output.
        """
        self._num_steps = num_steps
        self._console = console if console is not None else Console()
        self._recent: deque[Mapping[str, float]] = deque(maxlen=RECENT_STEPS)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_interactive else None

    def __enter__(self) -> Self:
        """Start the display."""
        if self._live is not None:
            self._live.update(self._bar(0, "waiting for the first step"))
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop, and leave the last numbers where they are."""
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            step: Its number, the first being 1.
            metrics: Of this step, as in ``metrics.jsonl``.
        """
        is_first = not self._recent
        self._recent.append(metrics)
        recent = list(self._recent)
        pace = f"{speed(recent):,.0f} tokens/s, {duration(seconds_left(recent, self._num_steps - step))} left"
        if self._live is not None:
            self._live.update(Group(self._bar(step, pace), Text(success(recent))), refresh=True)
        elif is_first or step % RECENT_STEPS == 0 or step == self._num_steps:
            line = f"step {step}/{self._num_steps}: {success(recent)}, {pace}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _bar(self, step: int, pace: str) -> Table:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_row(f"step {step}/{self._num_steps}", ProgressBar(self._num_steps, step), pace)
        return row


def success(recent: Sequence[Mapping[str, float]]) -> str:
    """Say the mean reward and accuracy of some steps, that of each environment too where there are several."""
    accuracy = percent(mean(recent, "accuracy"))
    env_ids = environments(recent)
    if len(env_ids) > 1:
        parts = [f"{short(env_id)} {percent(mean(recent, ACCURACY_OF + env_id))}" for env_id in env_ids]
        accuracy += f" ({', '.join(parts)})"
    return f"reward {mean(recent, 'reward/mean'):.3f}, accuracy {accuracy}"


def speed(recent: Sequence[Mapping[str, float]]) -> float:
    """Return the tokens sampled per second of rollout in some steps."""
    rollout_s = sum(metrics["time/rollout_s"] for metrics in recent)
    return sum(metrics["tokens/sampled"] for metrics in recent) / rollout_s if rollout_s else 0.0


def seconds_left(recent: Sequence[Mapping[str, float]], num_steps: int) -> float:
    """Return how long that many steps more will take if they take as long as some steps did."""
    return num_steps * sum(metrics[name] for metrics in recent for name in STEP_TIMES) / len(recent)


def environments(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the ids of the environments whose accuracy is in some steps' metrics."""
    names = dict.fromkeys(name for record in metrics for name in record if name.startswith(ACCURACY_OF))
    return [name.removeprefix(ACCURACY_OF) for name in names]


def mean(metrics: Sequence[Mapping[str, float]], name: str) -> float:
    """Return the mean of one metric over the steps that have it, at least one of them."""
    values = [record[name] for record in metrics if name in record]
    return sum(values) / len(values)


def percent(share: float) -> str:
    """Write a share in %."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Write a time as 2:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short(env_id: str) -> str:
    """Return an environment's id without this package's name."""
    return env_id.removeprefix("forkgym/")


# Tables.


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    key: str
    is_share: bool  # in %, and its change in points

    def value(self, result: Result) -> float:
        return float(result[self.key]) * (100 if self.is_share else 1)

    def change(self, before: Result, after: Result) -> str:
        return f"{self.value(after) - self.value(before):+.1f}"


ACCURACY = _Column("accuracy", "accuracy", True)
OTHERS = (
    _Column("sampled", "accuracy/sampled", True),
    _Column("turns", "turns/mean", False),
    _Column("tool\ncalls", "tool_calls/mean", False),
)


def result_table(results: Mapping[str, Result]) -> Table:
    """Tabulate an evaluation.

    Args:
        results: By environment id, as `forkgym.trainers.evaluation.evaluate` returns them.
    """
    table = _empty_table("Accuracy in %", ["environment"], list(results.values()))
    for env_id, result in results.items():
        table.add_row(short(env_id), *_cells(result))
    return table


def evaluation_table(before: Mapping[str, Result], after: Mapping[str, Result]) -> Table:
    """Tabulate what a training run has changed.

    Args:
        before: Results by environment id.
        after: Those of the trained policy, on the same tasks.
    """
    table = _empty_table("Accuracy in %, changes in points", ["environment", ""], [*before.values(), *after.values()])
    for env_id in dict.fromkeys([*before, *after]):
        rows = [
            (phase, results[env_id]) for phase, results in (("before", before), ("after", after)) if env_id in results
        ]
        for place, (phase, result) in enumerate(rows):
            table.add_row("" if place else short(env_id), phase, *_cells(result))
        if len(rows) == 2:
            gain, *others = [column.change(rows[0][1], rows[1][1]) for column in (ACCURACY, *OTHERS)]
            table.add_row("", "change", gain, "", *others, "", style="bold")
        table.add_section()
    return table


def print_table(table: Table) -> None:
    """Print a table to standard output, in the width that it needs; one without rows is left out.

    In a narrower one rich would cut cells off, with a character that not every terminal has.
    """
    console = Console()
    if table.row_count:
        needed = console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum
        console.width = max(needed, console.width)
        console.print(table)


def _empty_table(title: str, headers: Sequence[str], results: Sequence[Result]) -> Table:
    sampled = ", ".join(dict.fromkeys(result["decoding"]["accuracy/sampled"] for result in results))
    table = Table(
        title=title,
        caption=f"accuracy, turns and tool calls: greedy; sampled: {sampled}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for header in headers:
        table.add_column(header, no_wrap=True)
    for header in (ACCURACY.header, "95 % interval", *(column.header for column in OTHERS), "tasks"):
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _cells(result: Result) -> list[str]:
    low, high = result["interval"]
    others = [f"{column.value(result):.1f}" for column in OTHERS]
    return [f"{ACCURACY.value(result):.1f}", f"{100 * low:.1f} to {100 * high:.1f}", *others, str(result["num_tasks"])]


# The picture.


def draw_learning_curve(
    metrics: Sequence[Mapping[str, float]], evaluation: Mapping[str, Mapping[str, Result]] | None, path: Path
) -> None:
    """Draw accuracy over the steps of a run, a line for each environment, as PNG.

    Args:
        metrics: Of each step, as in ``metrics.jsonl``.
        evaluation: Results ``before`` and ``after`` by environment id; drawn as points with their 95 % intervals at
            both ends. May lack either.
        path: Where to; a file that is there is replaced.
    """
    from matplotlib.figure import Figure

    evaluation = evaluation if evaluation is not None else {}
    measured = [env_id for results in evaluation.values() for env_id in results]
    env_ids = list(dict.fromkeys([*environments(metrics), *measured]))
    start, end = (metrics[0]["step"] - 1, metrics[-1]["step"]) if metrics else (0, 1)

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, env_id in enumerate(env_ids):
        color = COLORS[place % len(COLORS)]
        _draw_training(axes, metrics, env_id, color)
        # Beside the lines and each other, so that no interval hides anything.
        outside = (place + 1) * 0.015 * (end - start)
        for phase, step in (("before", start - outside), ("after", end + outside)):
            if env_id in evaluation.get(phase, {}):
                _draw_result(axes, step, evaluation[phase][env_id], color)
    axes.set(xlabel="training step", ylabel="accuracy, %", ylim=(0, 100), yticks=range(0, 101, 20))
    axes.set_title("Accuracy over training", loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    if env_ids:
        labels = [short(env_id) + _gain(evaluation, env_id) for env_id in env_ids]
        _draw_legend(figure, labels, has_lines=bool(metrics), has_results=bool(measured))
    figure.savefig(path, format="png", dpi=160)


def _draw_training(axes: Axes, metrics: Sequence[Mapping[str, float]], env_id: str, color: str) -> None:
    from scipy.ndimage import gaussian_filter1d

    name = ACCURACY_OF + env_id
    steps = [record["step"] for record in metrics if name in record]
    accuracy = [100.0 * record[name] for record in metrics if name in record]
    axes.plot(steps, accuracy, color=color, alpha=0.2, linewidth=0.8)
    if accuracy:
        axes.plot(steps, gaussian_filter1d(accuracy, max(1.0, SMOOTHING * len(accuracy))), color=color, linewidth=2)


def _draw_result(axes: Axes, step: float, result: Result, color: str) -> None:
    accuracy, (low, high) = result["accuracy"], result["interval"]
    # At 0 and 1 the interval's end may be off by a rounding error, and a bar of negative length is refused.
    below, above = max(0.0, accuracy - low), max(0.0, high - accuracy)
    axes.errorbar(
        step,
        100 * accuracy,
        yerr=[[100 * below], [100 * above]],
        color=color,
        marker="o",
        markersize=7,
        markeredgecolor="white",
        capsize=3,
        linewidth=1.5,
        clip_on=False,
    )


def _gain(evaluation: Mapping[str, Mapping[str, Result]], env_id: str) -> str:
    results = [evaluation[phase][env_id] for phase in ("before", "after") if env_id in evaluation.get(phase, {})]
    return f": {' → '.join(percent(result['accuracy']) for result in results)}" if results else ""


def _draw_legend(figure: Figure, labels: Sequence[str], *, has_lines: bool, has_results: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [
        (Line2D([], [], color=COLORS[place % len(COLORS)], linewidth=5), label) for place, label in enumerate(labels)
    ]
    if has_results:
        point = Line2D([], [], color="0.4", marker="o", markersize=7, linestyle="none")
        entries.append((point, "held-out tasks, greedy, with 95 % interval"))
    if has_lines:
        entries.append(
            (Line2D([], [], color="0.4", linewidth=2), "training tasks, sampled, smoothed (faint: single steps)")
        )
    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
