"""Reading and comparing final answers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.grading import (
    NoNumber,
    exact_match,
    f1,
    final_answer,
    normalize_answer,
    number_in,
    official_exact_match,
)

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("  Paris \n", "Paris"),
        (r"\boxed{72}", "72"),
        (r"so \boxed{ 72 } it is", "72"),
        (r"\boxed{1} or \boxed{2}", "2"),  # the last one
        (r"\boxed{1 \boxed{2}}", "2"),  # which is the one that opens last
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not count
        (r"\boxed{\}}", r"\}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{7", r"\boxed{7"),  # not balanced: the whole text
        (r"\boxed{6} and \boxed{7", "6"),
        (r"}} \boxed{6}", "6"),
        (r"\boxed", r"\boxed"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", Fraction(72)),
        ("#### 72", Fraction(72)),
        ("#### $72", Fraction(72)),
        ("72.", Fraction(72)),
        ("72.0", Fraction(72)),
        ("1,000", Fraction(1000)),
        ("1,234,567.89", Fraction(123456789, 100)),
        ("-5", Fraction(-5)),
        ("\u22125", Fraction(-5)),  # the minus sign of Unicode
        ("+5", Fraction(5)),
        ("-0", Fraction(0)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("72%", Fraction(72)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),  # exactly
        ("1e3", Fraction(1000)),
        ("25e-2", Fraction(1, 4)),
        ("3 dogs and 4 cats", Fraction(4)),  # the last one counts
        ("16 - 3 - 4 = 9", Fraction(9)),
        ("16-3", Fraction(3)),  # a minus between two numbers is no sign
        ("(2)-3", Fraction(3)),
        ("#### 5\n#### 6", Fraction(6)),
        ("7 #### 5 or 6", Fraction(6)),
        ("The answer is 1,000.", Fraction(1000)),
        ("1, 2", Fraction(2)),
        ("1.5.2", Fraction(2)),
        ("42.0000001", Fraction(420000001, 10_000_000)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (r"70{,}000", Fraction(70_000)),
        (r"70\,000", Fraction(70_000)),
        (r"\$72", Fraction(72)),
        (r"\text{42}", Fraction(42)),
        ("007", Fraction(7)),
    ],
)
def test_number_in(text: str, number: Fraction) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", NoNumber.EMPTY),
        (" \n", NoNumber.EMPTY),
        ("$", NoNumber.EMPTY),
        ("72 ####", NoNumber.EMPTY),  # what stands before the last mark does not count
        ("seventy-two", NoNumber.NO_DIGITS),
        ("True", NoNumber.NO_DIGITS),
        ("nan", NoNumber.NOT_FINITE),
        ("-inf", NoNumber.NOT_FINITE),
        ("Infinity", NoNumber.NOT_FINITE),
        (r"\infty", NoNumber.NOT_FINITE),
        ("\uff14\uff12", NoNumber.NON_ASCII_DIGITS),  # full width
        ("\u0664\u0662", NoNumber.NON_ASCII_DIGITS),  # Arabic
        ("4\u0662", NoNumber.NON_ASCII_DIGITS),
        ("5/0", NoNumber.ZERO_DENOMINATOR),
        ("1e1000000000", NoNumber.TOO_LONG),
        ("1e-101", NoNumber.TOO_LONG),
        ("9" * 101, NoNumber.TOO_LONG),
        ("0." + "0" * 200 + "1", NoNumber.TOO_LONG),
    ],
)
def test_number_in_says_why_not(text: str, reason: NoNumber) -> None:
    assert number_in(text) is reason


def test_the_longest_number() -> None:
    assert number_in("9" * 100) == Fraction(10**100 - 1)
    assert number_in("1e100") == Fraction(10**100)


@pytest.mark.parametrize(
    "text",
    [
        "1 " * (MEGABYTE // 2),
        "1," * (MEGABYTE // 2),
        "-" * MEGABYTE,
        "." * MEGABYTE,
        "1" * MEGABYTE,
        "1/" * (MEGABYTE // 2),
        "####" * (MEGABYTE // 4),
        r"\boxed{" * (MEGABYTE // 7),
        r"\boxed{1" + "}" * MEGABYTE,
        "{" * MEGABYTE + "}" * MEGABYTE,
        r"\frac{1}" * (MEGABYTE // 8),
        "\\" * MEGABYTE,
    ],
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    assert isinstance(number_in(final_answer(text)), (Fraction, NoNumber))
    assert 0.0 <= f1(text, "1") <= 1.0
    assert exact_match(text, "an answer") is False


@given(st.text(st.sampled_from("0123456789+-/.,eE$#% \\{}boxedfrac\u0663\u2212")))
def test_any_text_is_read(text: str) -> None:
    answer = final_answer(text)
    assert answer in text
    assert isinstance(number_in(answer), (Fraction, NoNumber))


@given(st.integers(-(10**30), 10**30), st.sampled_from(["{}", "{:,}", "${}", "{}.", "{}.00", "#### {}", "{}%"]))
def test_every_way_to_write_a_whole_number_is_read(number: int, form: str) -> None:
    assert number_in(form.format(number)) == number


@given(st.fractions())
def test_fractions_are_read(number: Fraction) -> None:
    assert number_in(str(number)) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals_are_exact(number: object) -> None:
    assert number_in(str(number)) == Fraction(str(number))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  a   Theory of an  ant ", "theory of ant"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("the", ""),
        ("A The An", ""),
        ("1.5", "15"),
        ("\u2013", "\u2013"),  # officially, only ASCII punctuation goes
    ],
)
def test_normalize_answer(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "guarded", "official"),
    [
        ("Paris", "paris.", True, True),
        ("The Beatles", "Beatles", True, True),
        ("Paris", "London", False, False),
        ("yes", "Yes.", True, True),
        ("I do not know", "no", False, False),
        ("", "", False, True),  # an empty answer equals nothing
        ("a", "the", False, True),
        ("a", "The The", False, True),
        ("1.5", "15", False, True),  # numbers are compared as numbers
        ("-5", "5", False, True),
        ("1,000", "1000", True, True),
        ("3.0", "3", True, False),
        ("1/2", "12", False, True),
        ("1.95 m", "195 m", False, True),
        ("1.95 m.", "1.95 m", True, True),
        ("May 5, 2001", "May 5 2001", True, True),
        ("2001-05-03", "20010503", False, True),
        ("1969-70", "1969-70", True, True),
        ("1,000 people", "1000 people", True, True),
        ("1e999", "1e999", True, True),  # no number that can be compared, but the same text
        ("1e999", "+1e999", False, True),
        ("\u0663", "\u0663", True, True),
    ],
)
def test_exact_match(prediction: str, gold: str, guarded: bool, official: bool) -> None:
    assert exact_match(prediction, gold) is guarded
    assert official_exact_match(prediction, gold) is official


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("Paris", "Paris", 1.0),
        ("the city of Paris", "Paris", 0.5),  # city of paris: precision 1/3, recall 1
        ("Barack Obama", "Barack Hussein Obama", 0.8),  # precision 1, recall 2/3
        ("Obama Barack", "Barack Obama", 1.0),  # order does not count
        ("a a b", "a b b", 2 / 3),  # articles go: b and b b, precision 1, recall 1/2
        ("London", "Paris", 0.0),
        ("yes", "yes", 1.0),
        ("yes no", "yes", 0.0),  # the yes/no rule
        ("no", "no one", 0.0),
        ("noanswer", "an answer", 0.0),
        ("", "Paris", 0.0),
        ("", "", 0.0),
        ("the", "a", 0.0),
    ],
)
def test_f1(prediction: str, gold: str, score: float) -> None:
    assert f1(prediction, gold) == pytest.approx(score)


@given(st.text(), st.text())
def test_any_texts_are_compared(prediction: str, gold: str) -> None:
    assert 0.0 <= f1(prediction, gold) <= 1.0
    assert exact_match(prediction, gold) == exact_match(gold, prediction)
    if exact_match(prediction, prediction):
        assert f1(prediction, prediction) == 1.0
