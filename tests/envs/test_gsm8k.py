"""GSM8K: its rows as tasks, its score, and its oracle on the real test set."""

import json
from pathlib import Path

import pytest

from forkgym.envs.grading import number_in
from forkgym.envs.gsm8k import GSM8KEnv, annotated_calls, gsm8k_taskset
from forkgym.envs.sources import DataError
from forkgym.envs.tasks import SolutionStep


def result_in(observation: str) -> str:
    """What stands between the markers of the one result."""
    return observation.removeprefix("<result>").removesuffix("</result>")


def play_oracle(env: GSM8KEnv, index: int) -> tuple[float, str | None]:
    """Return the reward, and the last result of the calculator where it was called."""
    env.reset(options={"index": index})
    last: str | None = None
    for step in env.current_task.solution:
        observation, reward, terminated, _, info = env.step(env.render_step(step))
        assert info["error"] == ""
        if step.tool is None:
            assert terminated
            return reward, last
        last = result_in(observation)
        assert not last.startswith("Error")
    raise AssertionError("the solution has no answer")


def test_a_row_becomes_a_task(gsm8k_file: Path) -> None:
    taskset = gsm8k_taskset("test", str(gsm8k_file))
    task = taskset[0]
    assert taskset.size == 3
    assert (task.uid, task.answer) == ("gsm8k/test/0", "20")
    assert task.question == "Mia bakes 3 trays of 8 rolls and eats 4. How many rolls are left?"
    assert task.metadata["answer"].endswith("#### 20")
    assert task.solution == (
        SolutionStep("3*8", tool="calculator", thought="She bakes 3*8="),
        SolutionStep("24-4", tool="calculator", thought="There are 24-4="),
        SolutionStep("20"),
    )
    assert taskset[1].answer == "1,500"
    assert taskset[2].solution == (SolutionStep("4"),)
    with pytest.raises(IndexError):
        taskset[3]


def test_two_annotations_on_a_line_have_a_thought_each() -> None:
    assert annotated_calls("He has 2+2=<<2+2=4>>4 and 4*3=<<4*3=12>>12.\nDone.") == [
        SolutionStep("2+2", tool="calculator", thought="He has 2+2="),
        SolutionStep("4*3", tool="calculator", thought="4 and 4*3="),
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_oracle_solves_every_row(gsm8k_file: Path, index: int) -> None:
    assert play_oracle(GSM8KEnv(path=str(gsm8k_file)), index)[0] == 1.0


@pytest.mark.parametrize(
    ("answer", "reward", "extraction"),
    [
        (r"\boxed{20}", 1.0, ""),
        ("#### $20", 1.0, ""),
        ("20.0", 1.0, ""),
        ("not 19 but 20.", 1.0, ""),
        ("20 or 21", 0.0, ""),
        (r"\boxed{21}", 0.0, ""),
        ("", 0.0, "empty"),
        (r"\boxed{}", 0.0, "empty"),
        ("twenty", 0.0, "no_digits"),
        ("nan", 0.0, "not_finite"),
        ("\uff12\uff10", 0.0, "non_ascii_digits"),
        ("1e1000000000", 0.0, "too_long"),
        ("20/0", 0.0, "zero_denominator"),
    ],
)
def test_score_by_value(gsm8k_file: Path, answer: str, reward: float, extraction: str) -> None:
    env = GSM8KEnv(path=str(gsm8k_file))
    env.reset(options={"index": 0})
    _, earned, terminated, _, info = env.step(f"<answer>{answer}</answer>")
    assert terminated
    assert (earned, info["reward/correct"], info["accuracy"]) == (reward, reward, reward)
    assert info["extraction"] == extraction


def test_one_taskset_a_process_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "#### 1"}\n', encoding="utf-8")
    first = gsm8k_taskset("test", str(path))
    assert GSM8KEnv(path=str(path)).taskset is first
    path.write_text('{"question": "a", "answer": "#### 1,234"}\n', encoding="utf-8")
    assert gsm8k_taskset("test", str(path))[0].answer == "1,234"


@pytest.mark.parametrize("answer", ["42", "#### many", "#### 1\n#### ", "####", "#### nan"])
def test_row_without_gold_is_refused(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": answer}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: answer: expected the last line '#### NUMBER', found"):
        GSM8KEnv(path=str(path))


def test_oracle_on_the_real_test_set(shared_data: Path) -> None:
    env = GSM8KEnv(path=str(shared_data / "gsm8k" / "test.jsonl"))
    rewards: list[float] = []
    without_calls = agreeing = 0
    for index in range(1_319):
        reward, last = play_oracle(env, index)
        rewards.append(reward)
        without_calls += last is None
        agreeing += last is not None and number_in(last) == number_in(env.current_task.answer)
    assert rewards == [1.0] * 1_319
    # 18 rows have no annotation, and in 93 the last one is not the gold: 1319 - 18 - 93 = 1208.
    assert (without_calls, agreeing) == (18, 1_208)


@pytest.mark.parametrize(("split", "size", "calls"), [("test", 1_319, 4_282), ("train", 7_473, 23_716)])
def test_real_solutions_fit_into_an_episode(shared_data: Path, split: str, size: int, calls: int) -> None:
    path = shared_data / "gsm8k" / f"{split}.jsonl"
    env = GSM8KEnv(split=split, path=str(path))
    solutions = [env.task(index).solution for index in range(size)]
    assert env.taskset is not None and env.taskset.size == size
    assert max(map(len, solutions)) <= env.max_turns
    assert sum(len(solution) - 1 for solution in solutions) == path.read_text(encoding="utf-8").count("<<") == calls
