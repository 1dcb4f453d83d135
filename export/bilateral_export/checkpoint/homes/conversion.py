"""What the converter of each home takes and returns, and the bookkeeping of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from bilateral_export.checkpoint.card import describe
from bilateral_export.checkpoint.formats.text import listed, printable
from bilateral_export.errors import UserError
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.free_grid import Resampling
from bilateral_export.models.registry import parse_config
from bilateral_export.preprocessing import Preprocessing


@dataclass(frozen=True)
class Source:
    """A state dict that one home's converter reads, and what lay beside it.

    Attributes:
        path: The file or folder, for messages.
        state: The tensors by the names that the home's library wrote, its prefix taken off.
        documents: JSON documents beside the weights, by file name.
        architecture: The library's name of the model, where the training arguments or `--model`
            give it.
        chosen: Values that the user gave for what the weights do not show.
    """

    path: Path
    state: Mapping[str, Tensor]
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    architecture: str | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """A checkpoint of another home in this package's names.

    Attributes:
        home: The library, such as "Hugging Face DINOv2 (names of transformers 4)".
        architecture: Its model, in the library's words where it names it.
        config: The configuration the tensors fit.
        tensors: By this package's names.
        mapped: Number of tensors of the checkpoint that were taken.
        left_over: Tensors that were not, with the reason of each.
        assumptions: What the weights do not show, each with its source.
        labels: One per class, or empty.
        preprocessing: How an image becomes the input, where a document or the home says it.
        preprocessing_source: Who says so.
        resampling: How the home interpolates its positions.
        run_size: Height and width of the images that the home runs the model on, where it is not
            the size its positions were trained at.
        notes: What else a person should know, one sentence each.
    """

    home: str
    architecture: str
    config: FamilyConfig
    tensors: dict[str, Tensor]
    mapped: int
    left_over: dict[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    preprocessing_source: str = ""
    resampling: Resampling = "bicubic"
    run_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


class Ledger:
    """Takes tensors out of a state dict under new names and knows what is missing or left.

    Args:
        source: Where the tensors come from.
        home: For messages, such as "a torchvision ViT".
    """

    def __init__(self, source: Source, home: str) -> None:
        self.source, self.home = source, home
        self.tensors: dict[str, Tensor] = {}
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._numberless = set(map(_numberless, source.state))

    def take(self, name: str) -> Tensor | None:
        """A tensor by its old name, marked as used; None, and noted as missing, without one."""
        if name not in self.source.state:
            self._missing.append(name)
            return None
        self._taken.add(name)
        return self.source.state[name]

    def move(self, old: str, new: str) -> None:
        """Take one tensor under a new name."""
        if (tensor := self.take(old)) is not None:
            self.tensors[new] = tensor

    def linear(self, old: str, new: str, may_lack_bias: bool = False) -> None:
        """Take a linear or convolution layer.

        Args:
            old: Its name in the home.
            new: Its name here.
            may_lack_bias: Whether the home has such layers without a bias, which is then zero. One
                that its like in another block has is missing.
        """
        self.move(f"{old}.weight", f"{new}.weight")
        weight = self.tensors.get(f"{new}.weight")
        lacks_bias = may_lack_bias and _numberless(f"{old}.bias") not in self._numberless
        if lacks_bias and weight is not None:
            self.tensors[f"{new}.bias"] = weight.new_zeros(len(weight))
        else:
            self.move(f"{old}.bias", f"{new}.bias")

    def norm(self, old: str, new: str) -> None:
        """Take a layer norm."""
        self.move(f"{old}.weight", f"{new}.weight")
        self.move(f"{old}.bias", f"{new}.bias")

    @property
    def mapped(self) -> int:
        """Number of tensors taken."""
        return len(self._taken)

    def left_over(self, known: Mapping[str, str]) -> dict[str, str]:
        """What nothing took, each with the reason why that is right.

        Args:
            known: Patterns of names that the home's own forward pass for this purpose does not use,
                with the reason.

        Raises:
            UserError: Tensors are missing, or others are there that no pattern explains.
        """
        path = self.source.path
        if self._missing:
            count = len(self._missing)
            raise UserError(
                f"checkpoint {path} has the names of {self.home}, but {count} of its tensors"
                f" {'are' if count > 1 else 'is'} missing: {listed(self._missing)}",
                "Give the whole file, or every part of a split one.",
            )
        rest = [name for name in self.source.state if name not in self._taken]
        reasons = {name: _reason(name, known) for name in rest}
        if strange := [name for name, reason in reasons.items() if not reason]:
            raise UserError(
                f"checkpoint {path} has the names of {self.home}, and {len(strange)} tensors that"
                f" it has no place for: {listed(strange)}",
                "It is another architecture, which is not supported.",
            )
        return reasons


def _numberless(name: str) -> str:
    """A name in which every block has the same number."""
    return re.sub(r"\d+", "0", name)


def _reason(name: str, known: Mapping[str, str]) -> str:
    return next((reason for pattern, reason in known.items() if re.search(pattern, name)), "")


def depth_of(state: Mapping[str, Tensor], pattern: str, path: Path) -> int:
    """Number of blocks, by the numbers in names.

    Args:
        state: Tensors by name.
        pattern: Of a block's prefix, with one group: its number.
        path: For messages.

    Raises:
        UserError: A block between the first and the last is missing.
    """
    found = {int(match[1]) for match in (re.match(pattern, name) for name in state) if match}
    depth = max(found, default=-1) + 1
    if gaps := sorted(set(range(depth)) - found):
        raise UserError(
            f"checkpoint {path} has {depth} blocks by its names, without number {listed(gaps)}",
            "Give the whole file, or every part of a split one.",
        )
    return depth


def configured(
    values: Mapping[str, Any], source: Source, assumed: Mapping[str, str]
) -> tuple[FamilyConfig, tuple[str, ...]]:
    """The configuration of what was found, and the assumptions it rests on.

    Args:
        values: Fields of the configuration.
        source: Its `chosen` values replace assumptions.
        assumed: The fields that the weights do not show, with the source of each value.

    Raises:
        UserError: The values are no configuration, or a chosen one contradicts the weights.
    """
    values, lines = dict(values), []
    chosen = dict(source.chosen)
    for name, reason in assumed.items():
        if name in chosen:
            values[name] = chosen.pop(name)
            lines.append(f"{name} {_shown(values[name])}: --model")
        else:
            lines.append(f"{name} {_shown(values[name])}: {reason}")
    for name, value in chosen.items():
        if name in values and _plain(values[name]) == _plain(value):
            continue
        if name in ("attention", "residual", "output") or name not in values:
            values[name] = value
            continue
        raise UserError(
            f"checkpoint {source.path} has {name} {_shown(values[name])}, and --model says"
            f" {printable(value)}",
            "Leave it out of --model, or give the checkpoint it belongs to.",
        )
    try:
        return parse_config(values), tuple(lines)
    except ValidationError as error:
        raise UserError(
            f"checkpoint {source.path} has sizes that are not a model's: {describe(error)}",
            "Give --model a JSON document with what cannot be seen in the weights.",
        ) from error


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def visible_sizes(
    source: Source, tensors: Mapping[str, Tensor], depth: int, inner: str = ""
) -> dict[str, Any]:
    """Return the fields of a configuration that a ViT's tensors show: patch, channels, widths.

    Args:
        source: For messages.
        tensors: By this package's names.
        depth: Number of blocks.
        inner: What the names of the ViT begin with, such as "encoder.".

    Raises:
        UserError: Its patches are not square.
    """
    dim, channels, patch, patch_width = tensors[f"{inner}patch_embed.proj.weight"].shape
    if patch != patch_width:
        raise UserError(
            f"checkpoint {source.path} has patches of {patch}x{patch_width} pixels",
            "Only square patches are supported.",
        )
    hidden = tensors[f"{inner}blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / dim
    return {
        "patch_size": patch,
        "channels": channels,
        "dim": dim,
        "depth": depth,
        # The ratio whose product with `dim`, cut to a whole number, is `hidden`.
        "mlp_ratio": ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf),
    }


def check_heads(source: Source, heads: int | None, dim: int, also: str = "Give") -> None:
    """Check that the number of heads is known, or given by the user.

    Args:
        source: Its `chosen` values may have it.
        heads: What the home's rule or its documents say.
        dim: The width, for the message.
        also: Begins what to do: another remedy, and "give".

    Raises:
        UserError: It is not.
    """
    if heads is None and "heads" not in source.chosen:
        raise UserError(
            f"checkpoint {source.path} does not show how many heads its width of {dim} has",
            f'{also} --model a JSON document: {{"heads": NUMBER}}.',
        )


def square_grid(patches: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches, if they are a square."""
    side = math.isqrt(patches)
    return (side, side) if side * side == patches and side else None


def image_size(
    source: Source, patches: int, patch: int, said: tuple[int, int] | None
) -> tuple[int | tuple[int, int], bool]:
    """Height and width of the images (one number for a square), and whether they were assumed.

    Args:
        source: For `chosen` and messages.
        patches: Rows of the position table that belong to patches.
        patch: Side of a patch.
        said: What a document says, height and width.

    Raises:
        UserError: What was said contradicts the table, or nothing is said and it is not a square.
    """
    chosen = source.chosen.get("image_size")
    if chosen is not None:
        said = (chosen, chosen) if isinstance(chosen, int) else (chosen[0], chosen[1])
    if said is not None:
        rows, columns = said[0] // patch, said[1] // patch
        if rows * columns != patches:
            raise UserError(
                f"checkpoint {source.path} has positions for {patches} patches, and images of"
                f" {said[0]}x{said[1]} pixels have {rows * columns} of {patch}x{patch}",
                "Correct the image size, or give the weights that belong to it.",
            )
        return (said[0] if said[0] == said[1] else said), False
    grid = square_grid(patches)
    if grid is None:
        raise UserError(
            f"checkpoint {source.path} has positions for {patches} patches, which are not a square",
            'Give --model a JSON document: {"image_size": [height, width]}.',
        )
    return grid[0] * patch, True
