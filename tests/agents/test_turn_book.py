"""Where turns of another library's engine end, and what is reported of them: as with the embedded agent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkgym.agents.base import Completion, Event, FinishReason, FirstTokens, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.stopping import StopTable
from forkgym.agents.turn_book import LiveTurn, TurnBook
from tests.agents.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
CODEC = TokenizerCodec(TOKENIZER)
END = 260
MAX_CONTEXT = 50
REQUEST = Request("x", (1, 2), 40, ("</a>",), seed=0)


def make_book() -> TurnBook:
    return TurnBook(CODEC, StopTable(TOKENIZER, [END], 262), 262, MAX_CONTEXT)


def ids(*pieces: str) -> list[int]:
    """The token of each piece, also of those that the tokenizer would not make of a text."""
    vocabulary = TOKENIZER.get_vocab()
    return [vocabulary[piece] for piece in pieces]


def feed(book: TurnBook, turn: LiveTurn, tokens: list[int]) -> list[Event]:
    """Add tokens one by one, until the turn ends; their log-probs are -1, -2, ... and entropies 0.5, 1.5, ..."""
    for place, token in enumerate(tokens):
        if book.add_tokens([turn], [token], [-1.0 - place], [0.5 + place], 4):
            break
    return list(book.take_events())


def begun(book: TurnBook, request: Request) -> LiveTurn:
    turn = book.begin(request, 4)
    assert turn is not None
    return turn


@pytest.mark.parametrize(
    ("pieces", "kept", "text"),
    [
        (["x", "</", "a>", "y"], 3, "x</a>"),  # split between tokens
        (["<", "/", "a", ">", "y"], 4, "</a>"),
        (["</", "a", ">b", "y"], 3, "</a>b"),  # complete in the middle of a token, which is kept whole
    ],
)
def test_a_turn_ends_with_the_token_that_completes_a_stop_string(pieces: list[str], kept: int, text: str) -> None:
    book = make_book()
    (completion,) = feed(book, begun(book, REQUEST), ids(*pieces))
    assert completion == Completion(
        "x",
        tuple(ids(*pieces)[:kept]),
        text,
        tuple(-1.0 - place for place in range(kept)),
        tuple(0.5 + place for place in range(kept)),
        FinishReason.STOP,
        version=4,
    )
    assert book.live == 0


def test_the_end_token_is_sampled_but_is_no_text() -> None:
    book = make_book()
    (completion,) = feed(book, begun(book, REQUEST), [*ids("x", "y"), END, *ids("z")])
    assert isinstance(completion, Completion)
    assert completion.tokens == (*ids("x", "y"), END)
    assert (completion.text, completion.finish_reason) == ("xy", FinishReason.END)


@pytest.mark.parametrize(
    ("context", "count", "reason"),
    [(10, 40, FinishReason.TURN_TOKENS), (11, 39, FinishReason.CONTEXT), (49, 1, FinishReason.CONTEXT)],
)
def test_a_limit_ends_a_turn(context: int, count: int, reason: FinishReason) -> None:
    book = make_book()
    turn = begun(book, replace(REQUEST, tokens=(1,) * context))
    (completion,) = feed(book, turn, ids(*"x" * 60))
    assert isinstance(completion, Completion)
    assert (len(completion.tokens), completion.finish_reason) == (count, reason)


def test_a_stop_string_on_the_last_allowed_token_is_a_stop() -> None:
    book = make_book()
    (completion,) = feed(book, begun(book, replace(REQUEST, max_tokens=2)), ids("</", "a>"))
    assert isinstance(completion, Completion)
    assert completion.finish_reason is FinishReason.STOP


def test_a_context_without_room_is_finished_at_once() -> None:
    book = make_book()
    assert book.begin(replace(REQUEST, tokens=(1,) * 50, report_after=3), 4) is None
    assert book.take_events() == [
        FirstTokens("x", ()),
        Completion("x", (), "", (), (), FinishReason.CONTEXT, 4),
    ]


@pytest.mark.parametrize(("length", "reported"), [(5, 3), (3, 3), (2, 2)])
def test_first_tokens_are_reported_once_before_the_completion(length: int, reported: int) -> None:
    book = make_book()
    events = feed(book, begun(book, replace(REQUEST, max_tokens=length, report_after=3)), ids(*"x" * 9))
    assert events[0] == FirstTokens("x", (0.5, 1.5, 2.5)[:reported])
    assert [type(event) for event in events] == [FirstTokens, Completion]


def test_events_come_in_the_order_of_submission() -> None:
    book = make_book()
    turns = [begun(book, replace(REQUEST, uid=uid, max_tokens=1, report_after=1)) for uid in "abc"]
    book.add_tokens(turns[::-1], ids(*"x" * 3), [-1.0] * 3, [0.5] * 3, 4)
    assert [event.uid for event in book.take_events()] == ["a", "a", "b", "b", "c", "c"]
    assert not book.has_events


def test_a_finished_turn_is_continued_or_released_once() -> None:
    book = make_book()
    feed(book, begun(book, replace(REQUEST, max_tokens=1)), ids("x"))
    past = (1, 2, *ids("x"))
    with pytest.raises(ValueError, match="does not begin with the 3 tokens of 'x'"):
        book.begin(Request("y", (1, 2, 3, 4), 4, (), seed=0, continues="x"), 4)
    begun(book, Request("y", (*past, 7), 4, (), seed=0, continues="x"))
    with pytest.raises(ValueError, match="x: expected a finished turn"):
        book.release("x")
    with pytest.raises(ValueError, match="continues 'y', expected a finished turn"):
        book.begin(Request("z", past, 4, (), seed=0, continues="y"), 4)


def test_an_aborted_turn_is_never_reported() -> None:
    book = make_book()
    turn = begun(book, replace(REQUEST, report_after=1))
    book.add_tokens([turn], ids("x"), [-1.0], [0.5], 4)
    assert book.abort("x") is turn
    assert (book.live, list(book.take_events())) == (0, [])
    feed(book, begun(book, replace(REQUEST, max_tokens=1)), ids("x"))  # the uid is free again
    assert book.abort("x") is None
    with pytest.raises(ValueError, match="x: expected a finished turn"):
        book.abort("x")


def test_bad_requests_are_refused_before_anything_changes() -> None:
    book = make_book()
    begun(book, REQUEST)
    for bad, match in (
        (REQUEST, "another live request has this uid"),
        (replace(REQUEST, uid="y", tokens=(1, 262)), "tokens from 1 to 262, expected 0 to 261"),
        (replace(REQUEST, uid="y", stop=("",)), "one is empty"),
        (replace(REQUEST, uid="y", continues="x"), "expected a finished turn"),
    ):
        with pytest.raises(ValueError, match=match):
            book.begin(bad, 4)
    assert book.live == 1
