"""Corpora: the layouts, and one clear line for each thing that can be wrong with a file."""

import gzip
import json
from pathlib import Path

import pytest

from forkgym.tools.passages import Passage, context_passages, load_passages, read_passages

CONTEXT = {"title": ["Ayr", "Bly"], "sentences": [["One.", " Two."], ["Three."]]}


def written(folder: Path, text: str, name: str = "corpus.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_search_r1_lines(tmp_path: Path) -> None:
    rows = [
        {"id": "0", "contents": '"Evan Morris"\nEvan L. Morris was a lobbyist.\nHe wrote "A".'},
        {"id": "1", "contents": "Bare title\nText"},
        {"id": "2", "contents": "Only a title"},
    ]
    path = written(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n", "corpus.jsonl")
    assert load_passages(path) == [
        Passage("Evan Morris", 'Evan L. Morris was a lobbyist.\nHe wrote "A".', id="0"),
        Passage("Bare title", "Text", id="1"),
        Passage("Only a title", "", id="2"),
    ]


def test_only_quotes_around_the_whole_title_are_search_r1s(tmp_path: Path) -> None:
    lines = {'"Heroes" (album)': '"Heroes" (album)', '""Heroes" (album)"': '"Heroes" (album)', 'Say "Yes"': 'Say "Yes"'}
    lines |= {'""': "", '"': '"', '"""': '"', ' "Ayr" ': "Ayr"}
    for line, title in lines.items():
        path = written(tmp_path, json.dumps([{"contents": f"{line}\ntext"}]))
        assert load_passages(path) == [Passage(title, "text")]


def test_title_and_text_in_a_list_or_in_lines(tmp_path: Path) -> None:
    rows = [{"title": "Ayr", "text": "A town."}, {"title": "Blý", "text": "A river. 🌊", "more": [1]}]
    expected = [Passage("Ayr", "A town."), Passage("Blý", "A river. 🌊")]
    assert load_passages(written(tmp_path, "\n " + json.dumps(rows, indent=1))) == expected
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert load_passages(str(written(tmp_path, lines))) == expected


def test_hotpotqa_rows_with_each_paragraph_once(tmp_path: Path) -> None:
    other = {"title": ["Bly", "Bly"], "sentences": [["Three."], ["Another."]]}
    path = written(tmp_path, json.dumps([{"question": "?", "context": CONTEXT}, {"question": "?", "context": other}]))
    assert load_passages(path) == [Passage("Ayr", "One. Two."), Passage("Bly", "Three."), Passage("Bly", "Another.")]


def test_pairs_of_a_title_and_its_sentences(tmp_path: Path) -> None:
    # As in HotpotQA's and 2WikiMultihopQA's own files, where the id is the question's.
    bly: list[str | list[str]] = ["Bly", []]
    rows: list[dict[str, object]] = [
        {"_id": "q1", "context": [["Ayr", ["One.", " Two."]], bly]},
        {"_id": "q2", "context": []},
    ]
    assert load_passages(written(tmp_path, json.dumps(rows))) == [Passage("Ayr", "One. Two."), Passage("Bly", "")]


def test_ids(tmp_path: Path) -> None:
    rows = [{"id": 7, "title": "A", "text": ""}, {"_id": "b", "title": "B", "text": ""}, {"title": "C", "text": ""}]
    rows += [{"id": [1], "title": "D", "text": ""}, {"id": None, "title": "E", "text": ""}]
    found = load_passages(written(tmp_path, json.dumps(rows)))
    assert [passage.id for passage in found] == ["7", "b", "", "", ""]


def test_of_equal_passages_the_first_is_kept_whatever_their_ids(tmp_path: Path) -> None:
    rows = [{"id": str(number), "title": title, "text": "x"} for number, title in enumerate(["A", "B", "A"])]
    assert load_passages(written(tmp_path, json.dumps(rows))) == [Passage("A", "x", "0"), Passage("B", "x", "1")]
    # The border of title and text counts.
    rows = [{"title": "a", "text": "bc"}, {"title": "ab", "text": "c"}]
    assert len(load_passages(written(tmp_path, json.dumps(rows)))) == 2


def test_packed_files(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    packed = gzip.compress('{"title": "Ayr", "text": "Ç"}\n{"title": "Bly", "text": "x"}\n'.encode())
    path.write_bytes(packed)
    assert load_passages(path) == [Passage("Ayr", "Ç"), Passage("Bly", "x")]
    for broken in (packed[:-9], b"no archive", packed[:20] + b"\xff" * 10 + packed[30:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"^corpus .*corpus\.jsonl\.gz: "):
            load_passages(path)


def test_passages_are_read_one_by_one(tmp_path: Path) -> None:
    path = written(tmp_path, '{"title": "Ayr", "text": "A"}\nnot json')
    passages = read_passages(path)
    assert next(passages) == Passage("Ayr", "A")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        next(passages)


def test_context_columns_must_fit() -> None:
    assert context_passages(["Ayr"], [["One.", " Two."]]) == [Passage("Ayr", "One. Two.")]
    with pytest.raises(ValueError, match="found 2 titles and 1 lists of sentences"):
        context_passages(["Ayr", "Bly"], [["One."]])


# The text of a file, and what the error must name.
MALFORMED = [
    ("", ["found no passages", "expected 'contents'"]),
    ("[]", ["found no passages"]),
    ('[{"title": "Ayr", "text": "A"}, {"title": "Bly"}]', ["row 2", "{'title': 'Bly'}", "expected 'contents'"]),
    ('{"title": "Ayr", "text": "A"}\n\n{"title": 5, "text": "A"}', ["line 3", "'title': 5", "expected 'contents'"]),
    ('{"contents": null}', ["line 1", "{'contents': None}"]),
    ('{"context": {"title": ["Ayr"], "sentences": ["One."]}}', ["line 1", "'sentences': ['One.']"]),
    ('{"context": {"title": ["Ayr"], "sentences": []}}', ["line 1", "found 1 titles and 0 lists of sentences"]),
    ('{"context": [["Ayr", ["One."], 3]]}', ["line 1", "expected 'contents'"]),
    ('{"context": [["Ayr", "One."]]}', ["line 1", "expected 'contents'"]),
    ('{"id": "\\udc00", "contents": "A"}', ["line 1", "half a surrogate pair in 'A'"]),
    ("[1]", ["row 1", "found 1;"]),
    ('"text"', ["line 1", "found 'text'"]),
    ("[{]", ["Expecting property name"]),
    ('{"title": "Ayr", "text": "A"}\nnot json', ["line 2 is not JSON", "Expecting value"]),
    ("[" * 100_000, ["recursion"]),
    ('{"title": "Ayr", "text": "\\ud83d"}', ["line 1", "half a surrogate pair in 'Ayr'"]),
    ('{"title": "\\udc00", "text": ""}', ["line 1", "half a surrogate pair in '\\udc00'"]),
]


@pytest.mark.parametrize(("text", "named"), MALFORMED)
def test_malformed_files(tmp_path: Path, text: str, named: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match="^corpus ") as caught:
        load_passages(path)
    message = str(caught.value)
    assert str(path) in message
    assert all(part in message for part in named), message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 500
    message.encode()  # a terminal takes it


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_bytes(b'[{"title": "Ayr", "text": "\xff"}]')
    with pytest.raises(ValueError, match=r"corpus .*corpus\.json: 'utf-8' codec can't decode byte 0xff"):
        load_passages(path)


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"corpus {path}: no such file; expected JSON"):
            load_passages(path)


def test_real_corpora(shared_data: Path) -> None:
    wiki = load_passages(shared_data / "wiki2" / "corpus.json")
    assert len(wiki) == 6_119
    assert wiki[0].title == "Teutberga"
    hotpot = load_passages(shared_data / "hotpotqa" / "dev_distractor_100.json")
    assert len(hotpot) == 991
    assert hotpot[0].title == "Ed Wood (film)"
    assert hotpot[0].text.startswith("Ed Wood is a 1994 American biographical period comedy-drama film directed")
