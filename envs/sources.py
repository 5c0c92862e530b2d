"""Rows of data from a local file, a local folder or the Hugging Face hub, checked against a record."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from pydantic import AliasChoices, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(?::[\w.-]+)?", re.ASCII)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_LIST: TypeAdapter[list[Any]] = TypeAdapter(list[Any])

RowT = TypeVar("RowT", bound=BaseModel)


class DataError(ValueError):
    """Data that cannot be used: one line that names the value, where it came from and what was expected."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        hub: The name on the hub that is read where no path is given.
        config: Its configuration.
        split: The split of a folder or of a name on the hub; a file has none.
        path: A ``.jsonl``, ``.json`` or ``.parquet`` file, a folder that ``datasets`` can read, or another name on the
            hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``.
    """

    hub: str
    config: str | None
    split: str
    path: str | None = None

    def local(self) -> Path | None:
        """The local file or folder, or None for a name on the hub.

        Raises:
            DataError: There is no such file or folder, and the path is no name on the hub.
        """
        if self.path is None:
            return None
        path = Path(self.path).expanduser()
        if self.path and path.exists():
            return path.resolve()
        if HUB_NAME.fullmatch(self.path) and not path.suffix[1:].isalpha():
            return None
        raise DataError(
            f"{self.path!r}: no such file or folder; expected a file ({', '.join(FILE_SUFFIXES)}), a folder, "
            "or OWNER/NAME on the Hugging Face hub"
        )

    def hub_name(self) -> tuple[str, str | None]:
        """The name on the hub and its configuration."""
        name, _, config = (self.path or self.hub).partition(":")
        return name, config or (self.config if name == self.hub else None)

    def version(self) -> tuple[int, int] | None:
        """What tells versions of a local file apart, its time and size; None for anything else.

        Raises:
            DataError: See ``local``.
        """
        path = self.local()
        if path is None or not path.is_file():
            return None
        status = path.stat()
        return status.st_mtime_ns, status.st_size


class LazyRows(Sequence[RowT], Generic[RowT]):
    """Rows that are read, checked and made records of one at a time: a hub's table of 90,000 rows opens at once."""

    def __init__(self, table: Sequence[Any], record: type[RowT], name: str) -> None:
        self.table = table
        self.record = record
        self.name = name

    @overload
    def __getitem__(self, index: int) -> RowT: ...

    @overload
    def __getitem__(self, index: slice) -> list[RowT]: ...

    def __getitem__(self, index: int | slice) -> RowT | list[RowT]:
        """Return a row as a record.

        Raises:
            DataError: The row is not as expected.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._check(index, self.table[index])

    def __iter__(self) -> Iterator[RowT]:
        """Read all rows in order, which tables do faster than one by one.

        Raises:
            DataError: A row is not as expected.
        """
        return (self._check(index, row) for index, row in enumerate(self.table))

    def _check(self, index: int, row: Any) -> RowT:
        try:
            return self.record.model_validate(row)
        except ValidationError as error:
            raise bad_row(f"{self.name}, row {index}", error, self.record) from error

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)


def load_rows(source: Source, record: type[RowT]) -> Sequence[RowT]:
    """Read the rows of a source, at least one.

    A local file is checked whole. Of a data set of the hub the columns and the first row are checked here, and each
    further row when it is read.

    Raises:
        DataError: There is no such source, it cannot be read or reached, has no rows, or has rows without an expected
            column or with a value of an unexpected type.
    """
    path = source.local()
    rows: Sequence[RowT]
    if path is not None and path.suffix in (".jsonl", ".json"):
        name = str(path)
        rows = read_json(path, record)
    else:
        name, table = load_table(source, path)
        missing = [names[0] for names in required_columns(record) if set(names).isdisjoint(table.column_names)]
        if missing:
            raise DataError(f"{name}: no column {missing[0]!r} among {table.column_names}; {expected(record)}")
        rows = LazyRows(table, record, name)
    if not rows:
        raise DataError(f"{name}: the dataset is empty, expected at least one row")
    if path is not None and isinstance(rows, LazyRows):
        return list(rows)
    _ = rows[0]  # so that a column of a wrong type is found before the first episode
    return rows


def read_json(path: Path, record: type[RowT]) -> list[RowT]:
    """Read JSON Lines, or a JSON list of rows."""
    try:
        content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected a JSON file") from error
    return list(json_lines(content, path, record) if path.suffix == ".jsonl" else json_list(content, path, record))


def json_lines(content: bytes, path: Path, record: type[RowT]) -> Iterator[RowT]:
    """Yield the row of each line that is not blank."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                raise bad_row(f"{path}, line {number}", error, record) from error


def json_list(content: bytes, path: Path, record: type[RowT]) -> Iterator[RowT]:
    """Yield the rows of one list."""
    try:
        rows = JSON_LIST.validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path}: {error.errors(include_url=False)[0]['msg']}; expected a list of rows") from error
    for index, row in enumerate(rows):
        try:
            yield record.model_validate(row)
        except ValidationError as error:
            raise bad_row(f"{path}, row {index}", error, record) from error


def load_table(source: Source, path: Path | None) -> tuple[str, Any]:
    """Open a parquet file, a folder or a name on the hub; return what messages call it, and the table."""
    import datasets  # here, because it takes a second to import and generated tasks do not need it
    from datasets.exceptions import DatasetsError

    arguments: dict[str, Any]
    if path is not None and path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{path}: the name ends in {path.suffix!r}, expected {', '.join(FILE_SUFFIXES)}")
        name = str(path)
        arguments = {"path": "parquet", "data_files": str(path), "split": "train"}
    elif path is not None:
        name = f"{path}, split {source.split!r}"
        arguments = {"path": str(path), "split": source.split}
    else:
        hub, config = source.hub_name()
        name = f"{hub}, split {source.split!r}, on the Hugging Face hub"
        arguments = {"path": hub, "name": config, "split": source.split}
    try:
        table = cast(Any, datasets).load_dataset(**arguments)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{name}: cannot be loaded: {reason}; expected a dataset, or the path of one") from error
    return name, table


def required_columns(record: type[BaseModel]) -> list[tuple[str, ...]]:
    """The columns that a record cannot do without: the names that each of them may have."""
    return [column_names(name, field) for name, field in record.model_fields.items() if field.is_required()]


def column_names(name: str, field: FieldInfo) -> tuple[str, ...]:
    """The names that a field's column may have: the field's own, or its aliases."""
    match field.validation_alias:
        case None:
            return (name,)
        case AliasChoices(choices=choices):
            return tuple(choice for choice in choices if isinstance(choice, str))
        case alias:
            return (str(alias),)


def expected(record: type[BaseModel]) -> str:
    """Say which columns a record needs."""
    return f"expected the columns {', '.join(' or '.join(names) for names in required_columns(record))}"


def bad_row(where: str, error: ValidationError, record: type[BaseModel]) -> DataError:
    """Say in one line what is wrong with a row: the first problem is enough."""
    problem = error.errors(include_url=False)[0]
    column = ".".join(map(str, problem["loc"]))
    found = "" if problem["type"] in ("missing", "json_invalid") else f", found {reprlib.repr(problem['input'])}"
    message = problem["msg"].removeprefix("Value error, ")
    return DataError(f"{where}: {column}{': ' if column else ''}{message}{found}; {expected(record)}")
