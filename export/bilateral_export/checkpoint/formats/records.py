"""The records of a zip archive that `torch.save` wrote, checked before anything is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import torch

from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.errors import UserError

# A record with this attribute is a directory to torch, which leaves its tensor uninitialised, and a
# file to Python: one flipped bit.
_DIRECTORY = 0x10


def check_records(path: Path) -> int:
    """Check that no record is compressed and that each has the bytes its checksum was taken of.

    `torch.save` never compresses; a compressed record may be thousands of times larger than the
    file. Reads the file once, a record at a time.

    Returns:
        Pickle's protocol, by which the first record is written.

    Raises:
        UserError: A record is compressed, encrypted or stored twice, is larger than the file, or
            differs from its CRC-32; the message names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_sizes(path, records)
            # Where torch.serialization.set_crc32_options(False) was called, all of them are 0.
            if any(record.CRC for record in records):
                _check_sums(path, {record.filename: record.CRC for record in records})
            pickled = next(r for r in records if r.filename.endswith("data.pkl"))
            with archive.open(pickled) as stream:
                start = stream.read(2)
            return start[1] if len(start) == 2 and start[0] == 0x80 else 0
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(path, printable(error)) from error


def _check_sizes(path: Path, records: list[zipfile.ZipInfo]) -> None:
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise UserError(
                f"checkpoint {path} has a compressed record ({printable(record.filename)}), which"
                " torch.save never writes: refused",
                "Load it in your training code and save it again with torch.save.",
            )
        if record.external_attr & _DIRECTORY:
            raise _damaged(path, printable(record.filename))
    if len({record.filename for record in records}) < len(records):
        raise _damaged(path, "a record is there twice")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise _damaged(path, "its records overlap")


def _check_sums(path: Path, expected: Mapping[str, int]) -> None:
    """Compare what torch reads with the checksums; another reader need not read the same."""
    reader = torch._C.PyTorchFileReader(str(path))
    folder = next(iter(expected)).partition("/")[0]
    names = {f"{folder}/{name}": name for name in reader.get_all_records()}
    if names.keys() != expected.keys():
        raise _damaged(path, "the list of records")
    for full, name in names.items():
        if crc32(reader.get_record(name)) != expected[full]:
            raise _damaged(path, printable(full))


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"checkpoint {path} is damaged: {what} is not what was saved",
        "Copy it again and compare its size and SHA-256 with the original.",
    )
