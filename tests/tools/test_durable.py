"""Files and folders are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from forkgym.tools.durable import discard_folder, make_folder, sync_tree, write_text


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode of everything that is pushed to the disk, in order."""
    inodes: list[int] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return inodes


def inode(path: Path) -> int:
    return path.stat()[stat.ST_INO]


def test_a_text_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def checked(source: Path, target: Path) -> None:
        assert source.read_text(encoding="utf-8") == "new é\n"
        assert synced == [inode(source)]
        assert target.read_text(encoding="utf-8") == "old"
        replace(source, target)

    path = tmp_path / "text"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", checked)
    write_text(path, "new é\n")
    assert path.read_bytes() == b"new \xc3\xa9\n"
    assert synced[1:] == [inode(tmp_path)]
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_is_interrupted_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "text"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["text"]


def test_the_names_of_new_folders_are_pushed_to_the_disk(tmp_path: Path, synced: list[int]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [inode(tmp_path), inode(tmp_path / "a")]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(FileExistsError):
            make_folder(folder)


def test_a_tree_is_pushed_with_all_that_is_in_it(tmp_path: Path, synced: list[int]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    (tmp_path / "c").touch()
    sync_tree(tmp_path)
    assert set(synced) == {inode(tmp_path / name) for name in ("", "a", "a/b", "c")}


def test_a_folder_that_is_half_removed_has_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "b").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            discard_folder(folder)
    assert os.listdir(tmp_path) == ["a.partial"]
