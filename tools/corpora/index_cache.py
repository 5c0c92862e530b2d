"""Search indexes on disk: built once, and memory-mapped by every process after that.

    FOLDER/bm25-corpus-1f0a63c25be19d04/    one slot for each corpus and kind of index
        .lock                               held while an entry is built
        new/                                what is being built, or was when its process ended
        1763654208000000000-3083943-5be1... the entry: the version of the corpus and of the code that read it
            ...                             the index
            manifest.json                   the size of each file; written last

An entry is complete under its name or not there, and never changes. One whose files are missing, cut short or
unreadable is built again, and so is a slot's entry of another version. A file whose bytes changed in place keeps its
size and is not noticed. Nothing in there is unpickled or run. The folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel

from forkgym.tools.durable import sync

CACHE_VARIABLE = "FORKGYM_CACHE"
MANIFEST = "manifest.json"
MAX_STEM_CHARACTERS = 40  # of the corpus's name, in the name of a slot

Index = TypeVar("Index")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CorpusVersion:
    """One state of a corpus file; the time and the size tell it from others, as they do for make.

    Attributes:
        path: The file, as a full path.
        modified_ns: When it was written last, nanoseconds.
        size_bytes: Its size.
    """

    path: Path
    modified_ns: int
    size_bytes: int

    @classmethod
    def now(cls, path: Path) -> CorpusVersion:
        """The present state of a file that is there."""
        status = path.stat()
        return cls(path, status.st_mtime_ns, status.st_size)

    def slot(self, kind: str) -> str:
        """Name the slot of this corpus's index of a kind."""
        return f"{kind}-{self.path.stem[:MAX_STEM_CHARACTERS]}-{short_hash(os.fsencode(self.path))}"

    def entry(self, code_version: str) -> str:
        """Name the entry of this state, as read by a version of the code."""
        return f"{self.modified_ns}-{self.size_bytes}-{short_hash(code_version.encode())}"


class Manifest(BaseModel):
    """The size in bytes of each file of an entry."""

    files: dict[str, int]


def cache_folder() -> Path:
    """Where indexes are kept: ``$FORKGYM_CACHE/search``, or a folder of the cache that Hugging Face's libraries share.

    That cache is ``$HF_HOME``, or ``~/.cache/huggingface``; its folder ``assets`` is for what other libraries make.
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser().resolve() / "search"
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "forkgym" / "search"


def load_or_build(
    corpus: CorpusVersion, kind: str, code_version: str, build: Callable[[Path], None], load: Callable[[Path], Index]
) -> Index:
    """Load an index from the cache, where it is put first if it is not there.

    Of several processes and threads that ask at once, one builds and the others wait for it.

    Args:
        corpus: What is indexed.
        kind: The kind of index; part of a file name.
        code_version: Whatever else an index depends on.
        build: Write the index's files into an empty folder.
        load: Open what ``build`` wrote. It raises OSError or ValueError where that is damaged.

    Raises:
        OSError: The folder cannot be written.
        ValueError: As ``build`` and ``load`` raise it.
    """
    slot = cache_folder() / corpus.slot(kind)
    entry = slot / corpus.entry(code_version)
    try:
        return load_complete(entry, load)  # without the lock, so a cache that is read-only will do
    except (OSError, ValueError):
        pass  # looked at again under the lock, when no other process is at work on it
    with lock_of(slot):
        return replace_entry(corpus, entry, build, load)


def lock_of(slot: Path) -> FileLock:
    """The lock of a slot, which is made where it is not there."""
    path = slot / ".lock"
    try:
        slot.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise OSError(f"the cache cannot be written: {error}; {CACHE_VARIABLE} may name another folder") from error
    return FileLock(path)


def replace_entry(
    corpus: CorpusVersion, entry: Path, build: Callable[[Path], None], load: Callable[[Path], Index]
) -> Index:
    """Load an entry, or build it and remove its slot's others; the caller holds the slot's lock."""
    try:
        return load_complete(entry, load)
    except (OSError, ValueError) as error:
        others = [path for path in entry.parent.iterdir() if path.is_dir()]
        if entry in others:
            logger.warning("the index of %s is built again; the one in the cache is unusable: %s", corpus.path, error)
        elif others:
            logger.info("the index of %s is built again; the one in the cache is old or unfinished", corpus.path)
        else:
            logger.info("the index of %s is built, in %s", corpus.path, entry)
    for other in others:
        shutil.rmtree(other)  # a process that has mapped its files keeps them
    new = entry.with_name("new")
    new.mkdir()
    try:
        build(new)
        sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
        (new / MANIFEST).write_text(Manifest(files=sizes).model_dump_json(indent=1), encoding="utf-8")
        for path in (*new.iterdir(), new):
            sync(path)
        new.rename(entry)
    except BaseException:
        shutil.rmtree(new)
        raise
    sync(entry.parent)
    return load_complete(entry, load)


def load_complete(entry: Path, load: Callable[[Path], Index]) -> Index:
    """Load an entry whose files have the sizes that they were written with.

    Raises:
        OSError: The entry or one of its files is not there.
        ValueError: A file has another size, or ``load`` raises it.
    """
    manifest = Manifest.model_validate_json((entry / MANIFEST).read_bytes())
    for name, size_bytes in manifest.files.items():
        found_bytes = (entry / name).stat().st_size
        if found_bytes != size_bytes:
            raise ValueError(f"{entry / name} has {found_bytes} bytes, expected {size_bytes}")
    return load(entry)


def short_hash(data: bytes) -> str:
    """A name for some bytes, sixteen letters and digits long."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
