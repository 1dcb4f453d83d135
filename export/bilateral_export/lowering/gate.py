"""The gate: a rewritten site must round like float32 arithmetic, not worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from bilateral_export.lowering.attention_pattern import Site
from bilateral_export.lowering.definition import attend_rows, stream_norms
from bilateral_export.lowering.residual_stream import Stream

FACTOR = 4.0
# ONNX Runtime's names of types that are not NumPy's.
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_ROWS = 48
_BATCH = 2


@dataclass(frozen=True)
class SiteError:
    """How far a rewritten site is from float64, on the model's own activations.

    Attributes:
        name: The operator node's name.
        error: Largest relative error of an item: L2 norms over the sampled queries and all heads.
        plain_error: The same of the definition computed in float32.
        budget: What `error` may be.
    """

    name: str
    error: float
    plain_error: float
    budget: float

    @property
    def passed(self) -> bool:
        """Whether the error is within budget; not-a-number is not."""
        return self.error <= self.budget


def measure_sites(
    lowered: onnx.ModelProto, sites: Sequence[Site], factor: float = FACTOR, seed: int = 0
) -> list[SiteError]:
    """Run a lowered model with ONNX Runtime and compare every rewritten site with its definition.

    The tokens of each site are the model's own, for a made-up input; the definition is computed
    from them in float64, for a sample of queries that has the first and the last. So the check
    takes memory linear in N, like the form it checks.

    Args:
        lowered: The rewritten model; it holds every site's `tokens` and `merged`.
        sites: The sites that were rewritten.
        factor: How much larger than that of plain float32 an error may be.
        seed: Of the input and the sample.
    """
    wanted = [name for site in sites for name in (site.tokens, site.merged)]
    values, generator = _activations(lowered, wanted, seed)
    return [_compare(site, values, factor, generator) for site in sites]


def measure_norms(
    lowered: onnx.ModelProto, stream: Stream, factor: float = FACTOR, seed: int = 0
) -> list[SiteError]:
    """Compare every norm of a rewritten stream with its definition, in the same way.

    The definition starts from the model's own x0 and from what its branches' linear layers read.
    """
    branches = stream.branches.values()
    wanted = [stream.root, *(b.tokens for b in branches), *(norm.name for norm in stream.norms)]
    values, generator = _activations(lowered, wanted, seed)
    rows = _sample(values[stream.root].shape[1], generator)
    values = {name: value[:, rows] for name, value in values.items()}
    exact, plain = (stream_norms(stream, values, dtype) for dtype in (np.float64, np.float32))
    return [
        _site_error(name, values[name].astype(np.float64), plain[name], exact[name], factor)
        for name in exact
    ]


def measure_outputs(
    rewritten: onnx.ModelProto, before: onnx.ModelProto, factor: float = FACTOR, seed: int = 0
) -> tuple[float, float]:
    """Largest relative difference of an output from what it was before a rewrite, and its budget.

    For a rewrite that leaves the arithmetic as it is, so that only the shapes of products change
    and with them the order of sums: the budget is four roundings, times the factor.
    """
    names = [value.name for value in before.graph.output]
    got, was = (_activations(model, names, seed)[0] for model in (rewritten, before))
    error = max(_largest(*(one[name].astype(np.float64) for one in (got, was))) for name in names)
    return error, factor * 4 * float(np.finfo(np.float32).eps)


def open_session(model: onnx.ModelProto, *, optimised: bool = True) -> onnxruntime.InferenceSession:
    """A model in ONNX Runtime's CPU provider; one that is only opened need not be optimised."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _activations(
    lowered: onnx.ModelProto, wanted: Sequence[str], seed: int
) -> tuple[dict[str, NDArray[np.float32]], np.random.Generator]:
    """Tensors of a model for a made-up input, by name, from ONNX Runtime."""
    probe = onnx.ModelProto()
    probe.CopyFrom(lowered)
    del probe.graph.output[:]
    names = list(dict.fromkeys(wanted))
    for name in names:
        probe.graph.output.add(name=name)  # ONNX Runtime infers its type
    session = open_session(probe)
    generator = np.random.default_rng(seed)
    values = session.run(names, _inputs(session, generator))
    return dict(zip(names, values, strict=True)), generator


def _sample(length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Some tokens, the first and the last among them."""
    chosen = generator.choice(length, size=min(length, _ROWS), replace=False)
    return np.asarray(np.unique([0, length - 1, *chosen]), dtype=np.int64)


def _compare(
    site: Site,
    values: dict[str, NDArray[np.float32]],
    factor: float,
    generator: np.random.Generator,
) -> SiteError:
    tokens, merged = values[site.tokens], values[site.merged]
    rows = _sample(tokens.shape[1], generator)
    exact, plain = (attend_rows(site, tokens, rows, dtype) for dtype in (np.float64, np.float32))
    return _site_error(site.node.name, merged[:, rows].astype(np.float64), plain, exact, factor)


def _site_error(
    name: str,
    got: NDArray[np.float64],
    plain: NDArray[np.float64],
    exact: NDArray[np.float64],
    factor: float,
) -> SiteError:
    plain_error = _largest(plain, exact)
    return SiteError(
        name=name,
        error=_largest(got, exact),
        plain_error=plain_error,
        budget=factor * max(plain_error, float(np.finfo(np.float32).eps)),
    )


def _largest(got: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """Largest relative error of an item, as `bilateral parity` defines it."""
    difference, whole = (array.reshape(len(exact), -1) for array in (got - exact, exact))
    errors = np.linalg.norm(difference, axis=-1) / np.maximum(np.linalg.norm(whole, axis=-1), 1e-30)
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


def _inputs(
    session: onnxruntime.InferenceSession, generator: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    """Normal floats and ones, a batch of two; another free axis gets the same small length."""
    inputs: dict[str, NDArray[np.generic]] = {}
    for node in session.get_inputs():
        free = [_BATCH if axis == 0 else 64 for axis in range(len(node.shape))]
        shape = [
            size if isinstance(size, int) else free[axis] for axis, size in enumerate(node.shape)
        ]
        kind = np.dtype(_TYPES.get(node.type) or node.type[len("tensor(") : -1])
        if kind.kind == "f":
            inputs[node.name] = generator.standard_normal(shape).astype(kind)
        else:
            inputs[node.name] = np.ones(shape, dtype=kind)
    return inputs
