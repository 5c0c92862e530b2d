"""What a person sees of a run: the progress of it, the tables and the picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forkgym.trainers.runs.reporting import (
    COLORS,
    Progress,
    draw_learning_curve,
    duration,
    evaluation_table,
    print_table,
    result_table,
    seconds_left,
    speed,
    success,
)

MATH, HOPS = "forkgym/WordMath-v0", "forkgym/MultiHop-v0"


def result(accuracy: float, interval: tuple[float, float], sampled: float, turns: float = 3.0) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "interval": list(interval),
        "num_tasks": 400,
        "accuracy/sampled": sampled,
        "turns/mean": turns,
        "tool_calls/mean": 2.25,
        "decoding": {"accuracy": "greedy", "accuracy/sampled": "temperature 1"},
    }


BEFORE = {MATH: result(0.4, (0.353, 0.449), 0.29), HOPS: result(0.5, (0.451, 0.549), 0.33)}
AFTER = {MATH: result(0.63, (0.582, 0.676), 0.55, turns=3.5), HOPS: result(0.475, (0.426, 0.524), 0.33)}


def step_metrics(step: int, math: float = 0.25, hops: float = 0.75) -> dict[str, float]:
    return {
        "step": step,
        "reward/mean": (math + hops) / 2,
        "accuracy": (math + hops) / 2,
        f"accuracy/{MATH}": math,
        f"accuracy/{HOPS}": hops,
        "tokens/sampled": 3000.0,
        "time/rollout_s": 2.0,
        "time/train_s": 0.75,
        "time/sync_s": 0.25,
    }


def single(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != f"accuracy/{HOPS}"}


# Numbers.


def test_success_is_the_mean_over_steps_and_over_each_environment() -> None:
    # WordMath (0.2 + 0.4) / 2, MultiHop (0.6 + 0.7) / 2, both (0.4 + 0.55) / 2
    recent = [step_metrics(1, 0.2, 0.6), step_metrics(2, 0.4, 0.7)]
    assert success(recent) == "reward 0.475, accuracy 47.5 % (WordMath-v0 30.0 %, MultiHop-v0 65.0 %)"


def test_an_environment_without_tasks_in_a_step_is_averaged_over_the_others() -> None:
    recent = [step_metrics(1, 0.2, 0.6), single(step_metrics(2, 0.4, 0.4))]
    assert "(WordMath-v0 30.0 %, MultiHop-v0 60.0 %)" in success(recent)


def test_a_single_environment_is_not_named() -> None:
    assert success([single(step_metrics(1))]) == "reward 0.500, accuracy 50.0 %"


def test_speed_is_tokens_by_seconds_of_rollout() -> None:
    # (3000 + 1000) tokens in 2 + 3 s
    slow = {**step_metrics(2), "tokens/sampled": 1000.0, "time/rollout_s": 3.0}
    assert speed([step_metrics(1), slow]) == 800.0
    assert speed([{**slow, "time/rollout_s": 0.0}]) == 0.0


def test_time_left_goes_by_what_steps_took() -> None:
    # steps of 3 s and of 4 s: 3.5 s each
    slow = {**step_metrics(2), "time/rollout_s": 3.0}
    assert seconds_left([step_metrics(1), slow], 10) == 35.0


def test_durations_are_written_as_on_a_clock() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 125, 3725, 100 * 3600)] == [
        *("0:00", "1:00", "2:05", "1:02:05", "100:00:00")
    ]


# The display.


def test_a_log_gets_a_line_at_the_first_step_every_tenth_and_the_last() -> None:
    out = io.StringIO()
    with Progress(23, Console(file=out, width=40)) as progress:
        for step in range(1, 24):
            progress.update(step, step_metrics(step))
    lines = out.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["step 1/23", "step 10/23", "step 20/23", "step 23/23"]
    # 13 steps of 3 s are left
    numbers = "reward 0.500, accuracy 50.0 % (WordMath-v0 25.0 %, MultiHop-v0 75.0 %), 1,500 tokens/s"
    assert lines[1] == f"step 10/23: {numbers}, 0:39 left"
    assert out.getvalue().isascii()


def test_a_line_is_about_the_last_ten_steps() -> None:
    out = io.StringIO()
    with Progress(20, Console(file=out)) as progress:
        for step in range(1, 21):
            progress.update(step, single(step_metrics(step, math=0.0 if step <= 10 else 1.0, hops=0.0)))
    assert [line.split("accuracy ")[1].split(",")[0] for line in out.getvalue().splitlines()] == [
        *("0.0 %", "0.0 %", "50.0 %")
    ]


def test_a_resumed_run_begins_where_it_stopped() -> None:
    out = io.StringIO()
    with Progress(200, Console(file=out)) as progress:
        progress.update(151, step_metrics(151))
    # 49 steps of 3 s are left
    assert out.getvalue().startswith("step 151/200: ")
    assert out.getvalue().endswith(" 2:27 left\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_gets_a_bar_that_stays_in_place(encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=out, width=80, force_terminal=True, force_interactive=True, color_system=None)
    with Progress(20, console) as progress:
        progress.update(1, step_metrics(1))
        progress.update(2, step_metrics(2))
    out.seek(0)
    text = out.read()
    assert "step 0/20" in text
    assert "waiting for the first step" in text
    last = text.rpartition("step 2/20 ")[2]
    assert last.splitlines()[0].endswith("1,500 tokens/s, 0:54 left")
    assert last.splitlines()[1].startswith("reward 0.500, accuracy 50.0 % (WordMath-v0 25.0 %, MultiHop-v0 75.0 %)")
    assert "\x1b[1A" in text  # the cursor went up, over the step before


def test_an_error_ends_the_display_and_propagates() -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), Progress(20, Console(file=out, force_terminal=True, force_interactive=True)):
        raise KeyError
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


# Tables.


def rows(table: Table) -> list[list[str]]:
    return [
        list(cells) for cells in zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    ]


def test_an_evaluation_is_a_row_for_each_environment() -> None:
    assert rows(result_table(BEFORE)) == [
        ["WordMath-v0", "40.0", "35.3 to 44.9", "29.0", "3.0", "2.2", "400"],
        ["MultiHop-v0", "50.0", "45.1 to 54.9", "33.0", "3.0", "2.2", "400"],
    ]


def test_a_training_run_is_three_rows_for_each_environment() -> None:
    # 63 - 40 = +23 points, 55 - 29 = +26, 47.5 - 50 = -2.5
    assert rows(evaluation_table(BEFORE, AFTER)) == [
        ["WordMath-v0", "before", "40.0", "35.3 to 44.9", "29.0", "3.0", "2.2", "400"],
        ["", "after", "63.0", "58.2 to 67.6", "55.0", "3.5", "2.2", "400"],
        ["", "change", "+23.0", "", "+26.0", "+0.5", "+0.0", ""],
        ["MultiHop-v0", "before", "50.0", "45.1 to 54.9", "33.0", "3.0", "2.2", "400"],
        ["", "after", "47.5", "42.6 to 52.4", "33.0", "3.0", "2.2", "400"],
        ["", "change", "-2.5", "", "+0.0", "+0.0", "+0.0", ""],
    ]


def test_a_half_evaluated_run_shows_what_there_is() -> None:
    table = evaluation_table(BEFORE, {HOPS: AFTER[HOPS]})
    assert [row[:2] for row in rows(table)] == [
        *(["WordMath-v0", "before"], ["MultiHop-v0", "before"], ["", "after"], ["", "change"])
    ]


@pytest.mark.parametrize("columns", [40, 80])
def test_no_cell_is_cut_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(evaluation_table(BEFORE, AFTER))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "WordMath-v0  before      40.0   35.3 to 44.9     29.0    3.0    2.2    400" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "sampled: temperature 1" in printed


def test_no_evaluation_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(evaluation_table({}, {}))
    print_table(result_table({}))
    assert capsys.readouterr().out == ""


def test_nothing_but_ascii_goes_to_a_terminal_without_more() -> None:
    program = (
        "from tests.trainers.runs.test_reporting import *\n"
        "print_table(evaluation_table(BEFORE, AFTER)); print_table(result_table(AFTER))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"+23.0" in done.stdout


# The picture.


def draw(path: Path, metrics: list[dict[str, float]], evaluation: Mapping[str, Any] | None) -> NDArray[np.uint8]:
    """Draw, and return the pixels (height, width, 3)."""
    draw_learning_curve(metrics, evaluation, path)
    return np.round(255 * imread(path)[..., :3]).astype(np.uint8)


def places(pixels: NDArray[np.uint8], color: str) -> NDArray[np.intp]:
    """Return row and column of every pixel of a colour, above the legend."""
    wanted = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    found = np.argwhere((pixels == wanted).all(-1))
    return found[found[:, 0] < 0.8 * len(pixels)]


def test_a_curve_rises_with_accuracy_and_each_environment_has_its_color(tmp_path: Path) -> None:
    metrics = [step_metrics(step, math=0.2 + 0.006 * step, hops=0.1) for step in range(1, 101)]
    pixels = draw(tmp_path / "curve.png", metrics, None)
    math, hops = places(pixels, COLORS[0]), places(pixels, COLORS[1])
    left, right = math[np.argmin(math[:, 1])], math[np.argmax(math[:, 1])]
    assert right[0] < left[0] - 200  # rows count from the top
    assert np.ptp(hops[:, 0]) < 10
    assert hops[:, 0].min() > left[0]


def test_evaluations_stand_at_both_ends_outside_the_curves(tmp_path: Path) -> None:
    metrics = [step_metrics(step) for step in range(1, 101)]
    lines = places(draw(tmp_path / "lines.png", metrics, None), COLORS[0])
    evaluation = {"before": BEFORE, "after": AFTER}
    both = places(draw(tmp_path / "both.png", metrics, evaluation), COLORS[0])
    # The curve is flat at 25 %, so what is well above it belongs to the points: 40 % at the left, 63 % at the right.
    points = both[both[:, 0] < both[:, 0].max() - 60]
    width = np.ptp(lines[:, 1])
    left = points[points[:, 1] < both[:, 1].min() + width / 4]
    right = points[points[:, 1] > both[:, 1].max() - width / 4]
    assert len(left) + len(right) == len(points)
    assert right[:, 0].mean() < left[:, 0].mean() - 50


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("evaluation", [None, {}, {"before": {}, "after": {}}, {"before": BEFORE}])
def test_a_picture_needs_neither_many_steps_nor_an_evaluation(
    tmp_path: Path, num_steps: int, evaluation: Mapping[str, Any] | None
) -> None:
    metrics = [step_metrics(step) for step in range(1, num_steps + 1)]
    pixels = draw(tmp_path / "small.png", metrics, evaluation)
    assert bool(len(places(pixels, COLORS[0]))) == bool(num_steps > 1 or (evaluation or {}).get("before"))


def test_an_interval_that_ends_short_of_its_accuracy_is_drawn(tmp_path: Path) -> None:
    perfect = result(1.0, (0.99, 1.0 - 1e-16), 1.0)
    pixels = draw(tmp_path / "perfect.png", [step_metrics(1)], {"before": {MATH: perfect}})
    assert len(places(pixels, COLORS[0]))


def test_heavy_libraries_are_imported_only_where_needed() -> None:
    program = (
        "import sys, forkgym.trainers.runs.reporting\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'scipy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_drawing_leaves_no_state_behind(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from forkgym.trainers.runs.reporting import draw_learning_curve\n"
        f"draw_learning_curve([], None, Path({str(tmp_path / 'x.png')!r}))\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"False\n"
