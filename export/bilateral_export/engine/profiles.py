"""Optimisation profiles: the ranges of shapes a plan is built for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bilateral_export.errors import UserError

Shape = tuple[int, ...]
DEFAULT_MAX_BATCH = 32
_FORM = 'Write it as "input=1x3x224x224:8x3x224x224:32x3x224x224" (minimum:optimum:maximum).'


@dataclass(frozen=True)
class Range:
    """The shapes one input may take: smallest, the one to tune for, largest."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        ranks = {len(self.minimum), len(self.optimum), len(self.maximum)}
        if len(ranks) != 1:
            raise UserError(f"the three shapes of {self} differ in their number of dimensions")
        sizes = zip(self.minimum, self.optimum, self.maximum, strict=True)
        for axis, (low, middle, high) in enumerate(sizes):
            # A batch holds something; another dimension may be empty, such as a cache at first.
            if not (axis > 0 or low >= 1) or not 0 <= low <= middle <= high:
                raise UserError(
                    f"{self} is not ordered",
                    "Each dimension needs minimum <= optimum <= maximum, and a batch at least 1.",
                )

    def __str__(self) -> str:
        return ":".join(map(shape_text, (self.minimum, self.optimum, self.maximum)))

    def contains(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of this shape may be given to the plan."""
        return len(shape) == len(self.minimum) and all(
            low <= size <= high
            for low, size, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


Profile = Mapping[str, Range]


def shape_text(shape: Sequence[int]) -> str:
    """Return `(1, 3, 224, 224)` as `1x3x224x224`, a scalar's shape as `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def parse_profile(text: str) -> dict[str, Range]:
    """Return one profile as it is written on the command line.

    Args:
        text: `input=MIN:OPT:MAX` for each dynamic input, separated by commas; shapes as `1x3x8x8`.

    Raises:
        UserError: The text has another form, an input is named twice, or a range is not ordered.
    """
    profile: dict[str, Range] = {}
    for part in text.split(","):
        name, _, shapes = part.strip().partition("=")
        pieces = shapes.split(":")
        if not name or len(pieces) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", p) for p in pieces):
            raise UserError(f'profile "{text}" cannot be read at "{part.strip()}"', _FORM)
        if name in profile:
            raise UserError(f'profile "{text}" names input {name} twice', "Name each input once.")
        low, middle, high = (tuple(map(int, piece.split("x"))) for piece in pieces)
        profile[name] = Range(low, middle, high)
    return profile


def default_profile(
    inputs: Mapping[str, Shape],
    max_batch: int = DEFAULT_MAX_BATCH,
    sizes: Mapping[tuple[str, int], tuple[int, int]] | None = None,
    usual: Mapping[tuple[str, int], int] | None = None,
) -> dict[str, Range]:
    """Return a profile for a model whose user gave none.

    The first dimension of an input, where it is dynamic, is the batch: 1 to `max_batch`, tuned for
    a quarter of it. A later dynamic dimension is tuned for its usual size, else its largest.

    Args:
        inputs: Shape by input name, -1 where dynamic.
        max_batch: The largest batch.
        sizes: The smallest and the largest size of (input, axis), for dynamic axes but the first.
        usual: The size to tune (input, axis) for.

    Returns:
        The range of each dynamic input; empty when there is none.

    Raises:
        UserError: A later dimension is dynamic and no size is known for it.
    """
    sizes = sizes or {}
    profile = {}
    for name, shape in inputs.items():
        if -1 not in shape:
            continue
        low, middle, high = [], [], []
        for axis, size in enumerate(shape):
            if size >= 0:
                bounds = (size, size, size)
            elif axis == 0:
                bounds = (1, max(1, max_batch // 4), max_batch)
            elif (name, axis) in sizes:
                least, most = sizes[name, axis]
                bounds = (least, (usual or {}).get((name, axis), most), most)
            else:
                raise UserError(
                    f"input {name} has a dynamic dimension {axis} whose range is not known",
                    f"Give --profile. {_FORM}",
                )
            low.append(bounds[0])
            middle.append(bounds[1])
            high.append(bounds[2])
        profile[name] = Range(tuple(low), tuple(middle), tuple(high))
    return profile


def check_profile(profile: Profile, inputs: Mapping[str, Shape]) -> None:
    """Refuse a profile that does not fit the model's inputs.

    Raises:
        UserError: It names an input the model lacks, leaves out a dynamic one, or its shapes
            disagree with the model's fixed dimensions.
    """
    dynamic = [name for name, shape in inputs.items() if -1 in shape]
    for name in profile:
        if name not in inputs:
            raise UserError(
                f"the profile names input {name}, which the model does not have",
                f"Its inputs are {', '.join(inputs)}.",
            )
    for name in dynamic:
        if name not in profile:
            raise UserError(f"the profile leaves out the dynamic input {name}", _FORM)
    for name, wanted in profile.items():
        for shape in (wanted.minimum, wanted.optimum, wanted.maximum):
            fixed = inputs[name]
            fits = len(shape) == len(fixed) and all(
                expected in (-1, size) for expected, size in zip(fixed, shape, strict=True)
            )
            if not fits:
                raise UserError(
                    f"the profile gives {name} the shape {shape_text(shape)},"
                    f" the model has {shape_text(fixed)} (-1 is dynamic)",
                    "Change only the dynamic dimensions.",
                )


def max_batch(profiles: Sequence[Profile], inputs: Mapping[str, Shape]) -> int:
    """Return the largest batch a plan accepts: the most a server's max_batch_size may be.

    Args:
        profiles: The plan's profiles.
        inputs: The model's input shapes, -1 where dynamic.

    Returns:
        The largest first dimension that every input with a dynamic one accepts in some profile; 0
        when any input's first dimension is fixed, for then requests cannot be batched.
    """
    if not inputs or any(not shape or shape[0] != -1 for shape in inputs.values()):
        return 0
    return max(min(profile[name].maximum[0] for name in inputs) for profile in profiles)
