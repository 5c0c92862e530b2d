"""Whether two answers mean the same: by their text, by their exact value, and then by computer algebra in a process.

Each stage is asked only where the one before leaves it open, so that most answers cost microseconds:

1. nan equals nothing, and an unreadable answer is wrong (`tidy`);
2. of ``(C) 5``, both C and 5 will do (`choice`), and so will 2, 3 of ``x=2, y=3`` (`named_values`);
3. the same text, but for spaces and notation, is equal (`key`), and where the gold is a word, nothing else is;
4. two numbers are compared as exact fractions (`same_value`), and that is final: 42.0000001 is not 42;
5. where the gold is a number, arithmetic that is left to do is no answer, nor are words or several answers;
6. the rest, roots, sets, intervals, equations, is up to math-verify, in a process that is killed after 2 s.
"""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from forkgym.envs.verification.math_text import (
    EQUALS,
    MATHEMATICS,
    NOT_A_NUMBER,
    SEVERAL,
    choice,
    is_verifiable,
    is_word,
    key,
    left_to_do,
    named_values,
    same_value,
    sides,
    tidy,
    value_of,
    without_unit,
)
from forkgym.envs.verification.verify_process import shared_process
from forkgym.envs.verification.verify_worker import Word


class Verdict(StrEnum):
    """What came of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    EMPTY = "empty"  # nothing was answered
    UNREADABLE = "unreadable"  # too long, digits of another script, or no mathematics
    TIMEOUT = "timeout"  # computing it took longer than its limit
    UNVERIFIABLE = "unverifiable"  # the gold is nothing that an answer can be held against


def math_equal(gold: str, prediction: str) -> bool:
    r"""Whether a prediction means the same as the gold answer; see ``verdict_on`` for why not.

    >>> math_equal(r"\frac{1}{2}", r"The answer is \boxed{0.5}")
    True

    Raises:
        ToolFailure: See ``verdict_on``.
    """
    return verdict_on(gold, prediction) is Verdict.EQUAL


def verdict_on(gold: str, prediction: str) -> Verdict:
    """Compare a prediction with the gold answer; any two texts are answered.

    Args:
        gold: The reference answer.
        prediction: What a model answered; the last box counts, or the whole text where there is none.

    Raises:
        ToolFailure: The process that compares cannot be started, or fails over and over; that is not the model's fault.
    """
    expression = tidy(prediction)
    return Verdict.UNREADABLE if expression is None else verdict_on_tidy(gold, expression)


@lru_cache(maxsize=4_096)  # the answers of a group repeat each other; an exception is not kept
def verdict_on_tidy(gold: str, prediction: str) -> Verdict:
    """Compare a tidy prediction with the gold answer."""
    reference = tidy(gold)
    if NOT_A_NUMBER.search(prediction) or NOT_A_NUMBER.search(gold):
        return Verdict.DIFFERENT
    if reference is None or not is_verifiable(gold):
        return Verdict.UNVERIFIABLE
    if not prediction:
        return Verdict.EMPTY
    letter, own = choice(reference)
    label, said = choice(prediction)
    if letter and label and letter != label:
        return Verdict.DIFFERENT
    if letter and label and not (own and said):  # one side says no more than the letter
        return Verdict.EQUAL
    return compare_answers(own or reference, said or prediction)


def compare_answers(gold: str, prediction: str) -> Verdict:
    """Compare two tidy texts, all that the prediction claims."""
    if key(gold) == key(prediction):
        return Verdict.EQUAL
    values = None if EQUALS.search(prediction) else named_values(gold)
    if values is not None:  # for ``x=2, y=3``, both 2, 3 and (2, 3) will do, in this order
        gold, prediction = values, prediction if prediction.startswith("(") else f"({prediction})"
    if SEVERAL.search(prediction) and not SEVERAL.search(gold) and len(EQUALS.findall(prediction)) > 1:
        return Verdict.DIFFERENT  # ``x = 4 \lor x = 5``
    claims = claims_of(gold, prediction)
    for place, claim in enumerate(claims, start=1):  # ``41 = 42`` is not 42
        verdict = compare_claim(gold, claim, is_last=place == len(claims))
        if verdict is not Verdict.EQUAL:
            return verdict
    return Verdict.EQUAL


def claims_of(gold: str, prediction: str) -> tuple[str, ...]:
    """What a prediction claims: one expression, or each side of a chain; ``x = 4 = 5`` claims two equations."""
    if not EQUALS.search(gold):
        return sides(prediction)
    first, *others = EQUALS.split(prediction)
    is_chain = len(others) > 1 and SEVERAL.search(prediction) is None
    return tuple(f"{first}={side}" for side in others) if is_chain else (prediction,)


def compare_claim(gold: str, claim: str, *, is_last: bool) -> Verdict:
    """Compare one expression with the gold; on the way to the last one of a chain, arithmetic may stand."""
    if key(gold) == key(claim):
        return Verdict.EQUAL
    if is_word(gold):
        return Verdict.DIFFERENT
    same = same_value(gold, claim)
    if same is not None:
        return Verdict.EQUAL if same else Verdict.DIFFERENT
    if isinstance(value_of(gold), Fraction):
        if MATHEMATICS.search(claim) is None or SEVERAL.search(claim) or (is_last and left_to_do(claim)):
            return Verdict.DIFFERENT
    return WORDS[shared_process().compare(without_unit(gold), without_unit(claim))]


WORDS = {
    Word.EQUAL: Verdict.EQUAL,
    Word.DIFFERENT: Verdict.DIFFERENT,
    Word.UNREADABLE: Verdict.UNREADABLE,
    Word.TIMEOUT: Verdict.TIMEOUT,
}  # ``lost`` is no outcome: `VerifyProcess` asks again
