"""An exported file that other tools have changed: right or refused, and known for what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnx.utils
import onnx.version_converter
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bilateral_export.errors import UserError
from bilateral_export.graph.changes import changes, precisions
from bilateral_export.lowering.lower import has_attention, lower
from bilateral_export.parity.identity import body_check
from bilateral_export.tensors import Array

OLD = Path(__file__).parent / "digits_0_1_0.onnx"
Level = onnxruntime.GraphOptimizationLevel
Tool = Callable[[Path, Path], None]  # reads the first file, writes the second


def model_tool(
    change: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> Tool:
    return lambda source, target: onnx.save(change(onnx.load(source)), target)


def polygraphy(source: Path, target: Path) -> None:
    from polygraphy.backend.onnx import fold_constants

    onnx.save(fold_constants(onnx.load(source)), target)


def graphsurgeon(source: Path, target: Path) -> None:
    import onnx_graphsurgeon

    graph = onnx_graphsurgeon.import_onnx(onnx.load(source))
    graph.fold_constants().cleanup().toposort()
    onnx.save(onnx_graphsurgeon.export_onnx(graph), target)


def onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxsim(source: Path, target: Path) -> None:
    import onnxsim

    simplified, valid = onnxsim.simplify(onnx.load(source))
    assert valid
    onnx.save(simplified, target)


def onnxscript_optimizer(inline: bool) -> Tool:
    from onnxscript.optimizer import optimize

    return model_tool(lambda model: optimize(model, inline=inline))


def common_float16(source: Path, target: Path) -> None:
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source)), target)


def common_float16_around_attention(source: Path, target: Path) -> None:
    from onnxconverter_common import float16

    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, "BilateralAttention"]
    onnx.save(float16.convert_float_to_float16(onnx.load(source), op_block_list=blocked), target)


def onnxruntime_float16(keep_io_types: bool) -> Tool:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return model_tool(lambda model: convert_float_to_float16(model, keep_io_types=keep_io_types))


def transformers_optimizer(source: Path, target: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), model_type="vit", num_heads=4, hidden_size=64).save_model_to_file(
        str(target)
    )


def dynamic_int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def optimised_offline(level: Level) -> Tool:
    def save(source: Path, target: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.graph_optimization_level = level
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return save


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    shape = ["batch", 10]
    after = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "after",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        ),
        opset_imports=[entry for entry in model.opset_import if not entry.domain],
        ir_version=model.ir_version,
    )
    return onnx.compose.merge_models(model, after, io_map=[("logits", "x")])


def extracted(source: Path, target: Path) -> None:
    onnx.utils.extract_model(str(source), str(target), ["image"], ["logits"])


def external(source: Path, target: Path) -> None:
    onnx.save(onnx.load(source), target, save_as_external_data=True, location=f"{target.name}.data")


def fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    make_dim_param_fixed(model.graph, "batch", 3)
    return model


@dataclass(frozen=True)
class Case:
    """A tool, what `changes` says of its result, and how far its numbers may be off.

    A limit of None: no runtime opens the result, and `lower` (which `repository add` calls) refuses
    it with this text.
    """

    tool: Tool
    said: tuple[str, ...] = ()
    limit: float | None = 1e-5
    refusal: str = ""
    needs: str = ""


GONE, BODY = "the metadata is gone", "function body is written differently"
INLINED, FP16 = "attention nodes are gone (inlined)", "exported as fp32, its weights are fp16"
OPERANDS, NO_BODY = "bandwidth in float32, and the file has fp16", "have no function body"
CASES = {
    "polygraphy fold": Case(polygraphy, (GONE, BODY), needs="polygraphy"),
    "graphsurgeon": Case(graphsurgeon, (GONE, BODY), needs="onnx_graphsurgeon"),
    "onnxslim": Case(onnxslim, (BODY,), needs="onnxslim"),
    "onnxsim": Case(onnxsim, needs="onnxsim"),
    "onnxscript inlining": Case(onnxscript_optimizer(True), (INLINED,)),
    "onnxscript": Case(onnxscript_optimizer(False)),
    "inliner": Case(model_tool(onnx.inliner.inline_local_functions), (INLINED,)),
    "shape inference": Case(model_tool(onnx.shape_inference.infer_shapes)),
    "version converter": Case(
        model_tool(lambda model: onnx.version_converter.convert_version(model, 21)),
        (NO_BODY,),
        None,
        "has no function body",
    ),
    "common float16": Case(
        common_float16,
        (FP16, "input image is fp16", OPERANDS),
        None,
        "cannot open",
        "onnxconverter_common",
    ),
    "common float16 around attention": Case(
        common_float16_around_attention,
        (FP16, "input image is fp16"),
        2e-2,
        needs="onnxconverter_common",
    ),
    "onnxruntime float16": Case(
        onnxruntime_float16(False), (FP16, "input image is fp16", OPERANDS), None, "cannot open"
    ),
    "onnxruntime float16, float32 outside": Case(
        onnxruntime_float16(True), (FP16, OPERANDS), None, "topologically sorted"
    ),
    "transformers optimizer": Case(transformers_optimizer, (INLINED,)),
    "dynamic int8": Case(
        dynamic_int8, ("exported as fp32, its weights are int8", "quantised: 36 nodes"), 0.1
    ),
    "offline, basic": Case(optimised_offline(Level.ORT_ENABLE_BASIC), (INLINED,)),
    "offline, extended": Case(optimised_offline(Level.ORT_ENABLE_EXTENDED), (INLINED,)),
    "offline, all": Case(optimised_offline(Level.ORT_ENABLE_ALL), (INLINED,)),
    "merge": Case(model_tool(merged)),
    "prefix": Case(
        model_tool(lambda model: onnx.compose.add_prefix(model, "a/")), ("renamed to a/Bilateral",)
    ),
    "extract": Case(extracted, (GONE,)),
    "external data": Case(external),
    "fixed batch": Case(model_tool(fixed_batch), ("the batch is fixed at 3",)),
}


def answer(path: Path, images: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    kind = np.float16 if given.type == "tensor(float16)" else np.float32
    return np.asarray(session.run(None, {given.name: images.astype(kind)})[0], np.float64)


def run(case: Case, source: Path, target: Path) -> onnx.ModelProto:
    if case.needs:
        pytest.importorskip(case.needs, reason=f"{case.needs} is not installed")
    case.tool(source, target)
    return onnx.load(target, load_external_data=False)


@pytest.mark.parametrize("name", CASES)
def test_a_tools_result_is_right_or_refused_and_known_for_what_it_is(
    name: str,
    digits_onnx: Path,
    heldout: tuple[Array, Array],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # some tools leave files where they are started
    case, images = CASES[name], heldout[0][:3]
    target = tmp_path / "changed.onnx"
    found = changes(run(case, digits_onnx, target))
    assert len(found) == len(case.said), found
    assert all(any(text in line for line in found) for text in case.said), found
    if case.limit is None:
        with pytest.raises(UserError, match=case.refusal):
            lower(target, "onnxruntime-cpu", tmp_path / "lowered.onnx")
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            answer(target, images)
        return
    expected = answer(digits_onnx, images)
    served = [target]
    if has_attention(target):
        lower(target, "onnxruntime-cpu", tmp_path / "lowered.onnx")
        served.append(tmp_path / "lowered.onnx")
    for path in served:
        error = np.abs(answer(path, images) - expected).max() / np.abs(expected).max()
        assert error <= case.limit, path.name


def test_constant_folding_broke_the_files_of_version_0_1_0(tmp_path: Path) -> None:
    """What the new body cures; it fails if the cases above could not fail."""
    case = CASES["graphsurgeon"]
    run(case, OLD, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match=r"inconsistent type tensor\(double\)"):
        lower(tmp_path / "changed.onnx", "onnxruntime-cpu", tmp_path / "lowered.onnx")


def test_a_file_of_version_0_1_0_is_read_run_and_lowered(
    digits_onnx: Path, heldout: tuple[Array, Array], tmp_path: Path
) -> None:
    old = onnx.load(OLD)
    assert "value_float" in str(old.functions[0].node), "it has plain numbers for constants"
    assert changes(old) == ()
    assert body_check(old).passed
    expected = answer(digits_onnx, heldout[0][:3])
    np.testing.assert_array_equal(answer(OLD, heldout[0][:3]), expected)
    lowered = lower(OLD, "onnxruntime-cpu", tmp_path / "lowered.onnx")
    assert lowered.lowering.summary == "4 x mask"
    assert changes(onnx.load(tmp_path / "lowered.onnx")) == ()
    np.testing.assert_allclose(answer(lowered.path, heldout[0][:3]), expected, atol=2e-5)


def test_what_is_written_in_16_bits_is_known_as_that(digits: object, tmp_path: Path) -> None:
    from bilateral_export.graph.export import export_onnx

    for precision in ("fp16", "bf16"):
        path = export_onnx(digits, tmp_path / "m.onnx", precision=precision).path
        assert precisions(onnx.load(path)) == (precision,)
        assert changes(onnx.load(path)) == ()
    with pytest.raises(UserError, match="has no such kernel; export fp32 or fp16"):
        lower(path, "onnxruntime-cpu", tmp_path / "lowered.onnx")  # bf16


def test_a_model_from_elsewhere_is_not_said_to_be_changed() -> None:
    assert changes(foreign_model()) == ()


def foreign_model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other])
    return helper.make_model(graph)
