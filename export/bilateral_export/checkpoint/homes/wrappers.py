"""Where in a state dict a model lies: the prefix of its names, found by what they end in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bilateral_export.checkpoint.formats.text import listed, printable
from bilateral_export.checkpoint.homes import huggingface, segmenter, timm, torchvision
from bilateral_export.checkpoint.homes.conversion import Conversion, Source
from bilateral_export.errors import UserError


@dataclass(frozen=True)
class Home:
    """A library whose checkpoints are read.

    Attributes:
        signature: A pattern of one name that all its models have, with the group `root`: what
            stands before the library's own names.
        convert: Its names to this package's.
        native: Whether its names are this package's too.
    """

    signature: str
    convert: Callable[[Source], Conversion]
    native: bool = False


# The first whose signature fits: a Segmenter's encoder has timm's names.
HOMES = (
    Home(huggingface.SIGNATURE, huggingface.convert),
    Home(segmenter.SIGNATURE, segmenter.convert, native=True),
    Home(torchvision.SIGNATURE, torchvision.convert),
    Home(timm.SIGNATURE, timm.convert, native=True),
)


@dataclass(frozen=True)
class Found:
    """A model inside a state dict.

    Attributes:
        home: Whose names it has.
        root: The prefix of its names, such as "model."; empty where there is none.
        state: Its tensors, without the prefix.
        outside: Names of tensors that are not under the prefix, with the reason why not.
    """

    home: Home
    root: str
    state: dict[str, Tensor]
    outside: dict[str, str]


def find_model(state: Mapping[str, Tensor], path: Path, root: str | None = None) -> Found | None:
    """Find the model of a known home; None where no names are a known home's.

    Args:
        state: Tensors by name.
        path: For messages.
        root: The prefix to take; None takes the only one, or the names without one.

    Raises:
        UserError: Several prefixes have a model and none is chosen, or the chosen one has none.
    """
    roots = roots_of(state)
    if root is not None and root not in roots:
        raise UserError(
            f"checkpoint {path} has no model under the prefix {printable(root)!r}",
            f"It has models under: {listed([repr(name) for name in roots]) or 'no prefix'}.",
        )
    if not roots:
        return None
    if root is None:
        if len(roots) > 1 and "" not in roots:
            some = min(roots)
            raise UserError(
                f"checkpoint {path} has {len(roots)} models, under the prefixes {listed(roots)}",
                f"Say which with --weights, such as --weights {printable(some)}",
            )
        root = "" if "" in roots else next(iter(roots))
    others = [other for other in roots if other != root and not root.startswith(other)]
    inside: dict[str, Tensor] = {}
    outside: dict[str, str] = {}
    for name, tensor in state.items():
        if other := next((other for other in others if name.startswith(other)), None):
            outside[name] = f"another model; --weights {printable(other)} takes it"
        elif name.startswith(root):
            inside[name.removeprefix(root)] = tensor
        else:
            outside[name] = f"outside the prefix {printable(root)!r}"
    return Found(roots[root], root, inside, outside)


def roots_of(state: Mapping[str, Tensor]) -> dict[str, Home]:
    """Every prefix that has a model behind it, with whose names it has."""
    roots: dict[str, Home] = {}
    for home in HOMES:
        for name in state:
            if (match := re.match(home.signature, name)) is None:
                continue
            root = match["root"]
            inner = root.removesuffix("encoder.")
            if home.native and inner != root and inner in roots:
                continue  # the encoder of a Segmenter that was found
            roots.setdefault(root, home)
    return roots
