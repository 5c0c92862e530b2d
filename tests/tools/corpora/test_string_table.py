"""Tables of strings in mapped files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.corpora.string_table import StringTable, write_strings


def test_the_files(tmp_path: Path) -> None:
    write_strings(tmp_path, "titles", ["Ayr", "", "Zoë"])
    assert (tmp_path / "titles.utf8").read_bytes() == b"AyrZo\xc3\xab"
    assert np.load(tmp_path / "titles.offsets.npy").tolist() == [0, 3, 3, 7]
    table = StringTable(tmp_path, "titles")
    assert (len(table), table[0], table[1], table[2]) == (3, "Ayr", "", "Zoë")
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"string {index} of 3"):
            table[index]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_strings(tmp_path_factory: pytest.TempPathFactory, strings: list[str]) -> None:
    folder = tmp_path_factory.mktemp("table")
    write_strings(folder, "any", iter(strings))
    table = StringTable(folder, "any")
    assert [table[index] for index in range(len(table))] == strings


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_strings(tmp_path, "titles", ["Ayr"])
    for offsets in (np.array([0, 2]), np.zeros(0, np.int64), np.array([0.0, 3.0])):
        np.save(tmp_path / "titles.offsets.npy", offsets)
        with pytest.raises(ValueError, match=r"titles\.utf8 has 3 bytes, and its offsets do not end there"):
            StringTable(tmp_path, "titles")


def test_half_a_surrogate_pair_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_strings(tmp_path, "titles", ["\ud83d"])
