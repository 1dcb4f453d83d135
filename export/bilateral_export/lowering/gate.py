"""The gate: a rewritten site must round like float32 arithmetic, not worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from bilateral_export.lowering.reference import attend_rows
from bilateral_export.lowering.site import Site

FACTOR = 4.0
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
    probe = onnx.ModelProto()
    probe.CopyFrom(lowered)
    del probe.graph.output[:]
    wanted = list(dict.fromkeys(name for site in sites for name in (site.tokens, site.merged)))
    for name in wanted:
        probe.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(seed)
    values = dict(zip(wanted, session.run(wanted, _inputs(session, generator)), strict=True))
    return [_compare(site, values, factor, generator) for site in sites]


def _compare(
    site: Site,
    values: dict[str, NDArray[np.float32]],
    factor: float,
    generator: np.random.Generator,
) -> SiteError:
    tokens, merged = values[site.tokens], values[site.merged]
    length = tokens.shape[1]
    sample = generator.choice(length, size=min(length, _ROWS), replace=False)
    rows = np.unique(np.concatenate([[0, length - 1], sample]))
    exact = attend_rows(site, tokens, rows, np.float64)
    plain_error = _largest(attend_rows(site, tokens, rows, np.float32), exact)
    return SiteError(
        name=site.node.name,
        error=_largest(merged[:, rows].astype(np.float64), exact),
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
        if node.type == "tensor(float)":
            inputs[node.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
            inputs[node.name] = np.ones(shape, dtype=kind.get(node.type, np.float32))
    return inputs
