"""Loading rows, and what is said where they cannot be loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
from pydantic import BaseModel

from forkgym.envs.sources import DataError, LazyRows, Source, load_rows

ROWS = [{"question": "one", "number": 1}, {"question": "two", "number": 2}]


class Row(BaseModel):
    question: str
    number: int


def source(path: Path | str | None, split: str = "test") -> Source:
    return Source(hub="owner/data", config="main", split=split, path=None if path is None else str(path))


def refusal(where: Source) -> str:
    """The one line that says why there are no rows."""
    with pytest.raises(DataError) as caught:
        load_rows(where, Row)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what ``datasets`` copies out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")  # a byte order mark, a blank line
    return path


def write_json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


def write_folder(folder: Path) -> Path:
    inner = folder / "data"
    inner.mkdir()
    (inner / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (inner / "train.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-8")
    return inner


@pytest.mark.parametrize("write", [write_jsonl, write_json, write_parquet, write_folder])
def test_each_kind_of_local_data_gives_the_same_rows(write: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = load_rows(source(write(tmp_path)), Row)
    assert list(rows) == [Row(question="one", number=1), Row(question="two", number=2)]
    assert rows[-1] == Row(question="two", number=2)
    assert list(rows[1:]) == [Row(question="two", number=2)]


@pytest.mark.parametrize(
    ("path", "name", "config"),
    [(None, "owner/data", "main"), ("owner/data", "owner/data", "main"), ("o/d", "o/d", None), ("o/d:c", "o/d", "c")],
)
def test_the_hub_is_asked_for_a_name_a_configuration_and_a_split(
    monkeypatch: pytest.MonkeyPatch, path: str | None, name: str, config: str | None
) -> None:
    asked: list[dict[str, Any]] = []

    def load_dataset(**arguments: Any) -> datasets.Dataset:
        asked.append(arguments)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows(source(path, split="validation"), Row)
    assert asked == [{"path": name, "name": config, "split": "validation"}]
    assert isinstance(rows, LazyRows)
    assert [row.number for row in rows] == [1, 2]


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(**arguments: Any) -> datasets.Dataset:
        raise ConnectionError(f"Couldn't reach\n{arguments['path']!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(source(None))
    assert "owner/data, split 'test', on the Hugging Face hub" in message
    assert "Couldn't reach 'owner/data' on the Hub" in message


@pytest.mark.parametrize("path", ["no/such/file.jsonl", "nothing", "./here", "folder/rows.csv", "a/b/c", ""])
def test_no_such_file(path: str) -> None:
    message = refusal(source(path))
    assert message.startswith(f"{path!r}: no such file")
    assert ".jsonl" in message


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,number\n", encoding="utf-8")
    assert "'.csv'" in refusal(source(path))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("rows.jsonl", b'{"question": "one", "number": 1}\n{"question":\n', ["line 2", "Invalid JSON"]),
        ("rows.jsonl", b'{"question": "one", "number": 1}\n\n{"number": 2}\n', ["line 3", "question", "required"]),
        ("rows.jsonl", b'{"question": 7, "number": 1}\n', ["line 1", "question", "string", "7", "question, number"]),
        ("rows.jsonl", b"[1]\n", ["line 1", "object"]),
        ("rows.jsonl", b'{"question": "\xff", "number": 1}\n', ["line 1"]),
        ("rows.jsonl", b'{"question": "\\ud800", "number": 1}\n', ["line 1"]),
        ("rows.jsonl", b"", ["empty"]),
        ("rows.jsonl", b"\n \n", ["empty"]),
        ("rows.json", b"[]", ["empty"]),
        ("rows.json", b"[", ["Invalid JSON"]),
        ("rows.json", b"\xff", ["Invalid JSON"]),
        ("rows.json", b"[" * 100_000, ["Invalid JSON"]),
        ("rows.json", b'{"question": "one"}', ["valid array", "list of rows"]),
        ("rows.json", b'[{"question": "one", "number": 1}, {"question": "two"}]', ["row 1", "number", "required"]),
        ("rows.json", b'[{"question": "\\ud800", "number": 1}]', ["Invalid JSON", "hex escape"]),
        ("rows.parquet", b"no parquet", ["rows.parquet", "cannot be loaded"]),
    ],
)
def test_malformed_file(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(source(path))
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.mkdir()
    assert "rows.jsonl: cannot be read" in refusal(source(path))


def test_unknown_split_of_a_folder(tmp_path: Path) -> None:
    message = refusal(source(write_folder(tmp_path), split="dev"))
    assert "split 'dev'" in message
    assert "train" in message


def test_table_without_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"question": "one", "value": 1}]).to_parquet(path)
    assert "no column 'number' among ['question', 'value']" in refusal(source(path))


def test_table_with_a_column_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"question": "one", "number": "many"}]).to_parquet(path)
    message = refusal(source(path))
    assert "row 0: number" in message
    assert "'many'" in message


def test_bad_row_further_down_a_local_table_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([*ROWS, {"question": None, "number": 3}]).to_parquet(path)
    with pytest.raises(DataError, match=r"row 2: question: .*None"):
        load_rows(source(path), Row)


def test_bad_row_of_a_hub_table_is_named_when_it_is_read() -> None:
    table = datasets.Dataset.from_list([*ROWS, {"question": None, "number": 3}])
    rows = LazyRows(cast("Any", table), Row, "the hub")
    assert rows[1].number == 2
    with pytest.raises(DataError, match=r"the hub, row 2: question: .*None"):
        rows[2]


def test_version_follows_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path)
    before = source(path).version()
    path.write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert source(path).version() != before
    assert source(path).version() == source(path).version()
    assert source(None).version() is None
    assert source(tmp_path).version() is None
