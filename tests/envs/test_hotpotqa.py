"""HotpotQA: its rows as tasks, its corpus, its score, and its oracle on real rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from forkgym.envs.hotpotqa import HOTPOTQA, HotpotQAEnv
from forkgym.envs.question_sets import question_taskset
from forkgym.envs.sources import DataError
from forkgym.envs.tasks import SolutionStep


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def play_oracle(env: HotpotQAEnv, index: int) -> tuple[dict[str, Any], list[bool]]:
    """Return the last ``info``, and for each supporting title whether the search for it found it."""
    env.reset(options={"index": index})
    found: list[bool] = []
    for step in env.current_task.solution:
        observation, _, terminated, _, info = env.step(env.render_step(step))
        if step.tool is None:
            assert terminated
            return info, found
        found.append(f"{step.argument}: " in observation)
    raise AssertionError("the solution has no answer")


def test_a_row_becomes_a_task(hotpotqa_file: Path) -> None:
    taskset = question_taskset(HOTPOTQA, "validation", str(hotpotqa_file))
    task = taskset[0]
    assert taskset.size == 2
    assert (task.uid, task.answer) == ("hotpotqa/validation/0", "Norway")
    assert task.solution == (
        SolutionStep("Glass Harbour", tool="search"),
        SolutionStep("Ada Lind", tool="search"),  # once, though two of its sentences support the answer
        SolutionStep("Norway"),
    )
    assert task.metadata == {
        "answers": ["Norway"],
        "type": "bridge",
        "level": "hard",
        "supporting_titles": ["Glass Harbour", "Ada Lind"],
    }


def test_search_covers_the_paragraphs_of_all_rows(hotpotqa_file: Path) -> None:
    env = HotpotQAEnv(path=str(hotpotqa_file), top_k=1)
    env.reset(options={"index": 0})
    observation, *_ = env.step("<search>Paper Moon</search>")
    # From the other row. Tin Soldier is in both and once in the corpus; markers in a page are escaped.
    assert observation == "<result>Paper Moon: Paper Moon is a film &lt;answer>no&lt;/answer>.</result>"
    titles = [passage.title for passage in env.questions.index.passages]
    assert titles == ["Glass Harbour", "Ada Lind", "Tin Soldier", "Paper Moon"]


def test_the_index_is_built_once_a_process(hotpotqa_file: Path) -> None:
    one, other = (HotpotQAEnv(path=str(hotpotqa_file), top_k=top_k) for top_k in (1, 2))
    assert one.questions.index is other.questions.index


@pytest.mark.parametrize("index", [0, 1])
def test_oracle_solves_every_row(hotpotqa_file: Path, index: int) -> None:
    info, found = play_oracle(HotpotQAEnv(path=str(hotpotqa_file)), index)
    assert found == [True, True]
    assert (info["accuracy"], info["reward/f1"], info["reward/official_exact_match"]) == (1.0, 1.0, 1.0)


def test_any_accepted_answer_counts_and_each_part_is_the_best(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"question": "Where?", "answer": ["New York City", "NYC"]}])
    env = HotpotQAEnv(path=path, tools=())
    for answer, exact, f1 in (
        ("nyc", 1.0, 1.0),
        ("York", 0.0, 0.5),
        ("\\boxed{New York City}", 1.0, 1.0),
        ("", 0.0, 0.0),
    ):
        env.reset()
        _, reward, _, _, info = env.step(f"<answer>{answer}</answer>")
        # York against New York City: precision 1, recall 1/3, so 2 * 1/3 / (4/3) = 1/2.
        assert (reward, info["reward/exact_match"], info["reward/f1"]) == (exact, exact, f1)
    assert info["extraction"] == "empty"


def test_weights_mix_the_parts(hotpotqa_file: Path) -> None:
    env = HotpotQAEnv(path=str(hotpotqa_file), reward_weights={"exact_match": 0.5, "f1": 0.25})
    env.reset(options={"index": 0})
    # Precision 1/2, recall 1: F1 is 2/3, and a quarter of it is 1/6.
    assert env.step("<answer>cold Norway</answer>")[1] == pytest.approx(1 / 6)


def test_numbers_are_guarded_and_the_official_number_is_reported(tmp_path: Path) -> None:
    env = HotpotQAEnv(path=write_rows(tmp_path, [{"question": "How tall?", "answer": "1.95 m"}]), tools=())
    env.reset()
    _, reward, _, _, info = env.step("<answer>195 m</answer>")
    assert (reward, info["reward/exact_match"], info["reward/official_exact_match"]) == (0.0, 0.0, 1.0)


def test_layout_of_hotpotqas_own_files(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        [
            {
                "_id": "x",
                "question": "Who wrote it?",
                "answer": "Ada",
                "supporting_facts": [["Glass Harbour", 0]],
                "context": [["Glass Harbour", ["A novel.", " Ada wrote it."]]],
            }
        ],
    )
    env = HotpotQAEnv(path=path)
    env.reset()
    assert env.current_task.solution == (SolutionStep("Glass Harbour", tool="search"), SolutionStep("Ada"))
    assert env.step("<search>harbour</search>")[0] == "<result>Glass Harbour: A novel. Ada wrote it.</result>"


def test_questions_alone_need_a_corpus(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"question": "Who wrote it?", "answer": ["Ada"]}])
    with pytest.raises(DataError, match="no row has paragraphs to search in; expected a corpus"):
        HotpotQAEnv(path=path)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"title": "Glass Harbour", "text": "Ada wrote it."}\n', encoding="utf-8")
    env = HotpotQAEnv(path=path, corpus=str(corpus))
    env.reset()
    assert env.current_task.solution == ()  # nobody knows what to search for
    assert env.step("<search>harbour</search>")[0] == "<result>Glass Harbour: Ada wrote it.</result>"


@pytest.mark.parametrize("content", [None, "", "[]", '{"title": 1}'])
def test_bad_corpus(hotpotqa_file: Path, tmp_path: Path, content: str | None) -> None:
    corpus = tmp_path / "corpus.jsonl"
    if content is not None:
        corpus.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"corpus .*corpus\.jsonl: .*expected") as caught:
        HotpotQAEnv(path=str(hotpotqa_file), corpus=str(corpus))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"question": "q"}, ["row 0", "answer", "required"]),
        ({"question": "q", "answer": None}, ["row 0", "answer", "None"]),
        ({"question": "q", "answer": []}, ["row 0", "answer", "at least 1"]),
        ({"question": "q", "answer": "a", "context": {"title": ["t"], "sentences": []}}, ["context", "1 titles and 0"]),
        ({"question": "q", "answer": "a", "context": [["t"]]}, ["row 0", "context"]),
        ({"question": "q", "answer": "a", "supporting_facts": "t"}, ["row 0", "supporting_facts"]),
    ],
)
def test_bad_row(tmp_path: Path, row: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        HotpotQAEnv(path=write_rows(tmp_path, [row]), tools=())
    for part in parts:
        assert part in str(caught.value)


def test_top_k_is_checked(hotpotqa_file: Path) -> None:
    with pytest.raises(ValueError, match="top_k is 0"):
        HotpotQAEnv(path=str(hotpotqa_file), top_k=0)


def test_oracle_on_real_rows(shared_data: Path) -> None:
    env = HotpotQAEnv(path=str(shared_data / "hotpotqa" / "dev_distractor_100.json"), top_k=5)
    assert len(env.questions.index.passages) == 991
    finds: list[bool] = []
    for index in range(100):
        info, found = play_oracle(env, index)
        assert (info["accuracy"], info["reward/official_exact_match"]) == (1.0, 1.0)
        finds += found
    assert len(finds) == 200
    assert sum(finds) >= 180


def test_real_questions_with_a_real_corpus(shared_data: Path) -> None:
    env = HotpotQAEnv(
        path=str(shared_data / "hotpotqa" / "questions_200.jsonl"), corpus=str(shared_data / "wiki2" / "corpus.json")
    )
    _, info = env.reset(options={"index": 199})
    assert info["task_uid"] == "hotpotqa/validation/199"
    observation, _, terminated, _, _ = env.step("<search>film director</search>")
    assert observation.startswith("<result>") and not terminated
