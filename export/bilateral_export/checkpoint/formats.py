"""What a file is, by its first bytes: a checkpoint that can be read, or what it is instead."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

Format = Literal["safetensors", "torch"]

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(safetensors|bin|pt|pth)$")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# The number that torch.save pickled first, before it wrote zip archives.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAVE_STATE_DICT = "Save model.state_dict() with torch.save or safetensors, and give that file."
_UNPACK = "Unpack it and give the checkpoint inside."

# First bytes (after white space and a byte-order mark), what such a file is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "Run `git lfs pull` where it came from.",
    ),
    (b"<!doctype html", "an HTML page", "The download failed: open its address in a browser."),
    (b"<html", "an HTML page", "The download failed: open its address in a browser."),
    (b"<?xml", "an XML document", "The download failed: read what it says."),
    (b"GGUF", "a GGUF file (llama.cpp)", "Give the checkpoint that it was converted from."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "Give PyTorch weights."),
    (b"\x93NUMPY", "a NumPy array", "Give a file of named tensors: a state_dict."),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
)
# Part of a record's name in a zip archive, what the archive is, what to do.
_FOREIGN_ARCHIVES: tuple[tuple[str, str, str], ...] = (
    (r"/code/.*\.py$|/constants\.pkl$", "a TorchScript program", _SAVE_STATE_DICT),
    (
        r"/archive_format$|serialized_exported_program\.json$",
        "an ExportedProgram (torch.export)",
        _SAVE_STATE_DICT,
    ),
    (r"\.npy$", "an archive of NumPy arrays (.npz)", _SAVE_STATE_DICT),
    (r"model\.weights\.h5$", "a Keras model", "Give PyTorch weights."),
    (r"MAR-INF/", "a TorchServe archive", _UNPACK),
)
_FOREIGN_SUFFIXES: dict[str, tuple[str, str]] = {
    ".onnx": ("an ONNX model, not a checkpoint", "Give the checkpoint that it was exported from."),
    ".msgpack": ("a Flax checkpoint", "Give PyTorch weights."),
    ".pb": ("a TensorFlow graph", "Give PyTorch weights."),
    ".index": ("a part of a TensorFlow checkpoint", "Give PyTorch weights."),
    ".tflite": ("a TensorFlow Lite model", "Give PyTorch weights."),
}
# A file in a directory, what the directory is, what to do.
_DIRECTORIES: tuple[tuple[str, str, str], ...] = (
    (
        "*.index.json",
        "a Hugging Face folder with its weights in parts",
        "Join the parts into one file first.",
    ),
    ("config.json", "a Hugging Face folder", "Give the file of weights inside it."),
    (
        ".metadata",
        "a distributed checkpoint",
        "Run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`.",
    ),
    ("saved_model.pb", "a TensorFlow model", "Give PyTorch weights."),
)


def identify(path: Path) -> Format:
    """Which reader a file needs, by its content; its name decides only where the content cannot.

    Raises:
        UserError: The file is not a checkpoint, or one in a format that is not read: the message
            names what it is.
    """
    if path.is_dir():
        for pattern, what, fix in _DIRECTORIES:
            if any(path.glob(pattern)):
                raise UserError(f"checkpoint {path} is a directory: {what}", fix)
    require_file(path, "checkpoint")
    with path.open("rb") as stream:
        head = stream.read(512)
    if part := _SHARD.search(path.name):
        raise UserError(
            f"checkpoint {path} is part {int(part[1])} of {int(part[2])}",
            "Join the parts first: load each, update one dictionary, and save that.",
        )
    if head.startswith(b"PK\x03\x04"):
        _refuse_foreign_archive(path)
        return "torch"
    if _PICKLE.match(head):
        if _TORCH_MAGIC not in head[:16]:
            raise UserError(
                f"checkpoint {path} is a pickle that torch.save did not write", _SAVE_STATE_DICT
            )
        return "torch"
    if path.suffix == ".safetensors" or head[8:].lstrip(b" ").startswith(b'{"'):
        _refuse_foreign(path, head)
        return "safetensors"
    _refuse_foreign(path, head)
    raise UserError(
        f"checkpoint {path} is truncated or not a checkpoint at all",
        "Give a .safetensors file or what torch.save wrote.",
    )


def _refuse_foreign(path: Path, head: bytes) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lowered = start.lower()
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic) or lowered.startswith(magic):
            raise UserError(f"checkpoint {path} is {what}", fix)
    if head[257:262] == b"ustar":
        raise UserError(f"checkpoint {path} is a tar archive", _UNPACK)
    if path.name.endswith(".index.json") or b'"weight_map"' in start:
        raise UserError(
            f"checkpoint {path} is an index: it lists the parts of a checkpoint",
            "Join the parts into one file first.",
        )
    if start.startswith(b"{") and path.suffix != ".safetensors":
        raise UserError(
            f"checkpoint {path} is a JSON document", "Give the weights; --model takes JSON."
        )
    if found := _FOREIGN_SUFFIXES.get(path.suffix):
        raise UserError(f"checkpoint {path} is {found[0]}", found[1])


def _refuse_foreign_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is truncated or damaged: its list of records cannot be read",
            "Copy it again and compare its size and SHA-256 with the original.",
        ) from error

    def matches(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    for pattern, what, fix in _FOREIGN_ARCHIVES:
        if matches(pattern):
            raise UserError(f"checkpoint {path} is {what}", fix)
    if not matches(r"(^|/)data\.pkl$"):
        raise UserError(
            f"checkpoint {path} is a zip archive that torch.save did not write", _UNPACK
        )
