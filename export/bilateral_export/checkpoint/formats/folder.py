"""A folder with weights in one file or in parts, and an index that says which part holds what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic_core import from_json
from torch import Tensor

from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.text import listed, printable, read_document
from bilateral_export.errors import UserError
from bilateral_export.files import sha256

INDEX = ".index.json"
# What transformers, timm, Accelerate and DeepSpeed name their weights, best first.
WEIGHTS = (
    *("model.safetensors", f"model.safetensors{INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{INDEX}"),
)
# JSON documents beside the weights that belong to the model.
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
DOCUMENTS = (CONFIG, PROCESSOR)
_WHOLE = "Download every file of one revision again."


def weights_in(folder: Path) -> Path | None:
    """The file or index with a folder's weights; None where there is none.

    Raises:
        UserError: Several files might be it.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    documented = (folder / CONFIG).is_file()
    others = sorted(folder.glob("*.safetensors")) if documented else []
    if len(others) > 1:
        raise UserError(
            f"checkpoint {folder} is a directory of {len(others)} files of weights:"
            f" {listed([path.name for path in others])}",
            "Give one of them.",
        )
    return others[0] if others else None


def digest_of(path: Path) -> str:
    """The SHA-256 of a checkpoint: of the file; of a folder's names and hashes, if it is several.

    The documents beside the weights change the model, so they belong to it.
    """
    if path.is_file() and not path.name.endswith(INDEX):
        return sha256(path)
    files = sorted(files_of(path))
    folder = files[0].parent
    lines = [f"{sha256(file)}  {file.name}\n" for file in files]
    lines += [
        f"{sha256(folder / name)}  {name}\n" for name in DOCUMENTS if (folder / name).is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(path: Path) -> dict[Path, set[str] | None]:
    """Return the files with a folder's or an index's weights, and what each is said to hold.

    Without an index nothing is said.

    Raises:
        UserError: There are none, or the index is broken or names a missing part.
    """
    found = weights_in(path) if path.is_dir() else path
    assert found is not None, "recognise.py has refused a folder without weights"
    if not found.name.endswith(INDEX):
        return {found: None}
    promised = _weight_map(found)
    parts = sorted(set(promised.values()))
    missing = [name for name in parts if not (found.parent / name).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {path}: its index names {len(parts)} parts, of which {len(missing)}"
            f" {'are' if len(missing) > 1 else 'is'} missing: {listed(missing)}",
            _WHOLE,
        )
    return {
        found.parent / part: {name for name, where in promised.items() if where == part}
        for part in parts
    }


def read_folder(path: Path, read: Callable[[Path], Content]) -> Content:
    """Read a folder, or an index, as one checkpoint.

    Args:
        path: The folder or the index.
        read: Reads one file of weights.

    Raises:
        UserError: A part is missing, or does not hold what the index says it does.
    """
    files = files_of(path)
    state: dict[str, Tensor] = {}
    for file, wanted in files.items():
        content = read(file)
        if wanted is None:
            return content
        absent, extra = wanted - content.state.keys(), content.state.keys() - wanted
        if absent or extra:
            what = f"does not hold {listed(sorted(absent))}" if absent else ""
            also = f"holds {listed(sorted(extra))}, which it should not" if extra else ""
            raise UserError(
                f"checkpoint {path}: part {file.name} is not the one its index describes: it"
                f" {' and '.join(filter(None, (what, also)))}",
                _WHOLE,
            )
        state |= content.state
    return Content(state, (f"joined {len(files)} parts",))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        document = from_json(read_document(index, "index"))
        found = document["weight_map"]
        pairs = {str(name): str(part) for name, part in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"index {index} does not say which part holds which tensor ({printable(error)})", _WHOLE
        ) from error
    if not pairs:
        raise UserError(f"index {index} lists no tensors", _WHOLE)
    if strange := [part for part in pairs.values() if Path(part).name != part]:
        raise UserError(
            f"index {index} names a part outside its folder ({printable(strange[0])}): refused",
            _WHOLE,
        )
    return pairs
