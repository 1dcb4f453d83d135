"""Validation of answers under load: as the model declares them, and like the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import InferResult, service_pb2

from bilateral_benchmarks.load.run import RunFailedError
from bilateral_export.tensors import Array, TensorSpec

# Rounding depends on what the server batches together, so the same input need not give the same
# bits: this share of the largest magnitude in the first answer (bf16 keeps 8 bits), or of the whole
# numbers, such as the classes of pixels.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Expected:
    """The first answer to a request, which every other is compared with.

    Attributes:
        outputs: Its arrays by name.
    """

    outputs: Mapping[str, Array]

    def problem(self, answer: bytes) -> str | None:
        """Return why a serialised ModelInferResponse is not the answer; None if it is."""
        try:
            return self.difference(parse(answer))
        except ValueError as error:
            return f"wrong answer: {error}"

    def difference(self, outputs: Mapping[str, Array]) -> str | None:
        """Return why arrays are not the answer; None if they are."""
        if outputs.keys() != self.outputs.keys():
            return f"wrong answer: outputs {', '.join(outputs) or 'none'}"
        for name, first in self.outputs.items():
            if why := _difference(first, outputs[name]):
                return f"wrong answer: output {name} {why}"
        return None


def first_answer(
    model: str,
    specs: Sequence[TensorSpec],
    inputs: Mapping[str, Array],
    declared: Sequence[TensorSpec],
    outputs: Mapping[str, Array],
) -> Expected:
    """Judge the first answer by what the model declares.

    Args:
        model: The model's name, for the message.
        specs: Its inputs.
        inputs: The arrays that were sent.
        declared: Its outputs.
        outputs: The arrays that came back.

    Raises:
        RunFailedError: An output is missing, or has another type, shape or number of rows than
            declared, or a value that is not finite.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        sizes |= {
            name: size
            for name, size in zip(spec.shape, inputs[spec.name].shape, strict=False)
            if isinstance(name, str)
        }
    for spec in declared:
        found = outputs.get(spec.name)
        fits = found is not None and found.ndim == len(spec.shape)
        if found is None:
            why = "is missing"
        elif found.dtype.name != spec.dtype:
            why = f"is {found.dtype.name}"
        elif not fits or any(
            got != (sizes.setdefault(size, got) if isinstance(size, str) else size)
            for size, got in zip(spec.shape, found.shape, strict=True)
        ):
            why = f"has shape {list(found.shape)}"
        elif not _finite(found):
            why = "holds NaN or infinity"
        else:
            continue
        raise RunFailedError(
            f"model {model} does not answer as it declares: output {spec.name} {why}",
            f"Expected {spec} for {', '.join(f'{n} {list(a.shape)}' for n, a in inputs.items())}.",
        )
    return Expected(outputs)


def parse(answer: bytes) -> dict[str, Array]:
    """Return the arrays of a serialised ModelInferResponse.

    Raises:
        ValueError: It is none, or an output's bytes do not fill its shape.
    """
    try:
        response = service_pb2.ModelInferResponse.FromString(answer)
    except Exception as error:  # protobuf's DecodeError, whichever implementation it is from
        raise ValueError("it is not a ModelInferResponse") from error
    result = InferResult(response)
    outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
    if empty := [name for name, array in outputs.items() if array is None]:
        raise ValueError(f"output {empty[0]} has no data")
    return outputs


def _difference(first: Array, found: Array) -> str | None:
    if found.dtype != first.dtype or found.shape != first.shape:
        is_, was = (f"{array.dtype.name}{list(array.shape)}" for array in (found, first))
        return f"is {is_}, not {was}"
    if not _finite(found):
        return "holds NaN or infinity"
    if not first.size or np.array_equal(first, found):
        return None
    if not _is_float(first):
        share = float(np.mean(first != found))
        return f"differs from the first answer in {share:.1%}" if share > TOLERANCE else None
    one, other = first.astype(np.float64), found.astype(np.float64)
    error, most = np.abs(one - other).max(), np.abs(one).max()
    if error <= TOLERANCE * most:
        return None
    return f"differs from the first answer by {error:.3g} (its largest value is {most:.3g})"


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _finite(array: Array) -> bool:
    return not _is_float(array) or bool(np.isfinite(array.astype(np.float64)).all())
