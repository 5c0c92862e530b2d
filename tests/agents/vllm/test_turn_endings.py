"""What an engine elsewhere is told of stop strings."""

from __future__ import annotations

import pytest

from forkgym.agents.stopping import StopTable
from forkgym.agents.vllm import turn_endings
from forkgym.agents.vllm.turn_endings import TurnEndings
from tests.agents.tiny import END, PAD, byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = TOKENIZER.get_vocab()


def endings() -> TurnEndings:
    end = IDS[END]
    return TurnEndings(StopTable(TOKENIZER, [end], len(TOKENIZER)), len(TOKENIZER))


def test_tokens_that_hold_a_whole_stop_string_end_a_turn_and_those_with_its_last_character_may() -> None:
    # The tokens of two characters are "</", "a>", ">b" and "bc"; the padding token ends in ">" as well.
    assert endings().of(()) == ([IDS[END]], [])
    assert endings().of(("a>",)) == (sorted([IDS["a>"], IDS[END]]), sorted([IDS[">"], IDS[">b"], IDS[PAD]]))
    assert endings().of(("</b>",)) == ([IDS[END]], sorted([IDS[">"], IDS["a>"], IDS[">b"], IDS[PAD]]))


def test_where_most_tokens_may_end_a_turn_all_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    _, watched = endings().of(("a ",))
    assert watched is not None
    assert len(watched) == len(TOKENIZER) - 1
    monkeypatch.setattr(turn_endings, "MANY", 100)
    assert endings().of(("a ",)) == ([IDS[END]], None)
