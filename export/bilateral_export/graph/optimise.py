"""Optimisation of a traced graph that changes no value.

PyTorch's exporter would run all of onnxscript's rules. Those for `x * 1` and `x + 0` take what is
within 1e-5 of 1, or 1e-8 of 0, for 1 and 0, and so drop a learned residual coefficient of 0.99999,
an error far above float32's rounding. Here are rules that move data and compute nothing.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import PassManager, Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

RULES = (
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
)


class _FoldConstants(ir.passes.InPlacePass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = fold_constants_ir(model, onnx_shape_inference=True)
        return ir.passes.PassResult(model, bool(folded.modified))


def optimise(model: ir.Model) -> None:
    """Inline the exporter's functions, fold constants, drop what moves data for nothing; in place.

    Args:
        model: As `torch.onnx.export(..., optimize=False)` made it.
    """
    Sequential(
        common.InlinePass(),
        PassManager(
            [_FoldConstants(), RewritePass(RULES), common.RemoveUnusedNodesPass()],
            steps=2,
            early_stop=True,
        ),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
