"""The reproducer of a fault: one node, its inputs, and the output it should have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from bilateral_export.files import atomic_directory
from bilateral_export.parity.bisection.search import Culprit
from bilateral_export.parity.bisection.windows import array_type, extract

_SCRIPT = '''\
"""Runs {node} alone and compares it with what FP64 PyTorch makes there.

Needs numpy and onnxruntime only. Exit code 1 while the fault is there.
From torch module: {module}
Source: {source}
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
LIMIT = {limit!r}  # relative error that rounding explains
OUTPUT = {output!r}

inputs = dict(np.load(HERE / "inputs.npz"))
expected = np.load(HERE / "expected.npz")["expected"]
session = onnxruntime.InferenceSession(HERE / "node.onnx", providers=["CPUExecutionProvider"])
feeds = {{i.name: inputs[f"input_{{n}}"] for n, i in enumerate(session.get_inputs())}}
got = session.run([OUTPUT], feeds)[0].astype(np.float64)
expected = expected.astype(np.float64)
if np.array_equal(got, expected, equal_nan=True):
    error = 0.0
elif got.shape != expected.shape or not np.isfinite(got).all():
    error = float("inf")
else:
    error = np.linalg.norm(got - expected) / (np.linalg.norm(expected) or 1.0)
print(f"relative error {{error:.3e}}, limit {{LIMIT:.3e}}")
sys.exit(not error <= LIMIT)
'''


def write_reproducer(directory: Path, model: onnx.ModelProto, culprit: Culprit) -> None:
    """Write `node.onnx`, `inputs.npz`, `expected.npz` and `reproduce.py`, or nothing.

    Args:
        directory: To create.
        model: The graph that the node is from.
        culprit: From `bisect`.

    Raises:
        UserError: The directory exists or cannot be written.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    given = {name: array for name, array in culprit.inputs.items() if name not in weights}
    outputs = [array_type(name, array) for name, array in culprit.got.items()]
    node = extract(model, [culprit.proto], weights, given, outputs)
    ((output, expected),) = culprit.expected.items()
    script = _SCRIPT.format(
        node=culprit.at.node,
        module=culprit.at.module or "unknown",
        source=culprit.at.source or "unknown",
        limit=culprit.at.limit,
        output=output,
    )
    with atomic_directory(directory) as temporary:
        onnx.save(node, temporary / "node.onnx")
        # Value names hold slashes, which a zip archive would take for folders.
        numbered = {f"input_{number}": array for number, array in enumerate(given.values())}
        np.savez(temporary / "inputs.npz", **numbered)
        np.savez(temporary / "expected.npz", expected=expected)
        (temporary / "reproduce.py").write_text(script, encoding="utf-8")
