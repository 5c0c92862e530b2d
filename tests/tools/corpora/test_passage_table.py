"""Passages in mapped files."""

from pathlib import Path

import numpy as np
import pytest

from forkgym.tools.corpora.passage_table import PassageTable, write_passages
from forkgym.tools.passages import Passage

PASSAGES = [Passage("Ayr", "A town.", "7"), Passage("", "", ""), Passage("Çolak", "a\nb\0\U0001f30a")]


def test_a_table_is_a_sequence_of_its_passages(tmp_path: Path) -> None:
    write_passages(iter(PASSAGES), tmp_path)
    table = PassageTable(tmp_path)
    assert len(table) == 3
    assert list(table) == PASSAGES
    assert (table[-1], table[0]) == (PASSAGES[2], PASSAGES[0])
    assert table[1:] == PASSAGES[1:]
    assert table[::-2] == PASSAGES[::-2]
    for index in (3, -4):
        with pytest.raises(IndexError):
            table[index]


def test_an_empty_table(tmp_path: Path) -> None:
    write_passages([], tmp_path)
    assert list(PassageTable(tmp_path)) == []


def test_files_of_something_else(tmp_path: Path) -> None:
    write_passages(PASSAGES, tmp_path)
    offsets = np.load(tmp_path / "passages.offsets.npy")
    np.save(tmp_path / "passages.offsets.npy", offsets[1:])
    with pytest.raises(ValueError, match="has 8 strings, expected 3 for each passage"):
        PassageTable(tmp_path)
