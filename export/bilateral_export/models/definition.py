"""Definition of a model from outside this package: a module, its inputs, what it decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import Preprocessing
from bilateral_export.tensors import BATCH, Array, TensorSpec

_KINDS = ("float32", "int64", "int32", "bool")


@dataclass(frozen=True)
class ModelDefinition:
    """Everything that export, parity and serving need to know of your model.

    Attributes:
        module: The module, with any weights; those of the checkpoint replace them. It is called
            with one tensor per input, in their order, and returns a tensor, a tuple, a list or a
            dictionary of tensors; whatever is None is left out.
        inputs: Its inputs. The first dimension is called "batch"; another dimension with a name is
            dynamic, and the same name means the same size.
        outputs: Names of the outputs, in the order they are returned; "output", or the dictionary's
            keys, if not given. Types and shapes are found by running the module.
        sizes: The smallest and the largest size of every dynamic dimension but the batch.
        values: Range `[low, high)` of the random values of an input; needed for whole numbers.
            Floating-point inputs are standard normal without.
        example: Returns random valid inputs by name, in place of `values`, where inputs depend on
            each other; called as `example(batch, generator, **sizes)`.
        decide: Turns scores `[B, classes, S, S]`, which the module returns, into labels
            `[B, S, S]`, whole numbers; the graph then returns labels. One input, one output. Where
            it is None, scores `[B, classes]` decide by their largest.
        labels: Class names, in the order of the scores; or none.
        preprocessing: How a file becomes the input, so that `bilateral infer` can; or None.
        name: The model's name; that of the Python file if empty.
        license: Licence of the weights.
    """

    module: nn.Module
    inputs: Sequence[TensorSpec]
    outputs: Sequence[str] = ()
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    example: Callable[..., dict[str, Array]] | None = None
    decide: Callable[[Tensor], Tensor] | None = None
    labels: Sequence[str] = ()
    preprocessing: Preprocessing | None = None
    name: str = ""
    license: str = "unknown"

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions but the batch, in the order of the inputs."""
        sizes = [size for spec in self.inputs for size in spec.shape if isinstance(size, str)]
        return tuple(dict.fromkeys(size for size in sizes if size != BATCH))

    def check(self) -> None:
        """Check what can be checked without running the module.

        Raises:
            UserError: The first thing that does not fit.
        """
        if not isinstance(self.module, nn.Module):
            kind = type(self.module).__name__
            raise UserError(f"the definition's module is a {kind}", "Give an nn.Module.")
        if not self.inputs:
            raise UserError("the definition has no inputs", "Give a TensorSpec for each argument.")
        for spec in self.inputs:
            if not spec.shape or spec.shape[0] != BATCH:
                raise UserError(
                    f"input {spec} does not begin with the batch",
                    f'Write its shape as ("{BATCH}", ...).',
                )
            if spec.dtype not in _KINDS:
                raise UserError(f"input {spec} is {spec.dtype}", f"Use {', '.join(_KINDS)}.")
            if spec.dtype.startswith("int") and not self.example and spec.name not in self.values:
                raise UserError(
                    f"input {spec} has whole numbers, and nothing says which are valid",
                    f'Give values={{"{spec.name}": (low, high)}}, such as (0, vocabulary).',
                )
        if missing := [name for name in self.dynamic if name not in self.sizes]:
            raise UserError(
                f"the dynamic dimension {missing[0]} has no sizes",
                f'Give sizes={{"{missing[0]}": (smallest, largest)}}.',
            )
        for name, (low, high) in self.sizes.items():
            if not 0 < low < high:
                raise UserError(
                    f"the sizes of dimension {name} are {low} and {high}",
                    "Give two that rise, from 1 on; for one size write the number into the shape.",
                )
        if self.decide is not None and len(self.inputs) != 1:
            raise UserError("decide is for a module of one input", "Leave it out.")

    def draw(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs by name.

        Args:
            batch: Number of items.
            generator: Source of randomness.
            dims: Sizes of dynamic dimensions; halfway between smallest and largest if left out.
        """
        usual = {name: sum(self.sizes[name]) // 2 for name in self.dynamic}
        sizes = usual | dims
        if self.example is not None:
            return dict(self.example(batch, generator, **sizes))
        known = sizes | {BATCH: batch}
        return {
            spec.name: self._values(
                spec,
                generator,
                [known[size] if isinstance(size, str) else size for size in spec.shape],
            )
            for spec in self.inputs
        }

    def _values(
        self, spec: TensorSpec, generator: np.random.Generator, shape: Sequence[int]
    ) -> Array:
        if spec.dtype == "bool":
            return generator.integers(0, 2, shape).astype(np.bool_)
        bounds = self.values.get(spec.name)
        if spec.dtype.startswith("int"):
            low, high = bounds or (0, 1)
            return generator.integers(int(low), int(high), shape).astype(spec.dtype)
        if bounds is not None:
            return generator.uniform(*bounds, shape).astype(spec.dtype)
        return generator.standard_normal(shape).astype(spec.dtype)
