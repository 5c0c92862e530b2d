"""Settings that do something only beside certain others, and are refused elsewhere. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ABOVE_0 = "a number above 0"


@dataclass(frozen=True, slots=True)
class Use:
    """Where a setting does something.

    Attributes:
        setting: Its full name.
        chooser: Full name of the setting that decides.
        values: Of the chooser, beside which the setting does something; `ABOVE_0` for any such number.
        off: The value by which the setting asks for nothing; None where that is its default alone.
    """

    setting: str
    chooser: str
    values: tuple[str, ...]
    off: object = None


def check_uses(
    uses: Sequence[Use], sections: Mapping[str, object], chosen: Mapping[str, str | float], algorithm: str
) -> None:
    """Refuse settings that were changed where they do nothing.

    Args:
        uses: Of the settings that are looked at.
        sections: By name, the config that the settings are fields of.
        chosen: What holds for each chooser, be it given or the algorithm's own.
        algorithm: Its name, for the message: it may be what was changed.

    Raises:
        ValueError: A setting is neither at its default nor off; says beside what it would do something.
    """
    for use in uses:
        section, _, field = use.setting.rpartition(".")
        value, default = getattr(sections[section], field), getattr(type(sections[section]), field)
        found = chosen[use.chooser]
        serves = found in use.values if isinstance(found, str) else found > 0
        if not serves and value not in (default, use.off):
            expected = shown(default if use.off is None else use.off)
            raise ValueError(
                f"{use.setting} is {shown(value)}, expected {expected} with {use.chooser} {found} (trainer.algorithm "
                f"{algorithm}): leave it out, or choose {' or '.join(use.values)} there"
            )


def shown(value: object) -> str:
    """A value as it is written in a file of settings or on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
