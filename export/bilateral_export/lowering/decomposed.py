"""The decomposed form: every operator node replaced by the body that the file carries for it."""

from __future__ import annotations

import onnx
import onnx.inliner


def decompose(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without functions that computes the same.

    Requires: every foreign node has its function in the file.
    Ensures: no function is left.
    """
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    return inlined
