"""Search for the inputs on which a runner is further from the reference than anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bilateral_export.models.family import Exportable
from bilateral_export.parity.measure import Reference, item_errors
from bilateral_export.parity.samples import Sample
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array

POPULATION = 8
# Share of a floating-point input's elements, or of its tokens, that one proposal changes.
_CHANGED = 0.1

Errors = Callable[[dict[str, Array]], Reference]


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        sample: The population, worst item first.
        error: Relative error of that item.
        start: The largest error before the search.
    """

    sample: Sample
    error: float
    start: float


def search(
    model: Exportable, runner: Runner, reference: Runner, steps: int, seed: int = 0
) -> Found:
    """Climb to inputs with a larger error, without gradients.

    An evolution strategy: a population of inputs, each of which proposes a changed copy per step
    and keeps the better of the two; every few steps the worst take a copy of the best. A runtime
    is opaque, and rounding has no useful gradient; proposals are redrawn elements, so that inputs
    stay such as the family draws them.

    The largest error found is larger than any random input's for a correct runner too: compare it
    with the same search against eager PyTorch.

    Args:
        model: Whose family the inputs are drawn for.
        runner: The open runner to disagree with the reference.
        reference: The open FP64 runner.
        steps: How many times every input proposes a change.
        seed: Of the search.
    """
    generator = np.random.default_rng(seed)
    inputs = model.example(POPULATION, generator)
    errors = _errors(runner, reference, inputs)
    start = float(errors.max())
    for step in range(steps):
        proposed = _mutated(inputs, model.example(POPULATION, generator), generator)
        found = _errors(runner, reference, proposed)
        better = found > errors
        for name in inputs:
            inputs[name][better] = proposed[name][better]
        errors = np.where(better, found, errors)
        if step % 5 == 4:
            best, worst = int(errors.argmax()), int(errors.argmin())
            for array in inputs.values():
                array[worst] = array[best]
            errors[worst] = errors[best]
    order = np.argsort(-errors)
    arrays = {name: array[order] for name, array in inputs.items()}
    return Found(Sample(f"adversarial, {steps} steps", arrays), float(errors.max()), start)


def _errors(runner: Runner, reference: Runner, arrays: dict[str, Array]) -> Reference:
    """The largest relative error over the outputs, per item."""
    got, truth = runner.run(arrays), reference.run(arrays)
    each = [item_errors(got[name], truth[name]) for name in truth]
    return np.asarray(np.max(each, axis=0))


def _mutated(
    inputs: dict[str, Array], drawn: dict[str, Array], generator: np.random.Generator
) -> dict[str, Array]:
    """Inputs with a few elements replaced by freshly drawn ones."""
    proposed = {}
    for name, array in inputs.items():
        change = generator.random(array.shape) < _CHANGED * generator.random()
        if array.dtype.kind == "i":
            # A drawn padding id must not appear amid the tokens, nor replace the only one.
            change &= (array != 0) & (drawn[name] != 0)
        proposed[name] = np.where(change, drawn[name], array)
    return proposed
