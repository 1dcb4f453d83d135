"""What training scripts store beside the weights is read where it is data, else refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import functools
import os
import pathlib
import pickle
import random
import types
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilateral_export.checkpoint.formats.pickled import _unpickled
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build, named

MODEL = "digits_plain"
State = dict[str, torch.Tensor]

DATA: dict[str, Any] = {
    "numpy numbers": [np.float64(1.5), np.int32(3), np.bool_(True), np.float16(1), np.str_("ab")],
    "numpy arrays": [np.arange(5), np.array(["a", "bc"]), np.array([None, "a"], dtype=object)],
    "numpy structures": [
        np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        np.datetime64("2020-01-01"),
    ],
    "numpy types": [np.dtype("f4"), np.float32],
    "random states": [np.random.get_state(), np.random.default_rng(0), random.getstate()],
    "paths": [Path("a/b"), pathlib.PureWindowsPath("c:/x"), pathlib.PurePosixPath("x")],
    "arguments": argparse.Namespace(a=Path("x"), b=types.SimpleNamespace(c=np.float32(1))),
    "containers": [
        collections.OrderedDict(a=1),
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        {frozenset([1]), "x"},
    ],
    "times": [
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.date(2020, 1, 1),
        datetime.timedelta(1),
    ],
    "numbers": [10**400, -1, 1j, decimal.Decimal("1.5"), uuid.UUID(int=1), range(3), slice(1, 2)],
    "bytes": [b"abc" * 200, bytearray(b"abc")],
    "torch": [torch.float16, torch.device("cuda"), torch.Size([1]), torch.__version__],
}


class RunsCode:
    """Runs a command when it is unpickled by `pickle`."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class _Laughs:
    """Pickled as a path whose part is not text."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.PosixPath, (self.parts,)


class Unknown:
    """A class of a training script's own."""


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return build(named(MODEL)).state_dict()


def renamed(path: Path, before: bytes, after: bytes) -> Path:
    """The checkpoint as another version of a library would have written it."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    assert before in records[name]
    records[name] = records[name].replace(before, after)
    with zipfile.ZipFile(path, "w") as archive:
        for filename, data in records.items():
            archive.writestr(filename, data)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", DATA)
def test_plain_data_beside_the_weights_is_read(
    state: State, tmp_path: Path, kind: str, zipped: bool
) -> None:
    path = tmp_path / "c.pth"
    content = {"model": state, "beside": DATA[kind]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path, model=MODEL)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("value", "before", "after"),
    [
        (np.float64(98.3), b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"),
        (np.arange(3), b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"),
        (Path("run"), b"cpathlib\nPosixPath", b"cpathlib._local\nPosixPath"),
        (Path("run"), b"cpathlib\nPosixPath", b"cpathlib\nWindowsPath"),
    ],
)
def test_the_same_data_under_the_names_of_other_versions_is_read(
    state: State, tmp_path: Path, value: Any, before: bytes, after: bytes
) -> None:
    path = tmp_path / "c.pth"
    torch.save({"model": state, "beside": value}, path)
    assert load_checkpoint(renamed(path, before, after), model=MODEL).weights == "model"


def test_numbers_and_paths_keep_their_values(tmp_path: Path) -> None:
    values = [np.float64(98.3), np.int32(-4), np.bool_(True), np.str_("ab"), np.float32(0.5)]
    content = {"values": values, "path": Path("a/b"), "big": np.array(2.5, ">f8")[()]}
    torch.save(content, tmp_path / "c.pth")
    read = _unpickled(tmp_path / "c.pth")
    assert read["values"] == [98.3, -4, True, "ab", 0.5]
    assert (read["path"], read["big"]) == (Path("a/b"), 2.5)


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (Unknown(), "test_plain_data.Unknown"),
        (len, "len"),
        (functools.partial(len, "a"), "functools.partial"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_is_not_data_is_refused_by_its_name(
    state: State, tmp_path: Path, value: Any, culprit: str
) -> None:
    torch.save({"model": state, "beside": value}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"wants to run code.*{culprit}\): refused"):
        load_checkpoint(tmp_path / "c.pth", model=MODEL)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_stand_in_lets_code_run(state: State, tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "was here"
    attacks: list[Any] = [
        RunsCode(witness),
        argparse.Namespace(a=RunsCode(witness)),
        np.array([RunsCode(witness)], dtype=object),
        collections.defaultdict(list, {"a": RunsCode(witness)}),
    ]
    for attack in attacks:
        path = tmp_path / "c.pth"
        content = {"model": state, "beside": attack}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"wants to run code.*posix\.system"):
            load_checkpoint(path, model=MODEL)
        assert not witness.exists()


def test_what_would_take_for_ever_to_show_is_not_shown(state: State, tmp_path: Path) -> None:
    laughs: list[Any] = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    path = tmp_path / "c.pth"
    torch.save({"model": state, "args": {"mean": laughs}}, path)
    with pytest.raises(UserError, match="training arguments have mean"):
        load_checkpoint(path, model=MODEL)
    torch.save({"model": state, "at": Path("run"), "laughs": laughs}, path)
    assert load_checkpoint(path, model=MODEL).weights == "model"
    torch.save({"model": state, "laughs": _Laughs(laughs), "at": Path("run")}, path)
    assert load_checkpoint(path, model=MODEL).weights == "model"


def test_numpy_is_never_given_the_bytes_of_objects(tmp_path: Path) -> None:
    # numpy itself would take these eight bytes for the address of an object.
    torch.save({"a": np.float64(1.0), "b": [torch.zeros(1)]}, tmp_path / "c.pth")
    renamed(tmp_path / "c.pth", b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8")
    assert _unpickled(tmp_path / "c.pth")["a"] is None


def test_another_pickle_protocol_is_named(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "c.pth", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    with pytest.raises(UserError, match=r"protocol 5.*default protocol, 2"):
        load_checkpoint(tmp_path / "c.pth", model=MODEL)
