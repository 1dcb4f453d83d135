"""The adapter that makes a family of a user's own module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bilateral_export.errors import UserError
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.models.registry import register
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.models.user_code import user_line
from bilateral_export.preprocessing import (
    ImagePreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
)
from bilateral_export.tensors import BATCH, Array, TensorSpec

FAMILY = "user-model"
# Where the user's module is in the adapter, and so in front of its weights' names.
SCOPE = "module"


class UserModelConfig(FamilyConfig):
    """What a file says of a user's module: its interface. The code stays where it is.

    Attributes:
        source: The Python file and the function, such as "my_model.py:build"; without a directory.
        inputs: The inputs, written as `TensorSpec` prints them.
        outputs: The outputs, likewise.
        num_classes: Number of classes, where the one output is scores or labels; else 0.
        shape: Of the first input without the batch; dynamic dimensions are -1.
    """

    family: Literal["user-model"] = "user-model"
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_classes: int = Field(default=0, ge=0)
    shape: tuple[int, ...] = ()
    # Not known of a user's module.
    attention: AttentionConfig = Field(default=AttentionConfig(), exclude=True)
    residual: ResidualConfig = Field(default=ResidualConfig(), exclude=True)

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a preprocessing makes tensors of the first input's shape."""
        made: tuple[int, ...]
        if isinstance(how, ImagePreprocessing):
            made = (how.channels, how.height, how.width)
        elif isinstance(how, SegmentationPreprocessing):
            made = (3, how.window, how.window)
        elif isinstance(how, PixelsPreprocessing):
            made = (how.height * how.width,)
        else:
            made = (-1,) * (2 if getattr(how, "documents", 1) == 2 else 1)
        fits = len(made) == len(self.shape) and all(
            -1 in (mine, theirs) or mine == theirs
            for mine, theirs in zip(made, self.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"the preprocessing makes {list(made)}, the first input is {list(self.shape)}"
            )


class UserModel(Family):
    """A user's module with the interface of a family.

    Args:
        config: Its interface.
        definition: What the user's code returned; None where there is only a checkpoint or an
            exported file, whose code is never run without being asked for.
        directory: Where the user's code is.

    Raises:
        UserError: There is no definition.
    """

    config: UserModelConfig
    source_directory: Path
    scope: ClassVar[str] = f"{SCOPE}."

    def __init__(
        self,
        config: UserModelConfig,
        definition: ModelDefinition | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__()
        if definition is None or directory is None:
            raise UserError(
                f"this is a model of your own, whose code is {config.source}",
                f"Give --model {config.source}, with its path; this runs the file's code.",
            )
        self.config = config
        self.definition = definition
        self.source_directory = directory
        self.module = definition.module
        self._outputs: tuple[TensorSpec, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> UserModel:
        """Return a copy with weights of its own; the definition keeps the original module."""
        made = type(self)(self.config, self.definition, self.source_directory)
        made.module = copy.deepcopy(self.module, memo)
        made._outputs = self._outputs
        return made.train(self.training)

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the definition's inputs."""
        return tuple(self.definition.inputs)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs that were found by running the module."""
        return self._outputs

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs as the definition draws them."""
        return self.definition.draw(batch, generator, **dims)

    def corners(self) -> tuple[dict[str, int], ...]:
        """Return the smallest and the largest sizes, then those between."""
        sizes = {name: self.definition.sizes[name] for name in self.definition.dynamic}
        if not sizes:
            return ({},)
        return tuple(
            {name: pick(bounds) for name, bounds in sizes.items()}
            for pick in (min, max, lambda bounds: sum(bounds) // 2)
        )

    def scores(self, *inputs: Tensor) -> Tensor:
        """Return the scores that `decide` takes, float32 or wider."""
        (scores,) = self.named(*inputs).values()
        return scores

    def decide(self, scores: Tensor) -> Tensor:
        """Return what the definition's function makes of scores."""
        assert self.definition.decide is not None
        return self.definition.decide(scores).to(torch.int32)

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the module's outputs by name, computed in its own type, float32 or wider."""
        dtype = self._dtype()
        given = [each.to(dtype) if dtype and each.is_floating_point() else each for each in inputs]
        wide = torch.float64 in (dtype, *(each.dtype for each in inputs))
        kind = torch.float64 if wide else torch.float32
        return {
            name: each.to(kind) if each.is_floating_point() else each
            for name, each in self._flat(self.module(*given)).items()
        }

    def _dtype(self) -> torch.dtype | None:
        """The type of most floating-point weights; some stay float32 in every precision."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.module.parameters():
            if tensor.is_floating_point():
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=lambda each: counts[each], default=None)

    def _flat(self, result: Any) -> dict[str, Tensor]:
        """Outputs by name, of whatever the module returned."""
        if isinstance(result, Tensor):
            found = [("output", result)]
        elif isinstance(result, Mapping):
            found = [(str(name), each) for name, each in result.items()]
        elif isinstance(result, Sequence):
            found = [(f"output_{number}", each) for number, each in enumerate(result)]
        else:
            found = [("output", result)]
        found = [(name, each) for name, each in found if each is not None]
        for name, each in found:
            if not isinstance(each, Tensor):
                raise UserError(
                    f"output {name} of {self.config.source} is a {type(each).__name__}",
                    "Return tensors: one, a tuple, or a dictionary.",
                )
        names = tuple(self.definition.outputs) or tuple(name for name, _ in found)
        if len(names) != len(found):
            raise UserError(
                f"{self.config.source} names {len(names)} outputs, and its module returns"
                f" {len(found)}",
                "Name every one, in the order they are returned.",
            )
        return dict(zip(names, (each for _, each in found), strict=True))

    def find_outputs(self) -> None:
        """Run the module at a few sizes and keep names, types and shapes of its outputs.

        Raises:
            UserError: It fails, with the user's line; or an output does not begin with the batch.
        """
        usual = {name: sum(self.definition.sizes[name]) // 2 for name in self.definition.dynamic}
        base = self._shapes(2, usual)
        varied = {BATCH: self._shapes(3, usual)}
        for name, size in usual.items():
            low, high = self.definition.sizes[name]
            other = high if size == low else low
            varied[name] = self._shapes(2, usual | {name: other})
        sizes = usual | {BATCH: 2}
        specs = []
        for output, (dtype, shape) in base.items():
            found: list[int | str] = []
            for axis, size in enumerate(shape):
                causes = [d for d, shapes in varied.items() if shapes[output][1][axis] != size]
                if not causes:
                    found.append(size)
                elif len(causes) == 1 and size == sizes[causes[0]]:
                    found.append(causes[0])
                else:
                    found.append(f"{output}.{axis}")
            spec = TensorSpec(output, dtype, tuple(found))
            if not found or found[0] != BATCH:
                raise UserError(
                    f"output {spec} of {self.config.source} does not begin with the batch",
                    "Return one row per item of the batch.",
                )
            specs.append(spec)
        self._outputs = tuple(specs)

    def _shapes(
        self, batch: int, sizes: Mapping[str, int]
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        drawn = self.example(batch, np.random.default_rng(0), **sizes)
        source = self.config.source.partition(":")[0]
        if missing := [spec.name for spec in self.inputs() if spec.name not in drawn]:
            raise UserError(f"the example of {source} has no {missing[0]}", "Draw every input.")
        shown = ", ".join(f"{name} {list(array.shape)}" for name, array in drawn.items())
        given = [torch.from_numpy(drawn[spec.name]) for spec in self.inputs()]
        with user_line(self.source_directory, f"{source} cannot take {shown}"), torch.no_grad():
            results = self.named(*given)
            if self.decides:
                results = {name: self.decide(each) for name, each in results.items()}
        return {
            name: (str(each.dtype).removeprefix("torch."), tuple(each.shape))
            for name, each in results.items()
        }


class DecidingUserModel(UserModel):
    """A user's module whose graph returns labels, decided from its scores."""

    decides: ClassVar[bool] = True


def user_model(definition: ModelDefinition, source: str, directory: Path) -> UserModel:
    """Return a definition's module as a family, in evaluation mode.

    Args:
        definition: What the user's code returned.
        source: Where it is from, such as "my_model.py:build".
        directory: Of that file.

    Raises:
        UserError: The definition does not fit itself, or the module fails.
    """
    definition.check()
    definition.module.eval()
    shape = tuple(-1 if isinstance(n, str) else n for n in definition.inputs[0].shape[1:])
    base = DecidingUserModel if definition.decide is not None else UserModel
    names = [spec.name for spec in definition.inputs]
    kind = type(base.__name__, (base,), {"forward": _forward(names, base.decides)})
    config = UserModelConfig(
        source=source, inputs=tuple(map(str, definition.inputs)), outputs=(), shape=shape
    )
    model: UserModel = kind(config, definition, directory)
    model.eval()
    model.find_outputs()
    outputs = model.outputs()
    if definition.decide is not None and (
        len(outputs) != 1 or len(outputs[0].shape) != 3 or not outputs[0].dtype.startswith("int")
    ):
        raise UserError(
            f"decide of {source} returns {', '.join(map(str, outputs))}",
            "It turns scores [B, classes, S, S] into labels [B, S, S].",
        )
    model.config = config.model_copy(
        update={"outputs": tuple(map(str, outputs)), "num_classes": _classes(model)}
    )
    return model


def _classes(model: UserModel) -> int:
    """The number of classes that the one output, or what decides it, has scores for."""
    if model.decides:
        drawn = model.example(1, np.random.default_rng(0))
        with torch.no_grad():
            scores = model.scores(*(torch.from_numpy(drawn[s.name]) for s in model.inputs()))
        return scores.shape[1]
    outputs = [spec for spec in model.outputs() if spec.dtype.startswith("float")]
    if len(outputs) != 1 or len(outputs[0].shape) not in (2, 4):
        return 0
    classes = outputs[0].shape[1]
    return classes if isinstance(classes, int) else 0


def _forward(names: Sequence[str], decides: bool) -> Any:
    """A `forward` with one named argument per input: what the tracer reads names from."""

    def forward(self: UserModel, *inputs: Tensor) -> Any:
        if decides:
            return self.decide(self.scores(*inputs))
        results = tuple(self.named(*inputs).values())
        return results[0] if len(results) == 1 else results

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("self", kind),
        *(inspect.Parameter(f"input_{number}", kind) for number in range(len(names))),
    ]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


register(UserModelConfig, UserModel)
