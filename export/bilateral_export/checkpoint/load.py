"""Any supported checkpoint to a model whose weights are known to fit and to be finite."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bilateral_export.checkpoint.arguments import TrainingArguments
from bilateral_export.checkpoint.card import CheckpointCard, describe, parse_card
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.checkpoint.fit import check_fit
from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.folder import digest_of, read_folder
from bilateral_export.checkpoint.formats.native import read_native
from bilateral_export.checkpoint.formats.pickled import read_pickled
from bilateral_export.checkpoint.formats.recognise import Format, identify
from bilateral_export.checkpoint.formats.text import listed, printable, read_document, read_json
from bilateral_export.checkpoint.homes.adopt import Adopted, Wanted, adopt
from bilateral_export.checkpoint.homes.documents import read_documents
from bilateral_export.checkpoint.homes.segmenter import has_unused
from bilateral_export.checkpoint.homes.wrappers import find_model
from bilateral_export.checkpoint.known import architecture, card_of, prepared
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.user_model import (
    card_of_user_model,
    defined_model,
    load_weights,
)
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.registry import MODELS, named, parse_config
from bilateral_export.models.user_code import is_reference

__all__ = ["Checkpoint", "load_checkpoint"]


def load_checkpoint(
    path: Path,
    model: str | ModelDefinition | None = None,
    weights: str | None = None,
    sha256: str | None = None,
) -> Checkpoint:
    """Read a checkpoint of this package or of another library and check that its weights fit.

    Args:
        path: A safetensors file, what `torch.save` wrote, or a folder or index of such files.
        model: A known model's name, or a JSON file with its configuration or a whole card (which
            brings preprocessing and labels); needed only where the checkpoint does not say. It must
            not contradict what the checkpoint says. A JSON file without a family holds only what
            the weights do not show, such as the number of heads. Or your own model: a definition,
            or a function that returns one ("my_model.py:build"); that runs the file's code.
        weights: Which weights: an entry of a training checkpoint, such as "model_ema", a prefix of
            names, such as "teacher.", or both, "state_dict:teacher.".
        sha256: What the file's SHA-256 must be, 64 hexadecimal digits; compared before the file is
            read.

    Raises:
        UserError: The file cannot be read, is unsafe, does not say which model it is, does not fit
            its configuration (sizes that differ are shown with both values, else missing,
            unexpected and wrongly shaped tensors), or holds values that are not finite.
    """
    digest = None if sha256 is None else _checked_digest(path, sha256)
    format = identify(path)
    digest = digest or digest_of(path)
    entry, root = _entry_and_root(weights)
    content = _read(path, format, entry)
    if isinstance(model, ModelDefinition) or (model is not None and is_reference(model)):
        return _user_checkpoint(path, digest, content, model)
    adopted = None
    if content.card is None:
        content, adopted = _adopted(path, content, model, root)
    elif root is not None:
        raise UserError(
            f"checkpoint {path} has a card, and no prefix {printable(root)!r}", "Leave it out."
        )
    if adopted is None:
        card, source = _card(path, content, model)
    else:
        card, source = adopted.card, adopted.preprocessing_source
    check_fit(content.state, card, path)
    checkpoint = Checkpoint(
        path=path,
        sha256=digest,
        card=card,
        state=content.state,
        weights=content.weights
        if root is None
        else ":".join(filter(None, (content.weights, root))),
        other_weights=content.other_weights,
        preprocessing_source=source if card.preprocessing is not None else "",
        notes=content.notes + (adopted.conversion.notes if adopted else ()),
        conversion=adopted.conversion if adopted else None,
    )
    return checkpoint if adopted is None else _at_run_size(checkpoint, adopted)


def _at_run_size(checkpoint: Checkpoint, adopted: Adopted) -> Checkpoint:
    """The checkpoint at the size its home runs it at, with its documents' own preprocessing."""
    size = adopted.conversion.run_size
    if size is None:
        return checkpoint
    moved = at_resolution(checkpoint, size)
    card = moved.card.model_copy(update={"preprocessing": adopted.run_preprocessing})
    return dataclasses.replace(moved, card=card)


def _read(path: Path, format: Format, entry: str | None) -> Content:
    if format == "folder":
        return read_folder(path, lambda file: _read(file, identify(file, part=True), entry))
    return read_native(path, entry) if format == "safetensors" else read_pickled(path, entry)


def _user_checkpoint(
    path: Path, digest: str, content: Content, model: str | ModelDefinition
) -> Checkpoint:
    loaded = load_weights(defined_model(model), content, path)
    card = card_of_user_model(loaded)
    return Checkpoint(
        path=path,
        sha256=digest,
        card=card,
        state=content.state,
        weights=content.weights,
        other_weights=content.other_weights,
        preprocessing_source=loaded.config.source if card.preprocessing is not None else "",
        notes=content.notes,
        user_model=loaded,
    )


def _checked_digest(path: Path, wanted: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", wanted):
        raise UserError(
            f"--sha256 {printable(wanted)} is not a SHA-256", "Give its 64 hexadecimal digits."
        )
    if path.is_dir():
        identify(path)
    digest = digest_of(path if path.is_dir() else require_file(path, "checkpoint"))
    if digest != wanted.lower():
        raise UserError(
            f"checkpoint {path} has the SHA-256 {digest}, not {wanted.lower()}",
            "It is another file or was damaged on its way: copy it again.",
        )
    return digest


def _entry_and_root(weights: str | None) -> tuple[str | None, str | None]:
    """The entry of a training checkpoint and the prefix of names that `--weights` asks for."""
    if weights is None or not weights.endswith("."):
        return weights, None
    entry, _, root = weights.rpartition(":")
    return entry or None, root


def _adopted(
    path: Path, content: Content, model: str | None, root: str | None
) -> tuple[Content, Adopted | None]:
    """The content in this package's names and, where another library's code decides, its card.

    What has this package's names, and says or is told which model it is, needs no conversion.
    """
    if root is not None and f"took {root!r} off every name" in content.notes:
        root = None
    found = find_model(content.state, path, root)
    folder = path if path.is_dir() else path.parent
    if found is None:
        documents = read_documents(folder) if path.is_dir() else {}
        if kind := documents.get("config.json", {}).get("model_type"):
            raise UserError(
                f"checkpoint {path} is a Hugging Face folder with model_type {printable(kind)},"
                " which is not supported",
                "Supported: vit, deit, dinov2, dinov2_with_registers.",
            )
        return content, None
    wanted = _wanted(model, found.home.native)
    if wanted.card is None:
        said = architecture(content.arguments, path)
        name = wanted.architecture or (content.arguments.model if said is None else None)
        wanted = dataclasses.replace(wanted, card=said, architecture=name)
    known = wanted.card is not None
    if found.home.native and known and not has_unused(found.state):
        notes = (*content.notes, *([f"took {found.root!r} off its names"] if found.root else []))
        return dataclasses.replace(content, state=found.state, notes=notes), None
    adopted = adopt(path, found, read_documents(folder), wanted)
    adopted = _with_arguments(adopted, content.arguments)
    return dataclasses.replace(content, state=adopted.state), adopted


def _with_arguments(adopted: Adopted, arguments: TrainingArguments) -> Adopted:
    """The converted checkpoint with what training arguments say of images."""
    said, source = arguments.said(), adopted.preprocessing_source
    if not said or adopted.conversion.run_size is not None:
        return adopted
    card, _ = prepared(adopted.card, arguments)
    source = f"{f'{source}, with ' if source else ''}the training arguments' {', '.join(said)}"
    return dataclasses.replace(adopted, card=card, preprocessing_source=source)


def _wanted(model: str | None, native: bool) -> Wanted:
    """What `--model` says; a name that is not one of ours may be timm's."""
    if model is None:
        return Wanted()
    if not model.endswith(".json"):
        if native and model not in MODELS and re.match(r"(vit|deit3?)_", model):
            return Wanted(architecture=model)
        return Wanted(card=card_of(model, named(model)))
    document = read_json(Path(model), "configuration")
    if isinstance(document, dict) and not {"family", "schema_version"} & document.keys():
        return Wanted(values=document)
    card, complete = _wanted_card(model)
    return Wanted(card=card, complete=complete)


def _card(path: Path, content: Content, model: str | None) -> tuple[CheckpointCard, str]:
    """The card that a checkpoint's weights must fit, and where its preprocessing comes from."""
    own, said = content.card, architecture(content.arguments, path)
    if model is None:
        if own is not None:
            return own, "the checkpoint's card"
        if said is None:
            name = content.arguments.model
            known = f" (its training arguments say '{printable(name)}')" if name else ""
            raise UserError(
                f"checkpoint {path} does not say which model it is{known}",
                "Give --model: a JSON configuration, or a name that `bilateral models` lists.",
            )
        return prepared(said, content.arguments)
    wanted, complete = _wanted_card(model)
    ours = own or said
    if ours is not None and ours.model != wanted.model:
        raise UserError(
            f"checkpoint {path} is a {printable(ours.name)} with"
            f" {_differences(ours.model, wanted.model)}, which contradicts --model"
            f" {printable(model)}",
            "Leave --model out, or give the checkpoint it belongs to.",
        )
    if own is not None:
        for part in ("labels", "preprocessing"):
            if getattr(wanted, part) and getattr(wanted, part) != getattr(own, part) and complete:
                raise UserError(
                    f"checkpoint {path} has a card with other {part} than --model"
                    f" {printable(model)}",
                    "Leave --model out, or correct the card.",
                )
        return own, "the checkpoint's card"
    if complete:
        return wanted, f"the card {model}"
    return prepared(said or wanted, content.arguments)


def _wanted_card(model: str) -> tuple[CheckpointCard, bool]:
    """What `--model` asks for, and whether it is a whole card."""
    path = Path(model)
    if path.suffix != ".json":
        return card_of(model, named(model)), False
    document = read_json(path, "configuration")
    if isinstance(document, dict) and "schema_version" in document:
        return parse_card(read_document(path, "configuration"), str(path)), True
    try:
        return card_of(path.stem, parse_config(document)), False
    except ValidationError as error:
        raise UserError(
            f"{path} is not a model configuration: {describe(error)}",
            "`bilateral models --json` shows configurations.",
        ) from error


def _differences(ours: FamilyConfig, theirs: FamilyConfig) -> str:
    if ours.family != theirs.family:
        return f"family {ours.family!r} (not {theirs.family!r})"
    left, right = _flat(ours.model_dump()), _flat(theirs.model_dump())
    return listed(
        [
            f"{key} {left.get(key)!r} (not {right.get(key)!r})"
            for key in dict.fromkeys([*left, *right])
            if left.get(key) != right.get(key)
        ]
    )


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted path, those of the document itself first."""
    flat = {f"{prefix}{k}": v for k, v in document.items() if not isinstance(v, dict)}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
    return flat
