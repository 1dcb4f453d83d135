"""The adversarial search: inputs on which a runner is furthest from the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bilateral_export.models.family import Family
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.parity.measure import Reference, item_errors
from bilateral_export.preprocessing import (
    ImagePreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
)
from bilateral_export.runners.base import Runner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array

POPULATION = 8
# Share of a floating-point input's elements, or of its tokens, that one proposal redraws.
_CHANGED = 0.1
# Length of a gradient step at first, and when an item gives up on gradients, as a share of the box,
# or of the tokens.
_FIRST_STEP = 0.2
_LAST_STEP = 1e-2
# By how much a proposal must beat what it changes for its item to follow gradients again.
_JUMP = 2.0

Forward = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Box = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        sample: The population, worst item first.
        error: Relative error of that item.
        start: The largest error before the search.
        climbed: How often a step along the gradient made an item's error larger.
    """

    sample: Sample
    error: float
    start: float
    climbed: int


def box_of(
    model: Family, preprocessing: Preprocessing | None, seed: int = 0
) -> dict[str, tuple[Array, Array]]:
    """Return the lowest and the highest values that a search gives floating-point inputs.

    An image: of what preprocessing makes of black and white, per channel. Anything else: of a draw.
    """
    box = {}
    for name, array in model.example(POPULATION, np.random.default_rng(seed)).items():
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = array.min(keepdims=True), array.max(keepdims=True)
        if isinstance(preprocessing, (ImagePreprocessing, SegmentationPreprocessing)):
            mean, std = (
                np.asarray(values, np.float32).reshape(1, -1, 1, 1)
                for values in (preprocessing.mean, preprocessing.std)
            )
            low, high = -mean / std, (1 - mean) / std
        box[name] = low, high
    return box


def search(
    model: Family,
    runner: Runner,
    reference: TorchRunner,
    steps: int,
    seed: int = 0,
    *,
    box: Box | None = None,
    forward: Forward | None = None,
) -> Found:
    """Return inputs with a larger error, reached by gradient ascent and by proposals.

    Half the population does projected gradient ascent (Madry et al., 2018, arXiv:1706.06083) with
    the sign of the gradient, and a step that halves whenever it fails: errors are those of the real
    runner, and an item moves only where its own grew. Of token ids, those are exchanged for which
    the gradient at their embeddings promises most (Ebrahimi et al., 2018, arXiv:1712.06751). The
    other half, items whose step has become too short, and everything without `forward` go by
    proposals: redrawn elements, the better of the two kept. Where a
    proposal steps onto a fault that has no slope from afar, its item follows gradients from there.

    The largest error found is larger than any random input's for a correct runner too: compare it
    with the same search against eager PyTorch.

    Args:
        model: Whose family the inputs are drawn for.
        runner: The open runner to disagree with the reference.
        reference: The open FP64 runner.
        steps: How many times every input moves.
        seed: Of the search.
        box: Where floating-point inputs stay; anywhere that the family draws, if not given.
        forward: The runner as a PyTorch function, for its derivatives: itself, where it is one, or
            a stand-in (`DifferentiableGraph`).
    """
    generator = np.random.default_rng(seed)
    box, padded = box or {}, model.config.pads

    def draw() -> dict[str, Array]:
        return _clipped(model.example(POPULATION, generator), box)

    inputs = draw()
    errors, answers = _errors(runner, reference, inputs)
    start, climbed = float(errors.max()), 0
    lengths = np.zeros(POPULATION)  # of the next step along the gradient; 0 proposes instead
    if forward is not None:
        lengths[::2] = _FIRST_STEP
    for step in range(steps):
        proposed = _mutated(inputs, draw(), generator, padded)
        climbing = lengths > _LAST_STEP
        if forward is not None and climbing.any():
            slope, exchanges = gradient(forward, reference, inputs, *answers, padded=padded)
            moves = _moved(inputs, slope, lengths, box)
            moves |= {n: _exchanged(inputs[n], each, lengths) for n, each in exchanges.items()}
            for name, moved in moves.items():
                proposed[name][climbing] = moved[climbing]
        found, their_answers = _errors(runner, reference, proposed)
        better = found > errors
        for mine, theirs in zip((inputs, *answers), (proposed, *their_answers), strict=True):
            for name in mine:
                mine[name][better] = theirs[name][better]
        climbed += int((better & climbing).sum())
        # A jump by a proposal is the edge of something that the gradient did not see from afar.
        jumped = better & ~climbing & (found > _JUMP * errors)
        lengths = np.where(better, lengths, lengths / 2)
        if forward is not None:
            lengths[jumped] = _FIRST_STEP
        errors = np.where(better, found, errors)
        if step % 5 == 4 and not climbing.any():
            best, worst = int(errors.argmax()), int(errors.argmin())
            for array in [a for arrays in (inputs, *answers) for a in arrays.values()]:
                array[worst] = array[best]
            errors[worst] = errors[best]
    order = np.argsort(-errors)
    arrays = {name: array[order] for name, array in inputs.items()}
    sample = Sample(f"adversarial, {steps} steps", arrays)
    return Found(sample, float(errors.max()), start, climbed)


@dataclass(frozen=True)
class Exchanges:
    """The most promising other id at each place of an integer input.

    Attributes:
        ids: The ids, in the input's shape.
        gains: By how much the error grows with each, to first order; -inf where none may change.
    """

    ids: Array
    gains: Array


def gradient(
    forward: Forward,
    reference: TorchRunner,
    arrays: Mapping[str, Array],
    got: Mapping[str, Array],
    truth: Mapping[str, Array],
    *,
    padded: bool = False,
) -> tuple[dict[str, Array], dict[str, Exchanges]]:
    """Return the gradient of `|c(x) - r(x)| / |r(x)|`, summed over items and floating outputs.

    c and r themselves are the measured answers; only their Jacobians are taken from `forward` and
    the reference. The result is therefore exact where `forward` is the runner, but for its
    rounding, which has no derivative; elsewhere as good as `forward` is.

    Args:
        forward: See `search`.
        reference: The open FP64 runner.
        arrays: x, one item per row.
        got: c(x).
        truth: r(x).
        padded: Whether id 0 is padding, which stays and is never an exchange.

    Returns:
        One array per floating-point input; what to exchange of each input of token ids.
    """
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    leaves = {name: t.requires_grad_() for name, t in tensors.items() if t.is_floating_point()}
    lookups = _Lookups({n: t for n, t in tensors.items() if not t.is_floating_point()})
    with lookups:
        true, mine = reference.forward(tensors), forward(tensors)
    total = torch.zeros((), dtype=torch.float64)
    for name, wanted in truth.items():
        if wanted.dtype.kind != "f":
            continue
        r = torch.from_numpy(wanted.astype(np.float64))
        difference = torch.from_numpy(got[name].astype(np.float64)) - r
        axes = tuple(range(1, r.dim()))
        size = r.square().sum(axes, keepdim=True).sqrt().clamp_min(1e-30)
        distance = difference.square().sum(axes, keepdim=True).sqrt().clamp_min(1e-30)
        pull = difference / distance / size
        total = total + ((mine[name].double() - true[name].double()) * pull).sum()
        total = total - (true[name].double() * (r * distance / size**3)).sum()
    if not total.requires_grad:
        return {}, {}
    wanted_of = [*leaves.values(), *lookups.offsets.values()]
    slopes = torch.autograd.grad(total, wanted_of, allow_unused=True)
    each = dict(zip([*leaves, *lookups.offsets], slopes, strict=True))
    found = {name: slope.nan_to_num() for name, slope in each.items() if slope is not None}
    return (
        {name: found[name].numpy() for name in leaves if name in found},
        {
            name: _exchanges(arrays[name], lookups.tables[name], found[name], padded)
            for name in lookups.offsets
            if name in found
        },
    )


class _Lookups(TorchFunctionMode):
    """Adds zeros to the embeddings of token ids: the gradient there is that at the embeddings.

    Args:
        tokens: The integer inputs.

    Attributes:
        offsets: The zeros, for the inputs that were looked up in a table.
        tables: The first table of each.
    """

    def __init__(self, tokens: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tokens = tokens
        self.offsets: dict[str, Tensor] = {}
        self.tables: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return made
        ids, table = args[:2]
        for name, tokens in self._tokens.items():
            if torch.equal(ids.reshape(-1), tokens.reshape(-1)):
                zeros = torch.zeros(made.shape, dtype=torch.float64, requires_grad=True)
                self.tables.setdefault(name, table.detach().double())
                return made + self.offsets.setdefault(name, zeros).to(made.dtype)
        return made


def _exchanges(tokens: Array, table: Tensor, slope: Tensor, padded: bool) -> Exchanges:
    """Return the best exchange at every place: the embedding furthest along the gradient."""
    first = int(padded)
    ids, gains = tokens.copy().reshape(-1), np.full(tokens.size, -np.inf)
    for place, along in enumerate(slope.reshape(tokens.size, -1)):
        if ids[place] >= first:
            scores = table @ along
            best = first + int(scores[first:].argmax())
            gains[place] = scores[best] - scores[ids[place]]
            ids[place] = best
    return Exchanges(ids.reshape(tokens.shape), gains.reshape(tokens.shape))


def _moved(
    inputs: Mapping[str, Array], slope: Mapping[str, Array], lengths: Reference, box: Box
) -> dict[str, Array]:
    """Return each item a step along the sign of its gradient, clipped to the box."""
    moved = {}
    for name in slope.keys() & box.keys():
        low, high = box[name]
        length = lengths.reshape(-1, *[1] * (inputs[name].ndim - 1)) * np.subtract(high, low)
        moved[name] = inputs[name] + length * np.sign(slope[name])
        moved[name] = moved[name].astype(inputs[name].dtype)
    return _clipped(moved, box)


def _exchanged(tokens: Array, exchanges: Exchanges, lengths: Reference) -> Array:
    """Return each item with the most promising share of its ids exchanged, one at least."""
    moved = tokens.copy()
    for item, length in enumerate(lengths):
        gains = exchanges.gains[item].reshape(-1)
        chosen = np.argsort(-gains)[: max(1, round(length * gains.size))]
        chosen = chosen[gains[chosen] > 0]
        moved[item].reshape(-1)[chosen] = exchanges.ids[item].reshape(-1)[chosen]
    return moved


def _errors(
    runner: Runner, reference: Runner, arrays: dict[str, Array]
) -> tuple[Reference, tuple[dict[str, Array], dict[str, Array]]]:
    """Return the largest relative error over the outputs, per item, and both answers."""
    got, truth = ({n: a.copy() for n, a in r.run(arrays).items()} for r in (runner, reference))
    each = [item_errors(got[name], truth[name]) for name in truth]
    return np.asarray(np.max(each, axis=0)), (got, truth)


def _clipped(arrays: dict[str, Array], box: Box) -> dict[str, Array]:
    return {
        name: np.clip(array, *box[name]).astype(array.dtype) if name in box else array
        for name, array in arrays.items()
    }


def _mutated(
    inputs: dict[str, Array],
    drawn: dict[str, Array],
    generator: np.random.Generator,
    padded: bool,
) -> dict[str, Array]:
    """Return inputs with a few elements replaced by freshly drawn ones."""
    proposed = {}
    for name, array in inputs.items():
        change = generator.random(array.shape) < _CHANGED * generator.random()
        if array.dtype.kind == "i" and padded:
            # A drawn padding id must not appear amid the tokens, nor replace the only one.
            change &= (array != 0) & (drawn[name] != 0)
        proposed[name] = np.where(change, drawn[name], array)
    return proposed
