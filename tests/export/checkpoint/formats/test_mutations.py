"""Damaged checkpoints: each either gives the right values or is refused, and nothing else happens.

Mutations are seeded. Those of a file's bytes are what disks and downloads do; those of a pickle's
bytes, stored under a right checksum, are what an attacker does.
"""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build, named

MODEL = "digits_plain"
LONGEST_MESSAGE = 600
State = dict[str, torch.Tensor]
Mutation = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return build(named(MODEL)).state_dict()


def loaded(path: Path) -> State | None:
    """The weights, or None where the file is refused; anything but a refusal is an error."""
    start = time.monotonic()
    try:
        return load_checkpoint(path, model=MODEL).state
    except UserError as refusal:
        message = str(refusal)
    finally:
        assert time.monotonic() - start < 60  # a hang, on any machine
    assert len(message) <= LONGEST_MESSAGE + len(str(path)), message
    assert message.isprintable()
    return None


def equal(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _zero(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return (data[:at] + bytes(16) + data[at + 16 :])[: len(data)]


def _cut(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randrange(1, 100) :]


def _insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(5) + data[at:]


def _truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


BYTES: tuple[Mutation, ...] = (_flip, _flip, _zero, _cut, _insert, _truncate)


def damage_zip(state: State, path: Path, count: int, seed: int) -> Counter[str]:
    """How often a damaged `torch.save` file was refused, and how often it was harmless."""
    chance, saved = random.Random(seed), io.BytesIO()
    torch.save({"model": state, "epoch": 3}, saved)
    whole, found = saved.getvalue(), Counter[str]()
    # Every other mutation hits a record's header, the pickle or the list of records: most of the
    # file is numbers.
    with zipfile.ZipFile(saved) as archive:
        headers = [record.header_offset for record in archive.infolist()]
    for number in range(count):
        mutation = chance.choice(BYTES)
        if number % 2:
            at = chance.choice([*headers, 0, len(whole) - 5000])
            part = mutation(whole[at : at + 5000], chance)
            path.write_bytes(whole[:at] + part + whole[at + 5000 :])
        else:
            path.write_bytes(mutation(whole, chance))
        result = loaded(path)
        found["refused" if result is None else "equal"] += 1
        assert result is None or equal(result, state), (seed, number)
    return found


def damage_pickle(state: State, path: Path, count: int, seed: int) -> Counter[str]:
    """The same of a pickle whose checksum is right, so that its content is what is judged."""
    chance, saved, found = random.Random(seed), io.BytesIO(), Counter[str]()
    torch.save({"model": state, "args": {"a": 1.5, "b": [Path("x"), {1, 2}]}}, saved)
    with zipfile.ZipFile(saved) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    for _ in range(count):
        mutated = records | {name: chance.choice(BYTES)(records[name], chance)}
        with zipfile.ZipFile(path, "w") as archive:
            for filename, data in mutated.items():
                archive.writestr(filename, data)
        found["refused" if loaded(path) is None else "loaded"] += 1
    return found


def change_content(state: State, path: Path, count: int, seed: int) -> Counter[str]:
    """Weights renamed, removed, added, of another type or shape: never taken for the right ones."""
    chance, found = random.Random(seed), Counter[str]()
    for number in range(count):
        changed: dict[Any, Any] = dict(state)
        name = chance.choice(sorted(state))
        tensor = changed[name]
        kind = chance.choice(("rename", "remove", "add", "type", "shape", "value", "nan"))
        match kind:
            case "rename":
                renames = (name + "x", "", "\x1b[31m" + name, 7, (name,), name.encode(), None)
                changed[chance.choice(renames)] = changed.pop(name)
            case "remove":
                del changed[name]
            case "add":
                changed[f"extra.{number}"] = torch.zeros(3)
            case "type":
                others = (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
                changed[name] = tensor.to(chance.choice(others))
            case "shape":
                changed[name] = chance.choice((tensor[..., None], tensor[:0], tensor.flatten()[:1]))
            case "value":
                changed[name] = chance.choice(("text", None, [tensor], {"a": tensor}))
            case "nan":
                changed[name] = torch.full_like(tensor, float("nan"))
        torch.save({"model": changed}, path)
        found[kind] += 1
        assert loaded(path) is None, (seed, number, kind, name)
    return found


def damage_safetensors(state: State, path: Path, count: int, seed: int) -> Counter[str]:
    """A safetensors file has no checksums: only its header can show a damage."""
    chance, found = random.Random(seed), Counter[str]()
    if seed % 2:
        save_file(state, path)
    else:
        save_checkpoint(path, state, CheckpointCard(name=MODEL, model=named(MODEL)))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(count):
        path.write_bytes(chance.choice(BYTES)(whole[:header], chance) + whole[header:])
        found["refused" if loaded(path) is None else "loaded"] += 1
    return found


DAMAGES = (damage_zip, damage_pickle, change_content, damage_safetensors)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_or_right(
    state: State, tmp_path: Path, damage: Callable[..., Counter[str]]
) -> None:
    path = tmp_path / ("c.safetensors" if damage is damage_safetensors else "c.pth")
    assert sum(damage(state, path, 80, seed=0).values()) == 80


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_damaged_checkpoints_are_refused_or_right(
    state: State, tmp_path: Path, damage: Callable[..., Counter[str]], seed: int
) -> None:
    path = tmp_path / ("c.safetensors" if damage is damage_safetensors else "c.pth")
    assert sum(damage(state, path, 700, seed=seed).values()) == 700


def test_every_flipped_bit_of_a_weight_in_a_zip_is_found(state: State, tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "c.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if "/data/" in r.filename]
    for record in chance.sample(records, 15):
        # Data begins after a header of 30 bytes, the name and padding to 64 bytes.
        at = record.header_offset + 30 + len(record.filename) + 64 + chance.randrange(32)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"is damaged: c/data/\d+ is not what was saved"):
            load_checkpoint(path, model=MODEL)


def test_a_flipped_bit_that_makes_a_record_a_directory_is_found(
    state: State, tmp_path: Path
) -> None:
    # torch leaves the tensor of such a record uninitialised, and Python's zipfile does not see it.
    path = tmp_path / "c.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"c/data/12"))
    attributes = entry + 38
    path.write_bytes(whole[:attributes] + b"\x10" + whole[attributes + 1 :])
    with pytest.raises(UserError, match="is damaged: c/data/12 is not what was saved"):
        load_checkpoint(path, model=MODEL)
