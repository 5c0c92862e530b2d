"""The table of slots, on sequences that fit on paper."""

import numpy as np

from forkgym.agents.slots import Floats, Ints, SlotTable, TurnPlan


def array(*tokens: int) -> Ints:
    return np.array(tokens, np.int64)


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def plan(limit: int, *uniforms: float) -> TurnPlan:
    return TurnPlan(limit, report_after=0, temperature=1.0, stop_row=0, uniforms=floats(*uniforms))


def test_two_turns_of_one_slot() -> None:
    table = SlotTable(2)
    table.begin_sequence(1, array(5, 6, 7), cached=0)
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
    table.begin_sequence(1, array(5, 6, 7, 8, 9, 3), cached=4)
    table.begin_turn(1, plan(8, 0.125, 0.25))
    assert table.sampled(1) == ()
    assert table.ready().tolist() == []  # the last sampled token has no column yet


def test_shared_prefixes() -> None:
    table = SlotTable(4)
    table.begin_sequence(0, array(1, 2, 3, 4), cached=4)
    table.begin_sequence(1, array(1, 2, 9), cached=3)
    table.begin_sequence(2, array(1, 2, 3, 4, 5, 6), cached=6)
    # Slot 3 is empty: its zeros are no tokens, even where the context begins with 0.
    assert table.shared_prefixes(array(1, 2, 3, 4, 5), table.cached).tolist() == [4, 2, 5, 0]
    assert table.shared_prefixes(array(1, 2, 3, 4, 5), array(1, 1, 2, 0)).tolist() == [1, 1, 2, 0]
    assert table.shared_prefixes(array(0, 2), table.cached).tolist() == [0, 0, 0, 0]
    assert table.shared_prefixes(array(*range(1, 40)), table.cached).tolist() == [4, 2, 6, 0]
