"""What a file is, by its first bytes: a checkpoint that can be read, or what it is instead."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Literal

from bilateral_export.checkpoint.formats.folder import INDEX, WEIGHTS, weights_in
from bilateral_export.errors import UserError
from bilateral_export.files import require_file

Format = Literal["safetensors", "torch", "folder"]

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(safetensors|bin|pt|pth)$")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# The number that torch.save pickled first, before it wrote zip archives.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAVE_STATE_DICT = "Save model.state_dict() with torch.save or safetensors, and give that file."
_UNPACK = "Unpack it and give the checkpoint inside."
_GIVE_PYTORCH = "Give PyTorch weights."
_JOIN = "Join the parts, or give the folder that has all of them and their index."
_ONNX = "an ONNX model, not a checkpoint"

# First bytes (after a byte-order mark and white space), what such a file is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "Run `git lfs pull` where it came from.",
    ),
    (rb"<!doctype html|<html", "an HTML page", "The download failed: open its address."),
    (rb"<\?xml", "an XML document", "The download failed: read what it says."),
    (rb"GGUF", "a GGUF file (llama.cpp)", "Give the checkpoint that it was converted from."),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _GIVE_PYTORCH),
    (rb"\x93NUMPY", "a NumPy array", "Give a file of named tensors: a state_dict."),
    # Fields of ONNX's ModelProto: the IR's version, then a text or the graph.
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]", _ONNX, "Give the checkpoint it was made from."),
    # A msgpack map whose first key is a short text.
    (rb"[\x81-\x8f\xde][\xa1-\xbf]", "a Flax checkpoint (msgpack)", _GIVE_PYTORCH),
    (rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh|7z\xbc\xaf", "a compressed archive", _UNPACK),
    (rb"(?s:.{257})ustar", "a tar archive", _UNPACK),
    (rb"\{", "a JSON document", "Give the weights; --model takes JSON."),
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
    (r"model\.weights\.h5$", "a Keras model", _GIVE_PYTORCH),
    (r"MAR-INF/", "a TorchServe archive", _UNPACK),
)
# The end of a file's name, where the content says nothing.
_FOREIGN_NAMES: tuple[tuple[str, str, str], ...] = (
    (r"\.onnx$", _ONNX, "Give the checkpoint it was made from."),
    (r"\.tflite$", "a TensorFlow Lite model", _GIVE_PYTORCH),
    (r"\.(pb|index|data-\d+-of-\d+)$", "a part of a TensorFlow model", _GIVE_PYTORCH),
)
# A file in a directory without weights that are read, what the directory is, what to do.
_DIRECTORIES: tuple[tuple[str, str, str], ...] = (
    (
        "adapter_config.json",
        "a LoRA adapter, which holds differences",
        "Merge it into its base model (peft: merge_and_unload) and save that.",
    ),
    ("flax_model*", "a Flax model", _GIVE_PYTORCH),
    ("tf_model.h5", "a TensorFlow model", _GIVE_PYTORCH),
    (
        "zero_to_fp32.py",
        "a DeepSpeed checkpoint in partitions",
        "Run the zero_to_fp32.py inside it, and give the file it writes.",
    ),
    (
        "config.json",
        "a Hugging Face folder without weights",
        "Download its model.safetensors, or every part and the index.",
    ),
    (
        ".metadata",
        "a distributed checkpoint",
        "Run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`.",
    ),
    ("saved_model.pb", "a TensorFlow model", _GIVE_PYTORCH),
)


def identify(path: Path, part: bool = False) -> Format:
    """Which reader a file needs, by its content; its name decides only where the content cannot.

    Args:
        path: A file or a folder.
        part: Whether a file may be one part of a checkpoint.

    Raises:
        UserError: The file is not a checkpoint, or one in a format that is not read: the message
            names what it is.
    """
    if os.path.isdir(path):  # noqa: PTH112 (no error for a name that cannot be)
        if not (path / "adapter_config.json").exists() and weights_in(path) is not None:
            return "folder"
        for pattern, what, fix in _DIRECTORIES:
            if any(path.glob(pattern)):
                raise UserError(f"checkpoint {path} is a directory: {what}", fix)
    require_file(path, "checkpoint")
    if path.name.endswith(INDEX):
        return "folder"
    with path.open("rb") as stream:
        head = stream.read(512)
    if not part and (shard := _SHARD.search(path.name)) and int(shard[2]) != 1:
        raise UserError(f"checkpoint {path} is part {int(shard[1])} of {int(shard[2])}", _JOIN)
    if head.startswith(b"PK\x03\x04"):
        _refuse_foreign_archive(path)
        return "torch"
    if _PICKLE.match(head):
        if _TORCH_MAGIC not in head[:16]:
            raise UserError(
                f"checkpoint {path} is a pickle that torch.save did not write", _SAVE_STATE_DICT
            )
        return "torch"
    if head[4:9] == b"\0\0\0\0{":  # after the length of the JSON document that begins the file
        return "safetensors"
    _refuse_foreign(path, head)
    if path.suffix == ".safetensors":
        return "safetensors"  # truncated or damaged: its reader says how
    raise UserError(
        f"checkpoint {path} is truncated or not a checkpoint at all",
        "Give a .safetensors file or what torch.save wrote.",
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a file or folder is a checkpoint, by its content or, where broken, by its name."""
    if path.is_dir():
        return not (path / "config.pbtxt").exists() and any(
            (path / name).exists() for name in ("config.json", "adapter_config.json", *WEIGHTS)
        )
    if path.name.endswith((INDEX, ".safetensors", ".pt", ".pth", ".ckpt", ".bin")):
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except (OSError, ValueError):
        return False
    return head.startswith(b"PK\x03\x04") or head[4:9] == b"\0\0\0\0{" or _TORCH_MAGIC in head


def _refuse_foreign(path: Path, head: bytes) -> None:
    for pattern, what, fix in _FOREIGN:
        if re.match(rb"(?:\xef\xbb\xbf)?\s*(?:" + pattern + rb")", head, re.IGNORECASE):
            raise UserError(f"checkpoint {path} is {what}", fix)
    for suffix, what, fix in _FOREIGN_NAMES:
        if re.search(suffix, path.name):
            raise UserError(f"checkpoint {path} is {what}", fix)


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
