"""What is scored: the files of a folder, a glob or a list, and the rows of Parquet files."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEXTS = (".txt",)
LISTS = (".txt", ".lst", ".list")
_ROWS = 65_536


@dataclass(frozen=True)
class Item:
    """One thing to score.

    Attributes:
        path: Its name in the output: the file, or what the row says, or the row's place.
        table: The Parquet file that holds its content; "" where `path` is the file itself.
        row: Its row there.
    """

    path: str
    table: str = ""
    row: int = 0


@dataclass(frozen=True)
class Source:
    """Where items come from.

    Attributes:
        data: A folder, a glob, a Parquet file or a folder of them, or a text file of one path a
            line.
        column: The Parquet column with the items' paths, their names in the output.
        content: The Parquet column with the files' bytes, or the texts; "" where `column` names
            files.
        where: Which rows of Parquet files, as pandas' `DataFrame.query` reads it; "": all.
    """

    data: str
    column: str = "path"
    content: str = ""
    where: str = ""


def list_items(source: Source, endings: Sequence[str]) -> Iterator[Item]:
    """Yield the items of a source, in an order that does not depend on the file system.

    Relative paths are of the directory of the list or Parquet file that holds them.

    Args:
        source: Where they come from.
        endings: Of the files to take in a folder.

    Raises:
        UserError: It does not exist, has no such column, or the condition cannot be read.
    """
    path = Path(source.data)
    if has_magic(source.data) and not path.exists():
        files = sorted(iglob(source.data, recursive=True))  # noqa: PTH207
        if files and all(file.endswith(".parquet") for file in files):
            yield from _parquet([Path(file) for file in files], source)
        else:
            _refuse_where(source)
            yield from (Item(os.path.abspath(f)) for f in files if os.path.isfile(f))  # noqa: PTH100, PTH113
    elif path.is_dir():
        tables = sorted(path.glob("*.parquet"))
        if tables:
            yield from _parquet(tables, source)
        else:
            _refuse_where(source)
            yield from _folder(os.path.abspath(path), tuple(endings))  # noqa: PTH100
    elif path.suffix == ".parquet":
        yield from _parquet([require_file(path, "data")], source)
    elif path.suffix in LISTS or not path.exists():
        _refuse_where(source)
        yield from _list(require_file(path, "data"))
    else:
        _refuse_where(source)
        yield Item(os.path.abspath(path))  # noqa: PTH100


def _folder(folder: str, endings: tuple[str, ...], above: tuple[str, ...] = ()) -> Iterator[Item]:
    """Yield the files below a folder; one directory's entries are held at a time.

    Links are followed, but for those to a directory that they lie in. A link to nothing is an item,
    whose row says so; a pipe or a device is none, since reading it may never end.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _folder(entry.path, endings, (*above, real))
        elif entry.name.lower().endswith(endings) and (entry.is_file() or entry.is_symlink()):
            yield Item(entry.path)


def _list(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield Item(_absolute(path, name))


def _parquet(tables: Sequence[Path], source: Source) -> Iterator[Item]:
    for path in tables:
        require_file(path, "data")
        try:
            table = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise UserError(f"{path} is not a Parquet file: {error}") from error
        columns = _columns(path, table, source)
        start, file = 0, os.path.abspath(path)  # noqa: PTH100
        for batch in table.iter_batches(_ROWS, columns=columns):
            rows = _chosen(batch, source, path)
            names = batch.column(source.column) if source.column in columns else None
            for row in rows:
                name = None if names is None else names[row].as_py()
                if source.content:
                    yield Item(str(name or f"{file}#{start + row}"), file, start + row)
                else:
                    yield Item(_absolute(path, str(name or "")))
            start += batch.num_rows


def _columns(path: Path, table: pq.ParquetFile, source: Source) -> list[str]:
    """Return the columns to read: the names, and what the condition is about."""
    known = table.schema_arrow.names
    needed = source.content or source.column
    if needed not in known:
        raise UserError(
            f"{path} has no column '{needed}'",
            f"It has {', '.join(known)}; name one with --column or --content.",
        )
    try:
        asked = {node.id for node in ast.walk(ast.parse(source.where)) if hasattr(node, "id")}
    except SyntaxError:
        asked = set(known)  # backquoted names; pandas judges the rest
    return [name for name in known if name in {source.column, *asked}]


def _chosen(batch: pa.RecordBatch, source: Source, path: Path) -> Sequence[int]:
    if not source.where:
        return range(batch.num_rows)
    try:
        found = batch.to_pandas().query(source.where, engine="python").index
    except Exception as error:  # pandas, Python's parser and the columns' own types raise anything
        raise UserError(
            f"--where {source.where!r} cannot be asked of {path}: {error}",
            """Write it as pandas' query reads it: "split == 'train' and width > 100".""",
        ) from error
    return [int(row) for row in found]


def _refuse_where(source: Source) -> None:
    if source.where:
        raise UserError(
            f"--where needs columns, and {source.data} has none",
            "Give Parquet files, or no --where.",
        )


def _absolute(table: Path, name: str) -> str:
    return os.path.normpath(os.path.join(os.path.abspath(table.parent), name))  # noqa: PTH100, PTH118
