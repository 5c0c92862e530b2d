"""Stop strings, however tokens split them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.stopping import END, MAY_STOP, StopTable, end_tokens
from tests.agents.tiny import byte_tokenizer, make_model

TOKENIZER = byte_tokenizer()
CODEC = TokenizerCodec(TOKENIZER)
TABLE = StopTable(TOKENIZER, [260], 262)


def all_flags(table: StopTable, stop: tuple[str, ...], tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
    return table.flags(np.full(len(tokens), table.row(stop)), tokens)


def stop_at(table: StopTable, tokens: tuple[int, ...], stop: tuple[str, ...]) -> int | None:
    """How many tokens there are when a stop string is complete, as the agent finds it."""
    flags = all_flags(table, stop, np.array(tokens, np.int64))
    for count in range(1, len(tokens) + 1):
        if flags[count - 1] & MAY_STOP and table.completed(tokens[:count], stop):
            return count
    return None


def stop_by_text(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...], stop: tuple[str, ...]) -> int | None:
    """The same by decoding everything after each token."""
    codec = TokenizerCodec(tokenizer)
    for count in range(1, len(tokens) + 1):
        text = codec.decode(tokens[:count])
        if any(string in text for string in stop):
            return count
    return None


def ids(*pieces: str) -> tuple[int, ...]:
    """One token for each piece."""
    found = TOKENIZER.convert_tokens_to_ids(list(pieces))
    assert isinstance(found, list)
    return tuple(found)


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        (("x", "<", "/", "a", ">"), 5),  # split into every character
        (("x", "</", "a>", "x"), 3),  # by merges
        (("</", "a", ">b", "x"), 3),  # complete inside a token
        (("</", "a", ">", "<", "/", "a", ">"), 3),  # the first counts
        (("<", "a", ">", "/", "a", ">"), None),
        (("</", "a", "b", ">"), None),
    ],
)
def test_a_marker_split_in_any_way(pieces: tuple[str, ...], count: int | None) -> None:
    assert stop_at(TABLE, ids(*pieces), ("</a>",)) == count


def test_any_of_several_strings() -> None:
    assert stop_at(TABLE, ids("x", "b", "c", "</", "a>"), ("</a>", "bcd", "bc")) == 3
    assert stop_at(TABLE, ids("x", "bc"), ()) is None


def test_only_tokens_with_a_last_character_are_looked_at() -> None:
    flags = all_flags(TABLE, ("</a>",), np.arange(262))
    marked = {str(TOKENIZER.convert_ids_to_tokens(int(token))) for token in (flags & MAY_STOP).nonzero()[0]}
    assert marked == {">", "a>", ">b", "<|end|>", "<|pad|>"}
    assert (flags & END).nonzero()[0].tolist() == [260]


def test_a_character_that_is_split_into_bytes() -> None:
    tokens = CODEC.encode_turn("x→y")
    assert len(tokens) == 5  # the arrow is three bytes
    assert stop_at(TABLE, tokens, ("→",)) == 4


def test_a_stop_string_that_ends_with_a_space() -> None:
    assert stop_at(TABLE, CODEC.encode_turn("ab b c"), ("b ",)) == 3


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="one is empty"):
        TABLE.row(("a", ""))


MARKERS = ("</a>", "</tool>", "→", "bc\n")
FRAGMENTS = st.sampled_from(["<", "/", "a", ">", "b", "c", "</", "a>", "too", "l>", "→", "\n", " ", "é", "<|end|>"])


@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.sets(st.sampled_from(MARKERS), min_size=1))
def test_stops_where_the_text_says(text: str, chosen: set[str]) -> None:
    stop = tuple(sorted(chosen))
    tokens = CODEC.encode_turn(text)
    assert stop_at(TABLE, tokens, stop) == stop_by_text(TOKENIZER, tokens, stop)


@given(tokens=st.lists(st.integers(0, 261), min_size=1, max_size=30).map(tuple), data=st.data())
def test_stops_where_the_text_says_for_any_tokens(tokens: tuple[int, ...], data: st.DataObject) -> None:
    text = CODEC.decode(tokens).replace("\ufffd", "")
    begin = data.draw(st.integers(0, len(text)))
    stop = (text[begin : begin + data.draw(st.integers(1, 6))] or "</a>",)
    assert stop_at(TABLE, tokens, stop) == stop_by_text(TOKENIZER, tokens, stop)


def test_tokens_without_text_do_not_hide_a_marker() -> None:
    beyond = 300  # the model has more logits than the tokenizer tokens
    table = StopTable(TOKENIZER, [260], beyond + 1)
    tokens = (*ids("</"), *[beyond] * 40, *ids("a>"))
    assert stop_at(table, tokens, ("</a>",)) == len(tokens)


def test_a_long_last_token_does_not_hide_where_a_marker_began() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<" + "long" * 10])
    table = StopTable(tokenizer, [260], 301)
    tokens = (*ids("y"), *[300] * 40, 262)
    assert stop_at(table, tokens, ("y<long",)) == len(tokens)


def test_a_real_tokenizer(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    codec = TokenizerCodec(tokenizer)
    table = StopTable(tokenizer, [0], len(tokenizer))
    stop = ("</search>", "</answer>")
    assert len(codec.encode_turn("</search>")) > 1
    text = "<think>Where?</think><search>who is it</search>\n<answer>no</answer>"
    tokens = codec.encode_turn(text)
    count = stop_at(table, tokens, stop)
    assert count == stop_by_text(tokenizer, tokens, stop)
    assert count is not None
    assert codec.decode(tokens[:count]).rstrip() == "<think>Where?</think><search>who is it</search>"


def test_end_tokens_of_tokenizer_and_generation_config() -> None:
    model = make_model()
    assert model.generation_config is not None
    assert end_tokens(model, TOKENIZER) == {260}
    model.generation_config.eos_token_id = 7
    assert end_tokens(model, TOKENIZER) == {7, 260}
    model.generation_config.eos_token_id = [3, 260]
    assert end_tokens(model, TOKENIZER) == {3, 260}
