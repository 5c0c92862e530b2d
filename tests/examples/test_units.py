"""The test of a tool: the contract, and what it says."""

from forkgym.tools.checking import check_tool
from tests.examples.forkgym_example.units import convert


def test_convert() -> None:
    check_tool(convert, calls=["3 mi km", "1 km ly"])
    assert convert("3 mi km") == "4.82803 km"  # 3 * 1.609344 = 4.828032
