"""Files in verl's layout: which rows are whose tasks, what the question and the answers are, and the real file."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkgym.envs.checking import check_tool_env
from forkgym.envs.sources import DataError
from forkgym.envs.verl import VerlMathEnv, VerlRow, VerlSearchEnv, verl_taskset
from tests.envs.small_sets import VERL_ROWS, verl_row


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    pq.write_table(cast(Any, pa.Table.from_pylist(VERL_ROWS)), tmp_path / "train.parquet")
    return str(tmp_path / "train.parquet")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_each_ability_has_its_environment(parquet: str, corpus_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        math = VerlMathEnv(path=parquet, tools=["calculator"])
        search = VerlSearchEnv(path=parquet, corpus=str(corpus_file))
    assert (math.num_tasks, search.num_tasks) == (2, 2)  # row 3 has lost its answer
    assert [record.message for record in caplog.records] == [
        f"{parquet}, ability 'math': left out 1 of 3 rows without a question or a usable answer"
    ]
    # A task is named by the place of its row in the file.
    assert [math.task(index).uid for index in range(2)] == ["verl/train/0", "verl/train/2"]
    assert [search.task(index).uid for index in range(2)] == ["verl/train/1", "verl/train/4"]
    assert search.task(0).question == "Who directed Salt Lanterns?"
    _, info = search.reset(options={"index": 0})
    assert "<think> </think>" not in info["instructions"]  # the row's system prompt is not used
    assert search.step("<search>Salt Lanterns</search>")[0].startswith("<result>Salt Lanterns: ")


def test_joined_answers_are_accepted_one_by_one(parquet: str) -> None:
    env = VerlSearchEnv(path=parquet, tools=())
    for answer, reward in (("Piet Wren", 1.0), ("P. Wren", 1.0), ("Wren", 0.0), ("Piet Wren P. Wren", 0.0)):
        env.reset(options={"index": 0})
        assert env.step(f"<answer>{answer}</answer>")[1] == reward


def test_mathematics_is_compared_by_what_it_means(tmp_path: Path) -> None:
    rows = [verl_row(0, "math", "Which?", "\\$42.99<|answer_split|>43"), verl_row(1, "math", "Half?", "4.0")]
    env = VerlMathEnv(path=write(tmp_path / "rows.json", rows), tools=())
    for index, answer, reward in (
        (0, "\\boxed{42.99}", 1.0),
        (0, "\\boxed{43}", 1.0),  # the second one that is accepted
        (0, "\\boxed{42}", 0.0),
        (1, "\\boxed{4}", 1.0),
    ):
        env.reset(options={"index": index})
        assert env.step(f"<answer>{answer}</answer>")[1] == reward


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("Vienna, Austria", ["Vienna, Austria"]),
        (" a <|answer_split|>b<|answer_split|>", ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ({"target": ["a"]}, ["a"]),  # as in Search-R1
        ({"target": "a"}, ["a"]),
        (34, ["34"]),  # a column of numbers
        (0.5, ["0.5"]),
        ("", []),
        (None, []),
    ],
)
def test_ground_truths(truth: Any, answers: list[str]) -> None:
    assert VerlRow.model_validate(verl_row(0, "qa", "q", truth)).reward_model.ground_truth == answers


def test_without_a_question_of_its_own_the_user_asks() -> None:
    row = verl_row(0, "qa", "The last one?", "a")
    row["prompt"] = [*row["prompt"][:1], {"role": "user", "content": "An example?"}, *row["prompt"]]
    del row["extra_info"]["question"]
    assert VerlRow.model_validate(row).question == "The last one?"
    assert VerlRow.model_validate({**row, "extra_info": None}).question == "The last one?"
    assert VerlRow.model_validate({**row, "prompt": row["prompt"][:1]}).question == ""


def test_the_long_system_prompt_is_not_kept() -> None:
    (kept,) = VerlRow.model_validate(verl_row(0, "qa", "q", "a")).prompt
    assert kept.role == "user"


def test_another_ability_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [verl_row(0, "fact-reasoning", "Who?", "Ada")])
    with pytest.raises(DataError, match=r"no row has the ability 'qa' and an answer; it has rows of 'fact-reasoning'"):
        VerlSearchEnv(path=path, tools=())
    assert VerlSearchEnv(path=path, tools=(), ability="fact-reasoning").num_tasks == 1


def test_the_case_of_an_ability_does_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [verl_row(0, "MATH", "How many?", "34")])  # as in DAPO's file
    assert VerlMathEnv(path=path, tools=()).num_tasks == 1


def test_a_path_and_a_corpus_are_required(parquet: str) -> None:
    with pytest.raises(DataError, match="path is None: expected a file in verl's layout"):
        VerlMathEnv()
    with pytest.raises(DataError, match="VerlSearchEnv has no passages to search in; expected a corpus"):
        VerlSearchEnv(path=parquet)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward_model": {"style": "rule"}}, "reward_model.ground_truth"),
        ({"reward_model": {"ground_truth": {"answer": "42"}}}, "reward_model.ground_truth"),
        ({"ability": None}, "ability"),
        ({"prompt": "Who?"}, "prompt"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "rows.json", [VERL_ROWS[0], {**VERL_ROWS[1], **change}])
    with pytest.raises(DataError, match=rf"row 1: {said}"):
        verl_taskset(path, "train", "math")


def test_what_nothing_can_be_held_against_is_left_out(tmp_path: Path) -> None:
    truths = ("see the solution", "nan", "see below<|answer_split|>7")
    path = write(tmp_path / "rows.json", [verl_row(i, "math", "Which?", truth) for i, truth in enumerate(truths)])
    env = VerlMathEnv(path=path, tools=())
    assert env.num_tasks == 1
    assert (env.task(0).uid, env.task(0).answer) == ("verl/train/2", "7")


def test_arpos_training_set(shared_data: Path) -> None:
    path = str(shared_data / "arpo" / "train_10k.parquet")
    math, search = VerlMathEnv(path=path, tools=()), VerlSearchEnv(path=path, tools=())
    # Of 5,000 rows each, one of mathematics has no answer and a handful have prose or a list of letters.
    assert search.num_tasks == 5000
    assert math.num_tasks is not None and 4980 <= math.num_tasks <= 4999
    assert search.task(0).answer == "Chattahoochee National Forest"
    assert math.task(0).answer == "3\\sqrt{3} - 6"
    for env, part in ((math, "correct"), (search, "exact_match")):
        for index in range(0, 4980, 25):
            env.reset(options={"index": index})
            (step,) = env.current_task.solution
            info = env.step(env.render_step(step))[-1]
            assert info[f"reward/{part}"] == 1.0, env.current_task  # the reference answer is right


def test_arpos_questions_with_a_real_corpus(shared_data: Path) -> None:
    env = VerlSearchEnv(
        path=str(shared_data / "arpo" / "train_10k.parquet"), corpus=str(shared_data / "wiki2" / "corpus.json")
    )
    check_tool_env(env, episodes=5)
