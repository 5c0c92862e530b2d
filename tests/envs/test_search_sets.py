"""2WikiMultihopQA, MuSiQue, Bamboogle and WebWalkerQA: their layouts, what they search in, and their scores."""

import json
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from forkgym.envs.base import ToolEnv
from forkgym.envs.question_sets import question_taskset, rows_where
from forkgym.envs.search_sets import (
    BAMBOOGLE,
    MAX_LINKS,
    MUSIQUE,
    TWO_WIKI,
    WEBWALKERQA,
    BamboogleEnv,
    MuSiQueEnv,
    MuSiQueRow,
    TwoWikiEnv,
    WebWalkerQAEnv,
    words_apart,
)
from forkgym.envs.sources import DataError, LazyRows
from forkgym.envs.tasks import SolutionStep, StopReason
from tests.envs.small_sets import BAMBOOGLE_ROWS, MUSIQUE_ROWS, TWO_WIKI_ROWS, WEBWALKERQA_ROWS

MakeEnv = Callable[..., gym.Env[str, str]]


def write(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def played(env: ToolEnv, index: int) -> dict[str, Any]:
    """Take the steps of a task's solution; returns the last ``info``."""
    env.reset(options={"index": index})
    info: dict[str, Any] = {}
    for step in env.current_task.solution:
        *_, info = env.step(env.render_step(step))
    return info


# 2WikiMultihopQA.


def as_in_its_own_files(row: dict[str, Any]) -> dict[str, Any]:
    context, facts = row["context"], row["supporting_facts"]
    return {
        **row,
        "context": [list(pair) for pair in zip(context["title"], context["sentences"], strict=True)],
        "supporting_facts": [list(pair) for pair in zip(facts["title"], facts["sent_id"], strict=True)],
    }


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    own = as_in_its_own_files(row)
    return {**own, **{name: json.dumps(own[name]) for name in ("context", "supporting_facts", "evidences")}}


@pytest.mark.parametrize("layout", [dict, as_in_its_own_files, as_json])
def test_two_wiki_in_the_layouts_that_are_about(tmp_path: Path, layout: Callable[[Any], Any]) -> None:
    path = write(tmp_path / "rows.json", [layout(row) for row in TWO_WIKI_ROWS])
    task = question_taskset(TWO_WIKI, "train", path)[0]
    assert (task.uid, task.answer) == ("2wikimultihopqa/train/0", "Oda Wren")
    assert task.solution == (
        SolutionStep("Salt Lanterns", tool="search"),
        SolutionStep("Piet Wren", tool="search"),
        SolutionStep("Oda Wren"),
    )
    env = TwoWikiEnv(path=path, top_k=1)
    env.reset(options={"index": 1})
    # The sentences come without spaces around them. The paragraph is in both rows and once in the index.
    observation, *_ = env.step("<search>Salt Lanterns</search>")
    assert observation == (
        "<result>Salt Lanterns: Salt Lanterns is a 1961 film. It was directed by Piet Wren.</result>"
    )
    assert [passage.title for passage in env.questions.index.passages] == [
        "Salt Lanterns",
        "Piet Wren",
        "Oda Wren",
        "Blue Ferry",
    ]
    assert played(env, 0)["accuracy"] == played(env, 1)["accuracy"] == 1.0


def test_two_wiki_refuses_what_is_no_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [{**TWO_WIKI_ROWS[0], "context": "[["}])
    with pytest.raises(DataError, match=r"row 0: context: .*found '\[\['"):
        TwoWikiEnv(path=path)


# MuSiQue.


def test_musique_searches_hop_by_hop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        taskset = question_taskset(MUSIQUE, path=write(tmp_path / "rows.json", MUSIQUE_ROWS))
    assert taskset.size == 1
    assert [record.message for record in caplog.records] == [
        "musique/validation: left out 1 of 2 rows, which are not answerable"
    ]
    task = taskset[0]
    assert [step.argument for step in task.solution] == ["Amber Days", "Lena Okoro", "Tom Vale"]
    assert task.metadata == {
        "answers": ["Tom Vale", "Thomas Vale", "T. Vale"],
        "hops": 2,
        "supporting_titles": ["Amber Days", "Lena Okoro"],
    }
    # Of the row that is left out, nothing is searched.
    assert [passage.title for passage in taskset.paragraphs] == ["Lena Okoro", "Grey Heron", "Amber Days"]


def test_musique_accepts_aliases(tmp_path: Path) -> None:
    env = MuSiQueEnv(path=write(tmp_path / "rows.json", MUSIQUE_ROWS))
    for answer, reward in (("Tom Vale", 1.0), ("thomas vale.", 1.0), ("T Vale", 1.0), ("Vale", 0.0)):
        env.reset(options={"index": 0})
        assert env.step(f"<answer>{answer}</answer>")[1] == reward
    assert played(env, 0)["accuracy"] == 1.0


def table_of(rows: list[dict[str, Any]]) -> Sequence[Any]:
    return cast(Sequence[Any], Dataset.from_list(rows))


def test_of_a_table_only_the_column_is_read_that_says_what_is_kept() -> None:
    broken = {**MUSIQUE_ROWS[1], "answer": None}  # no record could be made of it
    rows = LazyRows(table_of([*MUSIQUE_ROWS, broken, MUSIQUE_ROWS[0]]), MuSiQueRow, "test")
    kept = rows_where(rows, "answerable")
    assert [row.answer for row in kept] == [["Tom Vale"], ["Tom Vale"]]
    assert rows_where(kept, "answerable") is kept
    without = LazyRows(table_of([{"question": "q", "answer": "a"}]), MuSiQueRow, "test")
    assert rows_where(without, "answerable") is without


# Bamboogle.


def test_bamboogle_needs_a_corpus(tmp_path: Path, corpus_file: Path) -> None:
    path = write(tmp_path / "rows.json", BAMBOOGLE_ROWS)
    with pytest.raises(DataError, match="bamboogle/test: no row has paragraphs to search in; expected a corpus"):
        BamboogleEnv(path=path)
    env = BamboogleEnv(path=path, corpus=str(corpus_file))
    _, info = env.reset(options={"index": 0})
    assert info["task_uid"] == "bamboogle/test/0"
    assert env.step("<search>president of Ferrol</search>")[0].startswith("<result>Ivo Marsh: ")
    assert env.step("<answer>Ivo Marsh</answer>")[1] == 1.0


def write_parquet(path: Path, row: dict[str, str]) -> None:
    pq.write_table(cast(Any, pa.Table.from_pylist([row])), path)


@pytest.mark.parametrize("names", [("Question", "Answer"), ("question", "answer")])
def test_bamboogle_with_either_kind_of_letters(tmp_path: Path, names: tuple[str, str]) -> None:
    write_parquet(tmp_path / "rows.parquet", dict(zip(names, ("Who?", "Ivo Marsh"), strict=True)))
    assert question_taskset(BAMBOOGLE, path=str(tmp_path / "rows.parquet"))[0].answer == "Ivo Marsh"


def test_a_missing_column_is_named_with_its_other_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", {"Question": "Who?"})
    with pytest.raises(DataError, match=r"no column 'Answer' .*; expected the columns Question or question, Answer or"):
        BamboogleEnv(path=str(tmp_path / "rows.parquet"))


# WebWalkerQA.


def test_webwalkerqa_starts_at_a_page(tmp_path: Path) -> None:
    task = question_taskset(WEBWALKERQA, path=write(tmp_path / "rows.json", WEBWALKERQA_ROWS))[0]
    assert task.uid == "webwalkerqa/main/0"
    assert task.question == (
        "When is the deadline for papers, and where is the conference?\nStart from https://conference.example/"
    )
    assert task.metadata["info"]["golden_path"] == ["root->calls", "root->venue"]


def test_the_usual_names_of_splits_are_known(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", WEBWALKERQA_ROWS)
    names = {split: question_taskset(WEBWALKERQA, split, path).split for split in ("train", "test", "main", "silver")}
    assert names == {"train": "silver", "test": "main", "main": "main", "silver": "silver"}


def test_webwalkerqa_pays_for_words(tmp_path: Path) -> None:
    env = WebWalkerQAEnv(path=write(tmp_path / "rows.json", WEBWALKERQA_ROWS), tools=())
    env.reset(options={"index": 0})
    # Without articles the reference has 9 words: deadline is march 21 and conference is in vienna. All 3 of the answer
    # are among them: precision 1, recall 3/9, F1 = 2 * 1/3 / (4/3) = 1/2.
    _, reward, _, _, info = env.step("<answer>March 21, Vienna</answer>")
    assert reward == info["reward/f1"] == pytest.approx(1 / 2)
    assert info["accuracy"] == info["reward/exact_match"] == 0.0


def test_characters_count_as_words_where_no_spaces_are_written(tmp_path: Path) -> None:
    env = WebWalkerQAEnv(path=write(tmp_path / "rows.json", WEBWALKERQA_ROWS), tools=())
    env.reset(options={"index": 1})
    # The reference has 11 words, 截 止 日 期 是 2025 年 3 月 21 日; the answer has the last 6 of them: precision 1,
    # recall 6/11, F1 = 2 * 6/11 / (17/11) = 12/17.
    assert env.step("<answer>2025年3月21日</answer>")[1] == pytest.approx(12 / 17)
    env.reset(options={"index": 1})
    assert env.step("<answer>截止日期是2025年3月21日</answer>")[1] == 1.0
    assert words_apart("ends 3. May") == "ends 3. May"


# What is searched in.


ENCODER = '''
def encode(texts):
    """How often each of three letters occurs."""
    return [[float(text.lower().count(letter)) for letter in "xyz"] for text in texts]
'''


def test_dense_retrieval_over_the_questions_own_paragraphs(tmp_path: Path) -> None:
    encoder = tmp_path / "letters.py"
    encoder.write_text(ENCODER, encoding="utf-8")
    path = write(tmp_path / "rows.json", TWO_WIKI_ROWS)
    one, other = (TwoWikiEnv(path=path, retriever=f"dense:{encoder}:encode", top_k=k) for k in (1, 2))
    one.reset(options={"index": 0})
    # Blue Ferry alone has a y: two, with its title's. By words, nothing would be found.
    assert one.step("<search>yyy</search>")[0].startswith("<result>Blue Ferry: ")
    assert TwoWikiEnv(path=path).tools["search"].inline
    assert not one.tools["search"].inline
    assert one.questions.retriever(one.retriever) is other.questions.retriever(other.retriever)


@pytest.mark.parametrize("corpus", [None, "there"])
def test_an_unknown_retriever_is_refused(tmp_path: Path, corpus_file: Path, corpus: str | None) -> None:
    path = write(tmp_path / "rows.json", TWO_WIKI_ROWS)
    with pytest.raises(DataError, match="unknown retriever 'bm26'; expected"):
        TwoWikiEnv(path=path, retriever="bm26", corpus=None if corpus is None else str(corpus_file))


class Librarian(BaseHTTPRequestHandler):
    """A search server that knows one passage."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [{"document": {"id": "7", "contents": '"Ivo Marsh"\nHe lives in Port Ash.'}, "score": 1.0}]
        reply = json.dumps({"result": [found for _ in body["queries"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def search_server() -> Generator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Librarian) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/retrieve"
        finally:
            server.shutdown()
            thread.join()


def test_a_corpus_may_be_a_search_server(tmp_path: Path) -> None:
    with search_server() as url:
        env = BamboogleEnv(path=write(tmp_path / "rows.json", BAMBOOGLE_ROWS), corpus=url)
        assert not env.inline
        env.reset(options={"index": 0})
        assert env.step("<search>Marsh</search>")[0] == "<result>Ivo Marsh: He lives in Port Ash.</result>"


def test_an_episode_without_its_server_is_not_the_policys_failure(tmp_path: Path) -> None:
    with search_server() as url:
        pass  # it is gone
    env = BamboogleEnv(path=write(tmp_path / "rows.json", BAMBOOGLE_ROWS), corpus=url)
    env.reset(options={"index": 0})
    _, reward, terminated, truncated, info = env.step("<search>Marsh</search>")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["stop_reason"] == StopReason.TOOL_FAILURE.value


def test_tools_that_are_not_asked_for_need_nothing(tmp_path: Path) -> None:
    env = BamboogleEnv(path=write(tmp_path / "rows.json", BAMBOOGLE_ROWS), tools=["calculator"])
    assert env.tool_names == ("calculator",)


def test_webwalkerqa_searches_and_visits(make_env: MakeEnv) -> None:
    env = make_env("forkgym/WebWalkerQA-v0").unwrapped
    assert isinstance(env, WebWalkerQAEnv)
    assert (env.tool_names, env.max_turns) == (("search", "visit"), 12)
    env.reset(options={"index": 0})
    assert env.step("<search>Grey Heron</search>")[0] == "<result>Grey Heron: Grey Heron is a river boat.</result>"
    observation, _, terminated, truncated, info = env.step("<visit>http://127.0.0.1:9/</visit>")
    assert observation.startswith("<result>Error: ")  # an address of this machine
    assert (terminated, truncated, info["tool_calls"]) == (False, False, 2.0)
    session: Any = env.tools["visit"].new_session()
    assert session.function.__self__.max_links == MAX_LINKS  # to walk from page to page


def test_visits_alone_need_no_corpus(tmp_path: Path) -> None:
    env = WebWalkerQAEnv(path=write(tmp_path / "rows.json", WEBWALKERQA_ROWS), tools=["visit"])
    assert env.tool_names == ("visit",)
