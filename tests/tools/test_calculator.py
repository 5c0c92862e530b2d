"""The calculator: exact values, refusals that cost nothing, and what it writes."""

import json
import re
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.base import ToolError
from forkgym.tools.calculator import (
    CALCULATOR,
    MAX_BITS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    calculator,
    evaluate,
    format_number,
)

# An expression and its value, both worked out by hand.
VALUES = [
    ("16 - 3 - 4", 9),  # from the left: (16 - 3) - 4, not 16 - (3 - 4) = 17
    ("100 / 5 / 2", 10),
    ("2 + 3 * 4", 14),
    ("(2 + 3) * 4", 20),
    ("2 * (3 + (4 - 1)) * 2", 24),
    ("7 // 2 * 2", 6),
    ("560//10", 56),
    ("17 % 5", 2),
    ("-7 // 2", -4),  # rounds down, as in Python
    ("-7 % 3", 2),
    ("7.5 // 2", 3),
    ("7.5 % 2", Fraction(3, 2)),
    ("2 ** 10", 1024),
    ("2^10", 1024),
    ("2 ** 3 ** 2", 512),  # from the right: 2 ** 9, not 8 ** 2 = 64
    ("2 ** -2", Fraction(1, 4)),
    ("(1/2) ** 3", Fraction(1, 8)),
    ("(1/2) ** -3", 8),
    ("2 ** (6/3)", 4),
    ("-2 ** 2", -4),
    ("(-2) ** 2", 4),
    ("0 ** 0", 1),
    ("1 ** 10**300", 1),
    ("(-1) ** (10**300 + 1)", -1),
    ("--5", 5),
    ("-+-+5", 5),
    ("2 * -3", -6),
    ("2 - -3", 5),
    ("6×7÷2−1", 20),
    ("1/3 + 1/6", Fraction(1, 2)),
    ("0.1 + 0.2", Fraction(3, 10)),  # 0.30000000000000004 in floating point
    (".5", Fraction(1, 2)),
    ("5.", 5),
    ("5./2", Fraction(5, 2)),
    ("1e3", 1000),
    ("1.5E-2", Fraction(3, 200)),
    ("2e+1", 20),
    ("0e999999999999", 0),
    ("007", 7),
    ("1,000*3", 3000),
    ("1,234,567.5", Fraction(2469135, 2)),
    ("12,345", 12345),
    (" 1\t+\n1 ", 2),
    ("1+1=", 2),
    ("1+1=42", 2),
    ("1+1=2=3", 2),
    ("10**308", 10**308),
]


@pytest.mark.parametrize(("expression", "value"), VALUES)
def test_value(expression: str, value: Fraction | int) -> None:
    assert evaluate(expression) == value


# An expression and the words of the refusal.
REFUSALS = [
    ("", "ends at character 1, where a number was expected"),
    ("   ", "ends at character 4"),
    ("=5", "ends at character 1"),
    ("1 +", "ends at character 4"),
    ("* 2", "'*' stands at character 1"),
    ("()", "')' stands at character 2"),
    ("(1 + 2", "'(' at character 1 is never closed"),
    ("1 + 2)", "')' at character 6 closes nothing"),
    ("1 2", "an operator is missing before character 3"),
    ("(1 2)", "an operator is missing before character 4"),
    ("2(3+4)", "an operator is missing before character 2"),
    ("1..2", "an operator is missing before character 3"),
    ("...", "'.' at character 1 is not understood"),
    ("1,00", "',' at character 2 is not understood"),
    ("1,0000", "',' at character 2 is not understood"),
    ("0,500", "',' at character 2 is not understood"),
    ("1234,567", "',' at character 5 is not understood"),
    ("1_000", "'_000' at character 2 is not understood"),
    ("0x10", "'x10' at character 2 is not understood"),
    ("1e", "'e' at character 2 is not understood"),
    ("$5", "'$' at character 1 is not understood"),
    ("sqrt(4)", "'sqrt' at character 1 is not understood"),
    ("x" * 900, "'xxxxxxxxxxxx' at character 1 is not understood"),
    ("٤٢+1", "arabic-indic digit four at character 1 is not understood"),
    ("1 < 2", "less-than sign at character 3 is not understood"),
    ("1\x002", "u+0000 at character 2 is not understood"),
    ("1\ud800", "u+d800 at character 2 is not understood"),
    ("1/0", "division by zero at character 2"),
    ("1//(2-2)", "division by zero at character 2"),
    ("1%0.0", "division by zero at character 2"),
    ("0**-1", "division by zero at character 2"),
    ("50%", "for a percentage divide by 100"),
    ("50% * 3", "for a percentage divide by 100"),
    ("4 ** 0.5", "an exponent that is not a whole number"),
]


@pytest.mark.parametrize(("expression", "words"), REFUSALS)
def test_refusal(expression: str, words: str) -> None:
    with pytest.raises(ToolError) as caught:
        evaluate(expression)
    assert words in str(caught.value)


# What would take seconds to centuries, or all memory, if it were computed.
TOO_LARGE = [
    "9**9**9",
    "((9**9)**9)**9**3",
    "(10**2000)**(10**4)",
    "(1/9)**9**9",
    "9**-9**9",
    "2**10**300",
    "9**10**308",  # its size is beyond a float
    "1e1000000000",
    "1e-1000000000",
    "1e" + "9" * 900,
    "1e-" + "9" * 900,
    "9" * 310,
    "." + "0" * 309 + "1",
    "10**200 * 10**200",
    "10**200 / 10**-200",
    "(1/10**200) * (1/10**200)",
    "1/(10**200+1) + 1/(10**200+3)",
    "2**1024",
    "2**1023 + 2**1023",
]


@pytest.mark.parametrize("expression", TOO_LARGE)
def test_too_large(expression: str) -> None:
    with pytest.raises(ToolError, match="more than 308 digits"):
        evaluate(expression)


def test_largest_values_are_allowed() -> None:
    assert evaluate("2**1023") == 2**1023
    assert evaluate(str(2**MAX_BITS - 1)) == 2**MAX_BITS - 1
    assert evaluate("10**200 + 10**200") == 2 * 10**200


@pytest.mark.parametrize("expression", ["(" * 100_000 + "1", "-" * 100_000 + "1", "1" * 100_000, "1+" * 50_000 + "1"])
def test_long_expressions_are_refused_by_length(expression: str) -> None:
    with pytest.raises(ToolError, match=f"at most {MAX_CHARACTERS} are allowed"):
        evaluate(expression)


def test_nesting_is_limited_and_signs_and_siblings_do_not_nest() -> None:
    assert evaluate("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH) == 7
    with pytest.raises(ToolError, match=f"nested more than {MAX_DEPTH} deep at character {MAX_DEPTH + 1}"):
        evaluate("(" * (MAX_DEPTH + 1) + "7" + ")" * (MAX_DEPTH + 1))
    with pytest.raises(ToolError, match="nested more than"):
        evaluate("**".join(["1"] * (MAX_DEPTH + 2)))
    assert evaluate("-" * (MAX_CHARACTERS - 1) + "1") == -1
    assert evaluate("+".join(["(1)"] * (2 * MAX_DEPTH))) == 2 * MAX_DEPTH


# A value and how it is written, worked out by hand.
WRITTEN = [
    (Fraction(0), "0"),
    (Fraction(18), "18"),
    (Fraction(-7), "-7"),
    (Fraction(10**300), "1" + "0" * 300),
    (Fraction(1, 2), "0.5"),
    (Fraction(-1, 2), "-0.5"),
    (Fraction(-5, 4), "-1.25"),
    (Fraction(1, 1000), "0.001"),
    (Fraction(123456789123, 100), "1234567891.23"),
    (Fraction(1, 2**20), "0.00000095367431640625"),  # 20 places: still exact
    (Fraction(1, 2**21), "0.0000004768371582"),  # 21 places: 4.76837158203125e-07, to ten digits
    (Fraction(1, 3), "0.3333333333"),
    (Fraction(-2, 3), "-0.6666666667"),
    (Fraction(10, 3), "3.3333333333"),
    (Fraction(200, 3), "66.6666666667"),
    (Fraction(1, 300), "0.003333333333"),
    (Fraction(10**20, 3), "3" * 20 + "." + "3" * 10),
    (Fraction(299_999_999_999, 300_000_000_000), "1"),  # 0.99999999999666...
    (Fraction(1, 3 * 10**20), "3.333333333e-21"),
    (Fraction(1, 10**21), "1e-21"),
]


@pytest.mark.parametrize(("value", "text"), WRITTEN)
def test_written(value: Fraction, text: str) -> None:
    assert format_number(value) == text


def test_the_tool_takes_the_text_of_a_call() -> None:
    assert CALCULATOR.name == "calculator"
    assert CALCULATOR.inline
    session = CALCULATOR.new_session()
    assert session.call(CALCULATOR.arguments_from_text(" 16 - 3 - 4 ")) == "9"
    assert calculator("1/3") == "0.3333333333"


def written_trees() -> st.SearchStrategy[tuple[str, Fraction]]:
    """Expressions with a parenthesis around every operation, and their values by Fraction's arithmetic."""
    whole = st.integers(0, 10**6).map(lambda number: (str(number), Fraction(number)))
    grouped = st.integers(0, 10**9).map(lambda number: (f"{number:,}", Fraction(number)))
    decimals = st.decimals(0, 10**4, places=3).map(lambda number: (f"{number:f}", Fraction(number)))

    def combined(trees: st.SearchStrategy[tuple[str, Fraction]]) -> st.SearchStrategy[tuple[str, Fraction]]:
        return st.tuples(st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "neg"]), trees, trees).map(join)

    return st.recursive(whole | grouped | decimals, combined, max_leaves=12)


def join(parts: tuple[str, tuple[str, Fraction], tuple[str, Fraction]]) -> tuple[str, Fraction]:
    operator, (left_text, left), (right_text, right) = parts
    if operator == "neg":
        return f"(-{left_text})", -left
    if operator == "**":  # small whole exponents only
        exponent = int(right) % 5 if left == 0 else int(right) % 9 - 4
        return f"({left_text} ** {exponent})", left**exponent
    if operator in ("/", "//", "%") and right == 0:
        operator = "+"
    values = {"+": left + right, "-": left - right, "*": left * right}
    if right != 0:
        values |= {"/": left / right, "//": Fraction(left // right), "%": left % right}
    return f"({left_text} {operator} {right_text})", values[operator]


@given(written_trees())
def test_trees_have_their_value(tree: tuple[str, Fraction]) -> None:
    text, value = tree
    try:
        found = evaluate(text)
    except ToolError as error:
        # Limits may be met on the way, but nothing else may be wrong with such an expression.
        assert re.search(r"more than 308 digits|characters; at most|nested more than", str(error)), (text, error)
    else:
        assert found == value


@given(st.integers(1, 9), st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 9)), max_size=8))
def test_precedence_without_parentheses_is_pythons(first: int, rest: list[tuple[str, int]]) -> None:
    # Numbers become calls, so that Python reads the same operators with exact operands.
    text = str(first) + "".join(f"{operator}{number}" for operator, number in rest)
    exact = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text), {"Fraction": Fraction})  # our own text
    assert evaluate(text) == exact


@given(st.text() | st.text(alphabet="0123456789.,+-*/%()^eE= <>x", max_size=60))
def test_any_text_gives_a_number_or_a_tool_error_without_markers(text: str) -> None:
    try:
        written = calculator(text)
    except ToolError as error:
        written = str(error)
        assert "<" not in written and ">" not in written
        assert "\n" not in written
    else:
        Decimal(written)
    assert len(written) <= 400


@given(st.fractions(max_denominator=10**6))
def test_what_is_written_can_be_read_back(value: Fraction) -> None:
    written = format_number(value)
    error = abs(evaluate(written) - value)
    # Half a unit of the tenth place, or of the tenth significant digit below 1.
    assert error <= Fraction(1, 2 * 10**10)
    assert error <= abs(value) * Fraction(1, 2 * 10**9)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def gsm8k_annotations(folder: Path) -> list[str]:
    """Every ``expression=result`` of GSM8K's worked solutions."""
    rows = json_lines(folder / "train.jsonl") + json_lines(folder / "test.jsonl")
    return [found for row in rows for found in re.findall(r"<<(.*?)>>", row["answer"])]


def test_every_annotation_of_gsm8k_is_exact(shared_data: Path) -> None:
    annotations = gsm8k_annotations(shared_data / "gsm8k")
    assert (len(annotations), len(set(annotations))) == (27_998, 12_455)
    for annotation in set(annotations):
        expression, _, result = annotation.rpartition("=")
        assert evaluate(expression) == evaluate(result), annotation
        assert evaluate(calculator(annotation)) == evaluate(result), annotation


def test_hostile_expressions(shared_attacks: Path, tmp_path: Path, bounded_memory: None) -> None:
    text = (shared_attacks / "calculator.jsonl").read_text(encoding="utf-8").replace("{{NONCE}}", tmp_path.name)
    rows = [row for row in map(json.loads, text.splitlines()) if row["kind"] == "calc"]
    assert len(rows) == 40
    for row in rows:
        expect = row["expect"]
        begun_s = time.process_time()
        try:
            outcome, written = "value", calculator(row["input"])
        except ToolError as error:
            outcome, written = "reject", str(error)
        assert time.process_time() - begun_s <= expect["max_wall_s"], row["id"]
        allowed = [expect["outcome"]] if isinstance(expect["outcome"], str) else expect["outcome"]
        assert outcome in allowed, row["id"]
        assert not any(marker in written for marker in expect.get("output_excludes", ())), row["id"]
        if outcome == "value" and "value" in expect:
            assert evaluate(written) == Fraction(expect["value"]), row["id"]
        if "value_not" in expect:
            assert written != expect["value_not"], row["id"]
    assert not Path(f"/tmp/evil_{tmp_path.name}").exists()


def test_what_was_decided_where_a_corpus_may_expect_either() -> None:
    # Digits are ASCII, here and where answers are graded; nothing is multiplied without a sign.
    for expression in ("\u0664\u0662+1", "1_000+1", "2(3+4)", "sqrt(10**400+1)"):
        with pytest.raises(ToolError):
            calculator(expression)
    assert calculator("1+1=42") == "2"
