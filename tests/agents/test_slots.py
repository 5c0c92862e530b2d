"""The table of slots, on sequences that fit on paper."""

import numpy as np
import pytest

from forkgym.agents import slots
from forkgym.agents.slots import Floats, Ints, SlotTable, TurnPlan


def array(*tokens: int) -> Ints:
    return np.array(tokens, np.int64)


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def plan(limit: int, *uniforms: float) -> TurnPlan:
    return TurnPlan(limit, report_after=0, temperature=1.0, stop_row=0, uniforms=floats(*uniforms))


def test_two_turns_of_one_slot() -> None:
    table = SlotTable(2)
    table.begin_sequence(1, array(5, 6, 7), cached=0, source=1)
    table.begin_turn(1, plan(5, 0.5, 0.75))
    assert table.running().tolist() == [1]
    assert table.ready().tolist() == []  # two columns are missing
    table.cached[1] = 2
    assert table.ready().tolist() == [1]
    assert table.next_uniforms(array(1)).tolist() == [0.5]
    table.append(array(1), array(8), floats(-1), floats(0.5))
    assert table.next_uniforms(array(1)).tolist() == [0.75]
    table.append(array(1), array(9), floats(-2), floats(0.25))
    assert table.sampled(1) == (8, 9)
    assert table.measures(1, 2) == ((-1, -2), (0.5, 0.25))
    assert (table.length[1], table.cached[1], table.limit[1]) == (5, 4, 5)
    table.begin_sequence(1, array(5, 6, 7, 8, 9, 3), cached=4, source=1)
    table.begin_turn(1, plan(8, 0.125, 0.25))
    assert table.sampled(1) == ()
    assert table.ready().tolist() == []  # the last sampled token has no column yet


def test_shared_prefixes() -> None:
    table = SlotTable(4)
    table.begin_sequence(0, array(1, 2, 3, 4), cached=4, source=0)
    table.begin_sequence(1, array(1, 2, 9), cached=3, source=1)
    table.begin_sequence(2, array(1, 2, 3, 4, 5, 6), cached=6, source=2)
    # Slot 3 is empty: its zeros are no tokens, even where the context begins with 0.
    assert table.shared_prefixes(array(1, 2, 3, 4, 5), table.cached).tolist() == [4, 2, 5, 0]
    assert table.shared_prefixes(array(1, 2, 3, 4, 5), array(1, 1, 2, 0)).tolist() == [1, 1, 2, 0]
    assert table.shared_prefixes(array(0, 2), table.cached).tolist() == [0, 0, 0, 0]
    assert table.shared_prefixes(array(*range(1, 40)), table.cached).tolist() == [4, 2, 6, 0]


def test_stems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "WORTH_SHARING", 4)
    table = SlotTable(4)
    table.begin_sequence(0, array(1, 2, 3), cached=0, source=0)
    # Its copy has the first two columns; a third sequence shares one token with them, too few for the same stem.
    table.begin_sequence(1, array(1, 2, 3), cached=2, source=0)
    table.begin_sequence(2, array(1, 5, 6, 7), cached=1, source=0)
    assert table.stem_length.tolist() == [2, 2, 3, 0]
    assert table.stems(array(0, 1, 2)) is None  # two columns less to read, (3 slots - 2 stems) x 2
    # A branch off the second one, some tokens later, begins with the same two as well.
    table.begin_sequence(1, array(1, 2, 3, 8, 9), cached=4, source=1)
    table.begin_sequence(3, array(1, 2, 3, 8, 4), cached=4, source=1)
    stems = table.stems(array(0, 1, 2, 3))
    assert stems is not None
    assert stems.uids == (1, 2)
    assert stems.length == 2  # the third has 3, but a forward has one length
    assert stems.holders.tolist() == [0, 2]
    assert stems.stem_of_row.tolist() == [0, 0, 1, 0]


def test_a_sequence_whose_columns_were_lost_has_a_stem_of_its_own() -> None:
    table = SlotTable(2)
    table.begin_sequence(0, array(1, 2, 3), cached=0, source=0)
    table.begin_sequence(1, array(1, 2, 3), cached=2, source=0)
    table.begin_sequence(1, array(1, 2, 3, 4), cached=0, source=1)  # after new weights
    assert table.stem.tolist() == [1, 2]
    assert table.stem_length.tolist() == [2, 3]
