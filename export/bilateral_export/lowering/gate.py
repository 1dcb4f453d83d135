"""The numerical gate: a rewrite must round like float32 arithmetic, not worse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from bilateral_export.graph.changes import read_metadata
from bilateral_export.lowering.attention_pattern import AttentionPattern
from bilateral_export.lowering.definition import attend_queries, stream_norms
from bilateral_export.lowering.residual_stream import read_residual_stream
from bilateral_export.lowering.weights_apart import without_weights

FACTOR = 4.0
# ONNX Runtime's names of types that are not NumPy's.
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_ROUNDINGS = 4 * float(np.finfo(np.float32).eps)
_SAMPLED = 48
_BATCH = 2


class NotRunError(Exception):
    """A model does not run on made-up inputs: it takes fewer tokens, say."""


@dataclass(frozen=True)
class RoundingError:
    """How far a tensor of a rewritten model is from its reference.

    Attributes:
        name: The tensor, or the operator node of an attention.
        error: Largest relative error of an item, by L2 norms.
        budget: The largest error allowed.
    """

    name: str
    error: float
    budget: float

    @property
    def passed(self) -> bool:
        """Whether the error is within budget; not-a-number is not."""
        return self.error <= self.budget


def measure_attentions(
    rewritten: onnx.ModelProto,
    patterns: Sequence[AttentionPattern],
    factor: float = FACTOR,
    seed: int = 0,
) -> list[RoundingError]:
    """Compare every rewritten attention with its definition in float64, in ONNX Runtime.

    Inputs are random, and each attention's tokens are the model's own activations for them. Only a
    sample of queries is compared, the first and the last among them, so that memory is linear in N,
    like that of the form that is checked.

    Args:
        rewritten: The rewritten model; it has every attention's `tokens` and `merged`.
        patterns: The attentions that were rewritten.
        factor: How much larger than that of float32 arithmetic an error may be.
        seed: Of the inputs and the sample.
    """
    sizes = free_sizes(rewritten) or [None]
    return [
        max(found, key=lambda error: error.error / error.budget)
        for found in zip(
            *(_measure_attentions(rewritten, patterns, factor, seed, size) for size in sizes),
            strict=True,
        )
    ]


def free_sizes(model: onnx.ModelProto) -> list[tuple[int, int] | None]:
    """Return heights and widths to measure a model of several sizes at, its own first."""
    about = read_metadata(model)
    sizes = about.image_sizes if about is not None else {}
    if not sizes:
        return []
    (low, own, high), (left, mine, right) = sizes.values()
    return list(dict.fromkeys([(own, mine), (low, left), (high, left), (high, right)]))


def _measure_attentions(
    rewritten: onnx.ModelProto,
    patterns: Sequence[AttentionPattern],
    factor: float,
    seed: int,
    size: tuple[int, int] | None,
) -> list[RoundingError]:
    wanted = [name for pattern in patterns for name in (pattern.tokens, pattern.merged)]
    places = [pattern.computed for pattern in patterns if pattern.computed]
    values, generator = _activations(rewritten, [*wanted, *places], seed, size)
    errors = []
    for pattern in patterns:
        if pattern.computed:
            coordinates = values[pattern.computed].astype(np.float64)
            pattern = replace(pattern, positions=(coordinates, coordinates))
        tokens, merged = values[pattern.tokens], values[pattern.merged]
        sampled = _sample(tokens.shape[1], generator)
        exact, plain = (
            attend_queries(pattern, tokens, sampled, dtype) for dtype in (np.float64, np.float32)
        )
        errors.append(_rounding_error(pattern.node.name, merged[:, sampled], plain, exact, factor))
    return errors


def measure_norms(
    rewritten: onnx.ModelProto, before: onnx.ModelProto, factor: float = FACTOR, seed: int = 0
) -> list[RoundingError]:
    """Compare every norm of a rewritten residual stream with its definition, in the same way.

    The definition starts from the model's own x0 and from what its branches' linear layers read.
    """
    stream = read_residual_stream(before)
    branches = stream.branches.values()
    wanted = [stream.root, *(b.tokens for b in branches), *(norm.name for norm in stream.norms)]
    values, generator = _activations(rewritten, wanted, seed)
    sampled = _sample(values[stream.root].shape[1], generator)
    values = {name: value[:, sampled] for name, value in values.items()}
    exact, plain = (stream_norms(stream, values, dtype) for dtype in (np.float64, np.float32))
    return [_rounding_error(name, values[name], plain[name], exact[name], factor) for name in exact]


def measure_outputs(
    rewritten: onnx.ModelProto, before: onnx.ModelProto, factor: float = FACTOR, seed: int = 0
) -> list[RoundingError]:
    """Compare every output with what it was before a rewrite.

    For a rewrite that keeps the arithmetic and only changes the shapes of products, and with them
    the order of sums: the budget is four roundings, times the factor.
    """
    names = [value.name for value in before.graph.output]
    got, was = (_activations(model, names, seed)[0] for model in (rewritten, before))
    return [
        RoundingError(name, _largest(got[name], was[name]), factor * _ROUNDINGS) for name in names
    ]


def measure_float_outputs(
    rewritten: onnx.ModelProto, before: onnx.ModelProto, factor: float = FACTOR
) -> list[RoundingError]:
    """Do the same; an output that is not float32, such as a class, fails: it hides rounding."""
    others = [
        RoundingError(value.name, float("inf"), factor * _ROUNDINGS)
        for value in before.graph.output
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
    ]
    return others or measure_outputs(rewritten, before, factor)


@contextlib.contextmanager
def opened(
    model: onnx.ModelProto, *, outputs: Sequence[str] = (), optimised: bool = True
) -> Iterator[onnxruntime.InferenceSession]:
    """Open a model in ONNX Runtime's CPU provider; opening alone needs no optimisation.

    Args:
        model: The model.
        outputs: Tensors of it to give instead of its outputs.
        optimised: Whether ONNX Runtime optimises it.
    """
    # ONNX Runtime refuses weights that it does not need.
    light, weights = without_weights(model, outputs or [value.name for value in model.graph.output])
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_external_initializers(list(weights), values)
    # It reads the arrays for as long as it is used.
    yield onnxruntime.InferenceSession(
        light.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _activations(
    model: onnx.ModelProto,
    wanted: Sequence[str],
    seed: int,
    size: tuple[int, int] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], np.random.Generator]:
    """Run a model in ONNX Runtime on random inputs and return the wanted tensors by name.

    Raises:
        NotRunError: It does not run.
    """
    names = list(dict.fromkeys(wanted))
    generator = np.random.default_rng(seed)
    size = size or next(iter(free_sizes(model)), None)
    with opened(model, outputs=names) as session:
        try:
            values = session.run(names, _inputs(session, generator, size))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise NotRunError(str(error).partition("\n")[0]) from error
    return dict(zip(names, values, strict=True)), generator


def _sample(length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return some tokens' indices, the first and the last among them."""
    chosen = generator.choice(length, size=min(length, _SAMPLED), replace=False)
    return np.asarray(np.unique([0, length - 1, *chosen]), dtype=np.int64)


def _rounding_error(
    name: str,
    got: NDArray[np.float32],
    plain: NDArray[np.float64],
    exact: NDArray[np.float64],
    factor: float,
) -> RoundingError:
    """Return the error against float64, whose budget is that of float32, times the factor."""
    budget = factor * max(_largest(plain, exact), float(np.finfo(np.float32).eps))
    return RoundingError(name, _largest(got, exact), budget)


def _largest(got: NDArray[np.generic], exact: NDArray[np.generic]) -> float:
    """Return the largest relative error of an item, as `bilateral parity` defines it."""
    whole = exact.astype(np.float64).reshape(len(exact), -1)
    difference = got.astype(np.float64).reshape(len(exact), -1) - whole
    errors = np.linalg.norm(difference, axis=-1) / np.maximum(np.linalg.norm(whole, axis=-1), 1e-30)
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


def _inputs(
    session: onnxruntime.InferenceSession,
    generator: np.random.Generator,
    size: tuple[int, int] | None,
) -> dict[str, NDArray[np.generic]]:
    """Make normal floats and integer ones, a batch of two; other free axes get one short length.

    Images of a model of several sizes have the `size`.
    """
    inputs: dict[str, NDArray[np.generic]] = {}
    for node in session.get_inputs():
        free = [_BATCH if axis == 0 else 64 for axis in range(len(node.shape))]
        free[2:] = size or free[2:]
        shape = [
            each if isinstance(each, int) else free[axis] for axis, each in enumerate(node.shape)
        ]
        kind = np.dtype(_TYPES.get(node.type) or node.type[len("tensor(") : -1])
        if kind.kind == "f":
            inputs[node.name] = generator.standard_normal(shape).astype(kind)
        else:
            inputs[node.name] = np.ones(shape, dtype=kind)
    return inputs
