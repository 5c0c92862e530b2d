"""The command line of every script: a frozen dataclass in, one that the user has changed out.

A script's settings are one frozen dataclass of fields, each with a default or required, and of sections, which are such
dataclasses themselves. A line of text below a field is its meaning::

    @dataclass(frozen=True)
    class Config:
        seed: int = 0
        \"\"\"Seed of everything that is drawn.\"\"\"
        trainer: TrainerConfig = TrainerConfig()

    config = parse_command_line(Config, description=__doc__)

reads ``--seed 1 --trainer.num_steps 10``, and ``--config FILE.yaml`` with the same names::

    seed: 1
    trainer:
      num_steps: 10

What the command line gives overrides the file, and the file the defaults. tyro finds the options and prints the help;
pydantic converts their values, the file's too. Imports nothing heavy, so that ``--help`` comes at once.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro
import yaml
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

COMMAND_LINE = "command line"
CONFIG_HELP = "YAML file of settings, such as a run's config.yaml; options of the command line override it."


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error of the user's into one line on stderr and exit status 2.

    A ``ValueError`` and an ``OSError`` count as such, anything else propagates. So this goes around the set-up of a
    script alone (settings, environments, agent, run folder), where these mean bad input, never around its work. With
    ``python -X dev`` they propagate too, with their traceback.

    Raises:
        SystemExit: Status 2, after such an error.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            message = f"{error.filename}: {error.strerror}"
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
        raise SystemExit(2) from error


@user_errors()
def parse_command_line(
    config_class: type[ConfigT], description: str | None = None, arguments: Sequence[str] | None = None
) -> ConfigT:
    """Read a script's settings from the command line and from the file that ``--config`` names.

    Args:
        config_class: Frozen dataclass; see the top of this file.
        description: What the script does, for ``--help``.
        arguments: Of the command line; by default this process's.

    Raises:
        SystemExit: Status 2 after an unknown name, a value of another type, one that ``__post_init__`` refuses, or an
            unreadable file, with one line on stderr; status 0 after ``--help``.
    """
    kinds = dict(_field_types(config_class))
    given = _read_options(config_class, description, sys.argv[1:] if arguments is None else arguments)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if "config" in given:
        path: str = _convert_words("config", given.pop("config"), str)
        values = dict(_file_values(_read_file(path), config_class, kinds, path))
        sources = dict.fromkeys(values, path)
    values |= {name: _convert_words(name, words, kinds[name]) for name, words in given.items()}
    sources |= dict.fromkeys(given, COMMAND_LINE)
    return _build(config_class, None, values, sources)


def config_text(config: DataclassInstance) -> str:
    """Return settings as YAML that ``--config`` reads back as equal ones."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


# The command line. A value that tyro itself cannot convert ends in a box of several lines that does not say what was
# expected. So tyro gets rules of its public interface by which every value is a list of words and every section a
# dict, and finds nothing to object to; the words are converted below.


class _Words(list[str]):
    """What the command line gives for one field."""


def _read_options(config_class: type[Any], description: str | None, arguments: Sequence[str]) -> dict[str, _Words]:
    """Return the words of every field that the command line names, by its dotted name; print the help if asked to."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if is_dataclass(info.type):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=_metavar(info.type),
            instance_from_str=_Words,
            is_instance=lambda value: True,
            str_from_instance=_default_words,
        )

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type):
            return None
        option_fields = _option_fields(info.type, info.default)
        if info.type is config_class:
            option_fields = (StructFieldSpec("config", str, None, CONFIG_HELP), *option_fields)

        def section(**values: Any) -> dict[str, Any]:
            return values

        section.__doc__ = info.type.__doc__
        return StructConstructorSpec(section, option_fields)

    parsed, unknown = tyro.cli(
        cast(type[dict[str, Any]], config_class),
        description=description,
        args=arguments,
        return_unknown_args=True,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
        registry=registry,
    )
    if unknown:
        raise ValueError(_unknown_option(unknown, [name for name, _ in _field_types(config_class)]))
    return {name: value for name, value in _flatten(parsed) if isinstance(value, _Words)}


def _option_fields(config_class: type[DataclassInstance], default: Any) -> tuple[StructFieldSpec, ...]:
    from docstring_parser import parse_from_object  # reads the source, which only the help needs... 

    hints = get_type_hints(config_class)
    meanings = {entry.arg_name: entry.description for entry in parse_from_object(config_class).params}
    return tuple(
        StructFieldSpec(field.name, hints[field.name], _default(field, default), meanings.get(field.name))
        for field in fields(config_class)
    )
