"""Whether two tokenizers number their tokens alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from forkgym.agents.loading import UNUSABLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of every token with its id, 16 hexadecimal digits."""
    items = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(items).encode("ascii")).hexdigest()[:16]


def vocabulary_hash_at(name_or_path: str) -> str | None:
    """The hash of a folder's or a hub name's tokenizer; None where there is none."""
    from transformers import AutoTokenizer

    folder = Path(name_or_path)
    # For a folder without one, transformers makes an empty one of the model's kind.
    if folder.is_dir() and not any((folder / name).is_file() for name in FILES):
        return None
    try:
        return vocabulary_hash(cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(name_or_path)))
    except UNUSABLE:
        return None
