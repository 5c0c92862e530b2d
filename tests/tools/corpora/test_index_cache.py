"""The cache of indexes: built once, by one process; whole or not there; and what is damaged or old is built again."""

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forkgym.tools.corpora.index_cache import CorpusVersion, cache_folder, load_or_build
from forkgym.tools.passages import Passage
from forkgym.tools.search import PassageIndex, cached_index, index_for

VERSION = "1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORKGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "search"


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusVersion:
    path = tmp_path / "corpus.txt"
    path.write_text("ayr", encoding="utf-8")
    return CorpusVersion.now(path)


class Builder:
    """Copies the corpus in capitals, and counts how often."""

    def __init__(self, corpus: CorpusVersion) -> None:
        self.corpus = corpus
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "text").write_text(self.corpus.path.read_text(encoding="utf-8").upper(), encoding="utf-8")


def load(folder: Path) -> str:
    return (folder / "text").read_text(encoding="utf-8")


def entries(folder: Path) -> list[Path]:
    return sorted(path for slot in folder.iterdir() for path in slot.iterdir() if path.is_dir())


def test_an_index_is_built_once(corpus: CorpusVersion, own_cache: Path) -> None:
    build = Builder(corpus)
    assert [load_or_build(corpus, "kind", VERSION, build, load) for _ in range(3)] == ["AYR"] * 3
    assert build.times == 1
    (entry,) = entries(own_cache)
    assert sorted(path.name for path in entry.iterdir()) == ["manifest.json", "text"]
    assert entry.parent.name.startswith("kind-corpus-")


def test_kinds_and_files_have_slots_of_their_own(corpus: CorpusVersion, own_cache: Path) -> None:
    other = corpus.path.with_name("other.txt")
    other.write_text("bly", encoding="utf-8")
    for version in (corpus, CorpusVersion.now(other)):
        for kind in ("one", "two"):
            load_or_build(version, kind, VERSION, Builder(version), load)
    assert len(entries(own_cache)) == 4


def damaged_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text("[]")


def no_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def cut_short(entry: Path) -> None:
    (entry / "text").write_text("AY")


def missing_file(entry: Path) -> None:
    (entry / "text").unlink()


@pytest.mark.parametrize("damage", [damaged_manifest, no_manifest, cut_short, missing_file])
def test_a_damaged_index_is_built_again(
    corpus: CorpusVersion, own_cache: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    build = Builder(corpus)
    load_or_build(corpus, "kind", VERSION, build, load)
    damage(entries(own_cache)[0])
    assert load_or_build(corpus, "kind", VERSION, build, load) == "AYR"
    assert build.times == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"the index of {corpus.path} is built again; the one in the cache is unusable: " in caplog.text


def test_what_load_refuses_is_built_again_and_refused_once_more(corpus: CorpusVersion) -> None:
    build = Builder(corpus)

    def refuse(folder: Path) -> str:
        raise ValueError(f"no good: {load(folder)}")

    load_or_build(corpus, "kind", VERSION, build, load)
    with pytest.raises(ValueError, match="no good: AYR"):
        load_or_build(corpus, "kind", VERSION, build, refuse)
    assert build.times == 2


def test_an_old_index_is_replaced(corpus: CorpusVersion, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_or_build(corpus, "kind", VERSION, Builder(corpus), load)
    load_or_build(corpus, "kind", "2", Builder(corpus), load)  # the code has changed
    assert len(entries(own_cache)) == 1
    corpus.path.write_text("bly!", encoding="utf-8")
    changed = CorpusVersion.now(corpus.path)
    assert load_or_build(changed, "kind", "2", Builder(changed), load) == "BLY!"
    assert len(entries(own_cache)) == 1
    assert [record.message.rpartition("; ")[2] for record in caplog.records[1:]] == [
        "the one in the cache is old or unfinished"
    ] * 2


def test_nothing_is_left_of_a_build_that_fails(corpus: CorpusVersion, own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "text").write_text("half")
        raise ValueError("a bad corpus")

    for _ in range(2):
        with pytest.raises(ValueError, match="a bad corpus"):
            load_or_build(corpus, "kind", VERSION, fail, load)
        assert entries(own_cache) == []


def test_what_a_killed_process_left_is_removed(corpus: CorpusVersion, own_cache: Path) -> None:
    load_or_build(corpus, "kind", VERSION, Builder(corpus), load)
    entry = entries(own_cache)[0]
    entry.rename(entry.with_name("new"))
    assert load_or_build(corpus, "kind", VERSION, Builder(corpus), load) == "AYR"
    assert entries(own_cache) == [entry]


def test_threads_that_ask_at_once_build_one_index(corpus: CorpusVersion) -> None:
    build = Builder(corpus)

    def slow(folder: Path) -> None:
        time.sleep(0.1)
        build(folder)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(load_or_build, corpus, "kind", VERSION, slow, load) for _ in range(8)]
        found = [future.result() for future in futures]
    assert (found, build.times) == (["AYR"] * 8, 1)


# What another process does: print how many indexes it builds, and what it finds.
OPEN_INDEX = """
import logging, sys
from forkgym.tools.search import index_for

built = []
class Collect(logging.Handler):
    def emit(self, record):
        built.append(record)

logger = logging.getLogger("forkgym.tools.corpora.index_cache")
logger.setLevel(logging.INFO)
logger.addHandler(Collect())
titles = [passage.title for passage in index_for(sys.argv[1]).search("town 7", 2)]
print(len(built), *titles, sep="|")
"""


def test_processes_share_one_index(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = [f'{{"title": "Town {number}", "text": "x"}}\n' for number in range(3_000)]
    path.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", OPEN_INDEX, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [process.communicate()[0].strip().split("|") for process in processes]
    assert sum(int(built) for built, *_ in found) == 2  # the passages and their words, each in one of the processes
    assert [titles for _, *titles in found] == [["Town 7", "Town 0"]] * 2
    assert len(entries(own_cache)) == 2


def test_a_damaged_index_of_a_corpus_is_built_again(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "7", "title": "Ayr", "text": "A town."}\n', encoding="utf-8")
    assert index_for(path).search("town", 1) == [Passage("Ayr", "A town.", "7")]
    files = [file for entry in entries(own_cache) for file in entry.iterdir() if file.suffix != ".utf8"]
    assert len(files) == 11  # nine of the words, two of the passages
    for file in files:
        file.write_bytes(b"\0" * file.stat().st_size)  # the right size, as some file systems leave it after a crash
        cached_index.cache_clear()
        assert index_for(path).search("town", 1) == [Passage("Ayr", "A town.", "7")]


def test_a_cache_that_cannot_be_written_is_named(
    corpus: CorpusVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKGYM_CACHE", str(corpus.path))  # a file, not a folder
    with pytest.raises(OSError, match=r"the cache cannot be written: .*; FORKGYM_CACHE may name another folder"):
        load_or_build(corpus, "kind", VERSION, Builder(corpus), load)


def test_indexes_are_kept_with_hugging_faces_files_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FORKGYM_CACHE")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    assert cache_folder() == tmp_path / "assets" / "forkgym" / "search"


def test_an_index_in_memory_writes_nothing(own_cache: Path) -> None:
    assert PassageIndex([Passage("Ayr", "A town.")]).search("ayr", 1)
    assert not own_cache.exists()


def test_a_mapped_index_outlives_its_files(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"title": "Ayr", "text": "A town."}\n', encoding="utf-8")
    index = index_for(path)
    shutil.rmtree(own_cache)
    assert index.search("town", 1) == [Passage("Ayr", "A town.")]
