"""The command line of every script.

A script's settings are one frozen dataclass of fields and of sections, which are such dataclasses themselves; the text
below a field is its meaning::

    @dataclass(frozen=True)
    class Config:
        seed: int = 0
        \"\"\"Seed of everything that is drawn.\"\"\"
        trainer: TrainerConfig = field(default_factory=TrainerConfig)

    config = parse_command_line(Config, description=__doc__)

That reads ``--seed 1 --trainer.num_steps 10``, and ``--config FILE.yaml`` with the same names::

    seed: 1
    trainer:
      num_steps: 10

The command line overrides the file, and the file the defaults. tyro finds the options and prints the help; nothing
heavy is imported, so that it comes at once.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, TypeVar, cast, get_type_hints

import tyro
import yaml
from docstring_parser import parse_from_object
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from forkgym.trainers.commands.conversion import convert_words, convert_yaml, expected, metavar, shown, words_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

COMMAND_LINE = "command line"
CONFIG_MEANING = "YAML file of settings, such as a run's config.yaml; the command line overrides it."


@contextmanager
def user_errors() -> Generator[None, None, None]:
    """Turn an error of the user's into one line on stderr and exit status 2.

    A ``ValueError`` or ``OSError`` counts as such, anything else propagates. So this goes around the set-up of a script
    (settings, environments, agent, run folder), where these mean bad input, and never around its work. Under
    ``python -X dev`` they propagate as well, with their traceback.

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


@dataclass(frozen=True, slots=True)
class _Setting:
    value: Any
    source: str  # the command line or a file's name, for messages


@user_errors()
def parse_command_line(
    config_class: type[ConfigT], description: str | None = None, arguments: Sequence[str] | None = None
) -> ConfigT:
    """Read a script's settings from the command line, and from the file that its ``--config`` names.

    Args:
        config_class: Frozen dataclass, as at the top of this file.
        description: What the script does, for ``--help``.
        arguments: Of the command line; by default this process's.

    Raises:
        SystemExit: Status 0 after ``--help``. Status 2, with one line on stderr, after an unknown name, a value that is
            of another type or that a ``__post_init__`` refuses, or a file that can't be read.
    """
    kinds = {"config": str, **dict(_leaves(config_class))}
    given: dict[str, Any] = {}
    for name, words in _read_options(config_class, description, sys.argv[1:] if arguments is None else arguments):
        with _after(f"{COMMAND_LINE}: --{name} is"):
            given[name] = convert_words(words, kinds[name])
    settings: dict[str, _Setting] = {}
    if "config" in given:
        path = str(given.pop("config"))
        settings |= _convert_mapping(_read_yaml(path), config_class, path)
    settings |= {name: _Setting(value, COMMAND_LINE) for name, value in given.items()}
    return _build(config_class, None, settings)


# Options. A value that tyro cannot convert ends in a box of several lines, which does not say what was expected. So
# tyro gets rules, through its public interface, by which every value is a list of words and every section a dict: it
# finds nothing to object to, and the words are converted by the same means as the values of a file.


class _Words(list[str]):
    """What the command line gives for one field."""


def _read_options(
    config_class: type[DataclassInstance], description: str | None, arguments: Sequence[str]
) -> Iterator[tuple[str, _Words]]:
    """Yield the fields that the command line names, or print the help and exit where it asks for that."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def read_words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind = cast(object, info.type)
        if _is_section(kind):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar(kind),
            instance_from_str=_Words,
            is_instance=lambda value: True,
            str_from_instance=words_of,
        )

    @registry.struct_rule
    def read_section(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind = cast(object, info.type)
        if not _is_section(kind):
            return None
        options = list(_options(kind, info.default if isinstance(info.default, kind) else None))
        if kind is config_class:
            file: Any = Annotated[str | None, tyro.conf.arg(metavar="FILE.yaml", help_behavior_hint="(optional)")]
            options.insert(0, StructFieldSpec("config", file, None, CONFIG_MEANING))

        def section(**values: Any) -> dict[str, Any]:
            return values

        section.__doc__ = kind.__doc__  # the help shows it
        return StructConstructorSpec(section, tuple(options))

    parsed, unknown = tyro.cli(
        cast(type[dict[str, Any]], config_class),
        prog=Path(sys.argv[0]).name,  # tyro does not fold the usage, so a folder would make it as wide as its path
        description=_wrapped(description or ""),
        args=arguments,
        return_unknown_args=True,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
        registry=registry,
    )
    if unknown:
        raise ValueError(f"{COMMAND_LINE}: {_unknown_option(unknown[0], [name for name, _ in _leaves(config_class)])}")
    yield from _given(parsed)


def _options(config_class: type[DataclassInstance], instance: object | None) -> Iterator[StructFieldSpec]:
    """Yield what the help says of each field of a section.

    Args:
        config_class: The section.
        instance: Has the defaults; by default the class itself.
    """
    kinds = get_type_hints(config_class)
    for field in fields(config_class):
        kind, default = kinds[field.name], _default(field, instance)
        if _is_section(kind):
            default = tyro.MISSING_NONPROP if default is MISSING else default
        elif default is MISSING:  # None, so that tyro does not ask for what the file may have
            kind, default = Annotated[kind | None, tyro.conf.arg(help_behavior_hint="(required)")], None
        elif default is None:  # the meaning says what holds then
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="(optional)")]
        yield StructFieldSpec(field.name, cast(Any, kind), default, _meanings(config_class).get(field.name))


@cache
def _meanings(config_class: type[DataclassInstance]) -> Mapping[str, str]:
    documented = parse_from_object(config_class).params
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in documented}


def _wrapped(description: str) -> str:
    """Fit paragraphs into the terminal, but for indented ones; tyro keeps only the line breaks before a space."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = textwrap.dedent(description).strip().split("\n\n")
    filled = [text if text.startswith(" ") else textwrap.fill(text, width) for text in paragraphs]
    return textwrap.indent("\n".join(filled), "  ")


def _given(parsed: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, _Words]]:
    for name, value in parsed.items():
        if isinstance(value, _Words):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _given(cast(dict[str, Any], value), f"{prefix}{name}.")


def _unknown_option(word: str, names: Sequence[str]) -> str:
    if not word.startswith("--"):
        return f"{word!r} belongs to no option, expected --NAME VALUE; --help lists the names"
    name = word[2:].partition("=")[0]
    near = " or ".join(f"--{other}" for other in _near(name, names))
    hint = f"did you mean {near}?" if near else "--help lists what there is"
    if any(other.startswith(f"{name}.") for other in names):
        hint = f"expected --{name}.FIELD VALUE"
    return f"there is no option --{name}; {hint}"


# Files.


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> Mapping[Any, Any]:
    """Read a file of names and values.

    Raises:
        ValueError: It can't be read, or isn't such a file.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{COMMAND_LINE}: --config is {path!r}, expected a YAML file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8, expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{path}: {place}not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds {shown(data)}, expected names and values, such as 'seed: 1'")
    return cast(Mapping[Any, Any], data)


def _convert_mapping(
    data: Mapping[Any, Any], config_class: type[DataclassInstance], path: str, prefix: str = ""
) -> dict[str, _Setting]:
    """Convert what a file gives, by the dotted name of each field.

    Raises:
        ValueError: A name is unknown, or a value not of its field's type.
    """
    kinds = get_type_hints(config_class)
    settings: dict[str, _Setting] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            near = " or ".join(_near(name, [f"{prefix}{other}" for other in kinds]))
            hint = f"did you mean {near}?" if near else f"expected one of {', '.join(kinds)}"
            raise ValueError(f"{path}: there is no field {name}; {hint}")
        section = kinds[key]
        if not _is_section(section):
            with _after(f"{path}: {name} is"):
                settings[name] = _Setting(convert_yaml(value, section), path)
        elif isinstance(value, dict):
            settings |= _convert_mapping(cast(Mapping[Any, Any], value), section, path, f"{name}.")
        elif value is not None:  # None: every line of the section is commented out
            own = ", ".join(get_type_hints(section))
            raise ValueError(f"{path}: {name} is {shown(value)}, expected fields of its own: {own}")
    return settings


# Configs.


def _build(
    config_class: type[ConfigT], instance: ConfigT | None, settings: Mapping[str, _Setting], prefix: str = ""
) -> ConfigT:
    """Make a config of the values that were given, and of an instance's or the class's own where none were.

    Raises:
        ValueError: A required value is missing, or a ``__post_init__`` refuses one.
    """
    kinds = get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in fields(config_class):
        name, kind = f"{prefix}{field.name}", kinds[field.name]
        default = _default(field, instance)
        if _is_section(kind):
            values[field.name] = _build(kind, None if default is MISSING else default, settings, f"{name}.")
        elif name in settings:
            values[field.name] = settings[name].value
        elif default is MISSING:
            raise ValueError(f"{COMMAND_LINE}: --{name} is missing, expected {expected(kind)}")
    try:
        return config_class(**values) if instance is None else replace(instance, **values)
    except ValueError as error:
        own = {name: setting.source for name, setting in settings.items() if name.startswith(prefix)}
        named = {name: own[name] for name in own if re.search(rf"(?<![\w.]){re.escape(name)}(?!\.?\w)", str(error))}
        sources = " and ".join(dict.fromkeys((named or own).values()))
        raise ValueError(f"{sources}: {error}" if sources else str(error)) from error


# Fields.


def _is_section(kind: object) -> TypeGuard[type[DataclassInstance]]:
    return isinstance(kind, type) and is_dataclass(kind)


def _leaves(config_class: type[DataclassInstance], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of every field that is no section."""
    kinds = get_type_hints(config_class)
    for field in fields(config_class):
        if _is_section(kinds[field.name]):
            yield from _leaves(kinds[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", kinds[field.name]


def _default(field: Field[Any], instance: object | None) -> Any:
    """Return a field's value in an instance, else its default, else MISSING."""
    if instance is not None:
        return getattr(instance, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _near(name: str, names: Sequence[str]) -> list[str]:
    """Return the names that a wrong one may stand for: those with the same last part, else the one most like it."""
    section, _, last = name.rpartition(".")
    same_last = [other for other in names if other.rpartition(".")[2] == last]
    if same_last:
        return same_last
    for among in ([other for other in names if other.rpartition(".")[0] == section], names):
        by_last = {other.rpartition(".")[2]: other for other in among}
        close = get_close_matches(last, by_last, n=1)
        if close:
            return [by_last[close[0]]]
    return []


@contextmanager
def _after(place: str) -> Generator[None, None, None]:
    """Say in a ValueError's message where the value stands."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place} {error}") from error
