"""The plan of an output folder: which items each part holds, written before anything is scored.

Each item is in one chunk, and each chunk becomes one part whose name it determines. A part is
written whole, under that name, by whoever scores the chunk: a retried one, or one of a driver that
was killed, replaces it by the same rows. So however a run ends, and however often it is started
again, the parts hold one row for each item.

A run that finds new items adds a file to the plan and changes none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors
from bilateral_serving.scoring.items import Item

FOLDER = "_plan"
# Names as bytes: a file's need not be UTF-8.
SCHEMA = pa.schema([("path", pa.binary()), ("table", pa.binary()), ("row", pa.int64())])
SMALLEST_PART, LARGEST_PART = 64, 1000
_LEAST_PARTS = 32  # smaller parts where there are few items, so that all workers have some
_GROUPS = 200  # parts in one file of the plan: a Parquet file's footer is read whole


@dataclass(frozen=True)
class Chunk:
    """The items of one part: a row group of a file of the plan."""

    file: int
    group: int

    @property
    def part(self) -> str:
        """The name of its part."""
        return f"part-{self.file:04}-{self.group:06}.parquet"

    def read(self, folder: Path) -> list[Item]:
        """Return its items."""
        table = pq.ParquetFile(_path(folder, self.file)).read_row_group(self.group)
        return [
            Item(os.fsdecode(row["path"]), os.fsdecode(row["table"]), row["row"])
            for row in table.to_pylist()
        ]


@dataclass(frozen=True)
class Plan:
    """All chunks of an output folder.

    Attributes:
        folder: The output folder.
        chunks: In order.
        sizes: Items of each.
    """

    folder: Path
    chunks: tuple[Chunk, ...]
    sizes: tuple[int, ...]

    def pending(self) -> list[tuple[Chunk, int]]:
        """Return the chunks, and their sizes, whose parts are missing or not whole."""
        return [
            (chunk, size)
            for chunk, size in zip(self.chunks, self.sizes, strict=True)
            if _rows(self.folder / chunk.part) != size
        ]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is made, and clear what a killed run left in it.

    Raises:
        UserError: Another run holds it, or the folder cannot be written.
    """
    with disk_errors(folder):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / FOLDER / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another run is writing {folder}", "Wait for it, or choose another folder."
            ) from error
        clear(folder)
        try:
            yield
        finally:
            clear(folder)
    finally:
        os.close(lock)


def clear(folder: Path) -> None:
    """Remove what writers left that were killed."""
    for left in (*folder.glob(".partial-*"), *(folder / FOLDER).glob(".partial-*")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def read_plan(folder: Path) -> Plan:
    """Return the plan of an output folder, empty where there is none yet."""
    chunks, sizes = [], []
    for number in itertools.count():
        if not _path(folder, number).exists():
            break
        about = pq.read_metadata(_path(folder, number))
        for group in range(about.num_row_groups):
            chunks.append(Chunk(number, group))
            sizes.append(about.row_group(group).num_rows)
    return Plan(folder, tuple(chunks), tuple(sizes))


def extend_plan(plan: Plan, items: Iterable[Item], limit: int | None = None) -> Plan:
    """Return a plan that has all these items, written to its folder.

    Paths are distinguished by 128 bits of their BLAKE2b hash, about 100 bytes of memory an item.

    Args:
        plan: As read.
        items: Those wanted; a path that is there already, or comes again, is one item.
        limit: How many of the items to look at; None: all.
    """
    new = _unseen(itertools.islice(items, limit), set(_planned(plan)))
    first = list(itertools.islice(new, LARGEST_PART * _LEAST_PARTS))
    if not first:
        return plan
    size = min(LARGEST_PART, max(SMALLEST_PART, -(-len(first) // _LEAST_PARTS)))
    rest = itertools.chain(first, new)
    for number in itertools.count(1 + max((chunk.file for chunk in plan.chunks), default=-1)):
        file = list(itertools.islice(rest, size * _GROUPS))
        if not file:
            break
        columns = (
            [os.fsencode(item.path) for item in file],
            [os.fsencode(item.table) for item in file],
            [item.row for item in file],
        )
        with written(_path(plan.folder, number)) as temporary:
            table = pa.table(list(columns), schema=SCHEMA)
            pq.write_table(table, temporary, row_group_size=size, compression="zstd")
    _to_disk(plan.folder / FOLDER)  # no part may be there without its plan
    return read_plan(plan.folder)


@contextlib.contextmanager
def written(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `target`, whose content is on the disk then.

    Unlike `files.atomic_file`: what has its name is whole after a power cut, too.
    """
    temporary = target.parent / f".partial-{secrets.token_hex(8)}-{target.name}"
    with disk_errors(target):
        try:
            yield temporary
            _to_disk(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _unseen(items: Iterable[Item], known: set[bytes]) -> Iterator[Item]:
    for item in items:
        key = _key(item.path)
        if key not in known:
            known.add(key)
            yield item


def _planned(plan: Plan) -> Iterator[bytes]:
    for number in sorted({chunk.file for chunk in plan.chunks}):
        for batch in pq.ParquetFile(_path(plan.folder, number)).iter_batches(columns=["path"]):
            yield from (_key(os.fsdecode(path)) for path in batch.column("path").to_pylist())


def _key(path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(path), digest_size=16).digest()


def _path(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:04}.parquet"


def _rows(part: Path) -> int:
    """Return how many rows a part has; -1 where it is missing or damaged."""
    try:
        return int(pq.read_metadata(part).num_rows)
    except (OSError, pa.ArrowException):
        return -1
