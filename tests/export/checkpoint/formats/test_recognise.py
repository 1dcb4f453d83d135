"""A file that is not a checkpoint is named as what it is, in one line that says what to do."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build, named

MODEL = "digits_plain"


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def _program(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


def _onnx(path: Path) -> None:
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), path)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")


def _folder(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_text("{}")

    return make


def _bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def _named(names: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: torch.save(names, path)


two = torch.zeros(2, 2)
FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("c.pt", _script, "is a TorchScript program.*state_dict"),
    ("c.pt2", _program, "is an ExportedProgram"),
    ("c.npz", lambda path: np.savez_compressed(path, a=two), "is an archive of NumPy arrays"),
    ("c.npy", lambda path: np.save(path, two), "is a NumPy array"),
    ("c.onnx", _onnx, "is an ONNX model"),
    ("c.bin", _onnx, "is an ONNX model"),
    ("c.pth", _bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer.*lfs pull"),
    ("c.safetensors", _bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    ("c.pth", _bytes(b"\xef\xbb\xbf\n<!DOCTYPE html><html>"), "is an HTML page"),
    ("c.safetensors", _bytes(b"<HTML><body>"), "is an HTML page"),
    ("c.pt", _bytes(b"<?xml version='1.0'?><Error>"), "is an XML document"),
    ("c.bin", _bytes(b"GGUF\x03\0\0\0" + bytes(50)), "is a GGUF file"),
    ("c.h5", _bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "is an HDF5 file"),
    ("c.bin", _bytes(b"\x81\xa6params\x80"), "is a Flax checkpoint"),
    ("model.ckpt-1.index", _bytes(bytes(50)), "is a part of a TensorFlow model"),
    ("model.data-00000-of-00001", _bytes(bytes(50)), "is a part of a TensorFlow model"),
    ("c.pth", _bytes(gzip.compress(b"abc")), "is a compressed archive"),
    ("c.pth", _tar, "is a tar archive"),
    ("c.pth", _zip, "is a zip archive that torch.save did not write"),
    ("c.pkl", _bytes(pickle.dumps({"a": 1})), "is a pickle that torch.save did not write"),
    ("c.json", _bytes(b'{"depth": 1}'), "is a JSON document"),
    ("m.safetensors.index.json", _bytes(b'{"metadata": {}, "weight_map": {}}'), "lists no tensors"),
    (
        "model-00001-of-00003.safetensors",
        lambda path: save_file({"a": two}, path),
        "is part 1 of 3. Join the parts",
    ),
    ("folder", _folder("config.json"), "is a directory: a Hugging Face folder"),
    ("parts", _folder("model.safetensors.index.json"), "does not say which part holds which"),
    ("distributed", _folder(".metadata"), "is a directory: a distributed checkpoint"),
    ("c.pth", _named({"a.lora_A.weight": two, "a.lora_B.weight": two}), "names of a LoRA adapter"),
    (
        "c.pth",
        _named({"a.qweight": two.int(), "a.qzeros": two.int()}),
        "names of quantised weights",
    ),
    ("c.pth", _bytes(np.random.default_rng(0).bytes(1000)), "truncated or not a checkpoint"),
    ("n" * 300, lambda _path: None, "File name too long"),
]


@pytest.mark.parametrize(("name", "write", "problem"), FILES)
def test_a_foreign_file_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], None], problem: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=problem) as refusal:
        load_checkpoint(tmp_path / name, model=MODEL)
    assert len(str(refusal.value)) - len(str(tmp_path / name)) < 300


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    state = build(named(MODEL)).state_dict()
    torch.save({"model": state}, tmp_path / "c.safetensors")
    save_file(state, tmp_path / "c.pth")
    save_file(state, tmp_path / "m-00001-of-00001.safetensors")  # all of it
    assert load_checkpoint(tmp_path / "m-00001-of-00001.safetensors", model=MODEL).weights is None
    assert load_checkpoint(tmp_path / "c.safetensors", model=MODEL).weights == "model"
    assert load_checkpoint(tmp_path / "c.pth", model=MODEL).weights is None


def _rezipped(path: Path, compression: int, of: str = "") -> Path:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            chosen = compression if name.endswith(of) else zipfile.ZIP_STORED
            archive.writestr(name, data, compress_type=chosen)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("of", ["", "data.pkl", "data/3"])
def test_a_compressed_record_is_refused(tmp_path: Path, compression: int, of: str) -> None:
    torch.save(build(named(MODEL)).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"has a compressed record \(c/data.*refused"):
        load_checkpoint(_rezipped(tmp_path / "c.pth", compression, of), model=MODEL)


def test_a_file_that_was_stored_again_or_without_checksums_is_read(tmp_path: Path) -> None:
    state = build(named(MODEL)).state_dict()
    torch.save(state, tmp_path / "c.pth")
    again = _rezipped(tmp_path / "c.pth", zipfile.ZIP_STORED)
    assert load_checkpoint(again, model=MODEL).state.keys() == state.keys()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(tmp_path / "c.pth", model=MODEL).state.keys() == state.keys()


def test_the_hash_is_compared_before_the_file_is_read(tmp_path: Path) -> None:
    torch.save(build(named(MODEL)).state_dict(), tmp_path / "c.pth")
    right = load_checkpoint(tmp_path / "c.pth", model=MODEL).sha256
    assert load_checkpoint(tmp_path / "c.pth", model=MODEL, sha256=right.upper()).sha256 == right
    os.truncate(tmp_path / "c.pth", (tmp_path / "c.pth").stat().st_size - 1000)
    with pytest.raises(UserError, match=f"has the SHA-256 .*, not {right}"):
        load_checkpoint(tmp_path / "c.pth", model=MODEL, sha256=right)
    for wrong in ("abc", "x" * 64, "\x1b" * 64, ""):
        with pytest.raises(UserError, match="is not a SHA-256"):
            load_checkpoint(tmp_path / "c.pth", model=MODEL, sha256=wrong)
