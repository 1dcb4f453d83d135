"""Lowered models: right against FP64, gated, falling back, refusing what they cannot do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.builders.exported import CHECKPOINTS, exported

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.lowering import attention_forms
from bilateral_export.lowering.attention_flash import rewrite_to_flash
from bilateral_export.lowering.attention_pattern import AttentionPattern
from bilateral_export.lowering.lower import lower, lowered_proto, read_lowering
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner


def operators(path: Path) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("form", ["augmented", "mask", "decomposed"])
def test_every_form_passes_parity(
    form: str, digits: Checkpoint, digits_onnx: Path, tmp_path: Path
) -> None:
    lowered = lower(digits_onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx", form=form)
    assert {site.form for site in lowered.lowering.sites} == {form}
    assert not any("ai.bilateral" in name for name in operators(lowered.path))
    samples = random_samples(digits.build_model())
    report = compare(digits, [Candidate(OnnxRuntimeRunner(lowered.path), "fp32")], samples)
    assert report.passed, report.rows


def test_the_augmented_form_meets_the_conditions_of_flash_attention(
    digits_onnx: Path, tmp_path: Path
) -> None:
    lowered = lower(digits_onnx, "onnxruntime-cpu", tmp_path / "l.onnx", form="augmented")
    nodes = [n for n in onnx.load(lowered.path).graph.node if n.op_type == "MultiHeadAttention"]
    assert len(nodes) == 4
    assert all(len(node.input) == 3 and len(node.output) == 1 for node in nodes)
    assert not {a.name for node in nodes for a in node.attribute} & {"unidirectional"}


def test_the_file_says_what_was_done_and_keeps_what_it_was(
    digits_onnx: Path, tmp_path: Path
) -> None:
    lowered = lower(digits_onnx, "onnxruntime-cpu", tmp_path / "l.onnx")
    assert read_lowering(onnx.load(lowered.path)) == lowered.lowering
    before, after = (
        {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        for path in (digits_onnx, lowered.path)
    )
    assert after["bilateral"] == before["bilateral"]
    with pytest.raises(UserError, match="was lowered for onnxruntime-cpu already"):
        lower(lowered.path, "openvino", tmp_path / "again.onnx")


def test_a_form_that_fails_the_gate_is_not_used(
    digits_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto, pattern: AttentionPattern) -> None:
        rewrite_to_flash(model, pattern)
        name = f"{pattern.node.name}.columns"
        tensor = next(t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor) * np.float32(1.001)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    monkeypatch.setitem(attention_forms._REWRITES, "augmented", broken)
    proto, done = lowered_proto(digits_onnx, "onnxruntime-cpu", form="augmented")
    assert {site.form for site in done.sites} == {"decomposed"}
    assert all("augmented: error" in site.refused[0] for site in done.sites)
    onnx.checker.check_model(proto, full_check=True)


def test_what_a_rewrite_does_not_understand_keeps_its_body(
    digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    # A causal mask on one attention: it must be left to the decomposed form, and only it.
    node = next(n for n in model.graph.node if n.domain == "ai.bilateral")
    next(a for a in node.attribute if a.name == "causal").i = 1
    changed = tmp_path / "causal.onnx"
    onnx.save(model, changed)
    _, done = lowered_proto(changed, "onnxruntime-cpu", form="augmented")
    assert [site.form for site in done.sites] == ["decomposed", *["augmented"] * 3]
    assert done.sites[0].refused == ("it is causal",)


def test_a_long_mask_is_refused(digits_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bilateral_export.lowering.attention_mask.MAX_BYTES", 1000)
    _, done = lowered_proto(digits_onnx, "onnxruntime-cpu", form="mask")
    assert {site.form for site in done.sites} == {"decomposed"}
    assert all("would take" in site.refused[0] for site in done.sites)


def test_the_mask_form_needs_a_range_kernel_that_falls_with_distance(
    digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    node = next(n for n in model.graph.node if n.domain == "ai.bilateral")
    next(a for a in node.attribute if a.name == "scale").f = -0.1
    changed = tmp_path / "growing.onnx"
    onnx.save(model, changed)
    _, done = lowered_proto(changed, "onnxruntime-cpu", form="mask")
    assert [site.form for site in done.sites] == ["decomposed", *["mask"] * 3]
    assert "its scale is -0.1" in done.sites[0].refused[0]


def test_a_residual_stream_that_something_else_reads_stays_as_it_was(
    digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    # Something else than a norm reads the stream.
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    model.graph.node.append(onnx.helper.make_node("Identity", [norm.input[0]], ["seen"]))
    seen = onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, ["batch", 65, 64])
    model.graph.output.append(seen)
    changed = tmp_path / "seen.onnx"
    onnx.save(model, changed)
    _, done = lowered_proto(changed, "onnxruntime-cpu")
    record = done.record("residual_stream")
    assert "reads the residual stream" in record.refused
    assert record.applied == 0


def test_openvino_gets_standard_operators_only(digits_onnx: Path, tmp_path: Path) -> None:
    lowered = lower(digits_onnx, "openvino", tmp_path / "l.onnx")
    assert all(name.startswith("::") for name in operators(lowered.path))
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"image": x}
        )[0]
        for path in (digits_onnx, lowered.path)
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "coreml"}, "no lowering for 'coreml'"),
        ({"runtime": "openvino", "form": "flash"}, "unknown form 'flash'"),
    ],
)
def test_unknown_names_are_refused(
    arguments: dict[str, str], message: str, digits_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        lower(digits_onnx, output=tmp_path / "l.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_wrong_files_are_refused(digits_onnx: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(UserError, match="not an ONNX model"):
        lower(text, "openvino", tmp_path / "l.onnx")
    with pytest.raises(UserError, match="is the model itself"):
        lower(digits_onnx, "openvino", digits_onnx)


def test_a_file_that_an_earlier_version_lowered_is_still_read(
    digits_onnx: Path, tmp_path: Path
) -> None:
    written = (
        '{"schema_version":1,"runtime":"onnxruntime-cpu","source_sha256":"0",'
        '"sites":[{"node":"a","form":"attention","error":1e-7,"budget":1e-6,"refused":[]}],'
        '"stream":{"rewritten":true,"error":1e-7,"budget":1e-6,"refused":""},"residual_scales":0,'
        '"rows":{"nodes":3,"error":0.0,"budget":1e-6,"refused":""},'
        '"kernels":{"heads":1,"shares":2,"moves":3,"gelus":4,"error":0.0,"budget":1e-6,"refused":""}}'
    )
    model = onnx.load(digits_onnx)
    model.metadata_props.add(key="bilateral.lowering", value=written)
    done = read_lowering(model)
    assert done is not None
    assert [site.form for site in done.sites] == ["attention"]
    onnx.save(model, tmp_path / "lowered.onnx")
    with pytest.raises(UserError, match="was lowered for onnxruntime-cpu already"):
        lower(tmp_path / "lowered.onnx", "openvino", tmp_path / "again.onnx")


def test_a_language_model_counts_its_tokens_once_for_all_layers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = exported("pydoc_bilateral", tmp_path_factory)
    proto, done = lowered_proto(path, "onnxruntime-cpu")
    assert done.summary == "4 x decomposed"
    assert done.record("residual_stream").applied == 9, "two norms a layer, and the last"
    counted = {
        node.input[0]
        for node in proto.graph.node
        if node.op_type == "Shape" and "attn/BilateralAttention" in node.name
    }
    assert len(counted) == 2  # the queries and the keys of the first layer
    lowered = tmp_path_factory.mktemp("language") / "lowered.onnx"
    onnx.save(proto, lowered)
    model = load_checkpoint(CHECKPOINTS / "pydoc_bilateral.safetensors").build_model()
    arrays = model.example(3, np.random.default_rng(0))
    with OnnxRuntimeRunner(path) as plain, OnnxRuntimeRunner(lowered) as fast:
        wanted, got = plain.run(arrays), fast.run(arrays)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)
