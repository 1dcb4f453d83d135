"""A file that does not fit the checkpoint is a verdict with its reason, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.builders.subjects import Subject

from bilateral_export.artifact import read_metadata
from bilateral_export.errors import UserError
from bilateral_export.lowering.lower import lower
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.op import contract
from bilateral_export.parity.identity import (
    body_check,
    check_graph,
    interface_check,
    plugin_check,
    softmax_check,
)
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.parity.matrix import ParityJob, run_matrix
from bilateral_export.parity.stages import stages

Change = Callable[[onnx.ModelProto], None]


def _rename_output(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if "logits" in node.output).output[0] = "scores"
    model.graph.output[0].name = "scores"


def _rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "picture"
    model.graph.input[0].name = "picture"


def _add_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("norm/LayerNormalization", TensorProto.FLOAT, [None] * 3)
    )


def _replace_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]
    _add_output(model)


def _weight_as_input(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    model.graph.input.add().CopyFrom(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    )


def _weight_from_the_caller(model: onnx.ModelProto) -> None:
    _weight_as_input(model)
    del model.graph.initializer[0]


def _narrow_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    cast = helper.make_node("Cast", ["image"], ["wide"], "widened", to=TensorProto.FLOAT)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "wide"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])


def _double_output(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "narrow"
    model.graph.node.append(
        helper.make_node("Cast", ["narrow"], ["logits"], "widened", to=TensorProto.DOUBLE)
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _labels_as_output(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "scores"
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["logits"], "decided", axis=1))
    del model.graph.output[:]
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("logits", TensorProto.INT64, [None] * 2)
    )


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _other_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 16


def _no_attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.domain == contract.DOMAIN)
    kept = [each for each in node.attribute if each.name != contract.RANGE_KERNEL]
    del node.attribute[:]
    node.attribute.extend(kept)


def _no_opset(model: onnx.ModelProto) -> None:
    kept = [each for each in model.opset_import if each.domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _no_opset_of_ours(model: onnx.ModelProto) -> None:
    kept = [each for each in model.opset_import if not each.domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _no_body(model: onnx.ModelProto) -> None:
    del model.functions[:]


def _named_domain(model: onnx.ModelProto) -> None:
    next(each for each in model.opset_import if not each.domain).domain = "ai.onnx"


def _damaged_metadata(model: onnx.ModelProto) -> None:
    next(each for each in model.metadata_props if each.key == METADATA_KEY).value = "{}"


def _no_labels(model: onnx.ModelProto) -> None:
    entry = next(each for each in model.metadata_props if each.key == METADATA_KEY)
    metadata = ArtifactMetadata.model_validate_json(entry.value)
    entry.value = metadata.model_copy(update={"labels": ()}).model_dump_json()


def _other_plugin(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.domain == contract.DOMAIN)
    next(each for each in node.attribute if each.name == contract.PLUGIN_VERSION).s = b"2"


# What is said of each: a failing check's name, or None where nothing need be wrong.
CHANGES: dict[Change, str | None] = {
    _rename_output: "interface",
    _rename_input: "interface",
    _add_output: "interface",
    _replace_output: "interface",
    _weight_as_input: "interface",
    _weight_from_the_caller: "interface",
    _narrow_input: "interface",
    _double_output: "interface",
    _labels_as_output: "interface",
    _fixed_batch: "interface",
    _other_size: "interface",
    _other_plugin: "plugin attributes",
    _no_labels: "labels",
    _named_domain: None,
}
REFUSED = (_no_opset, _no_opset_of_ours, _no_body, _damaged_metadata)


def _report(subject: Subject, path: Path, scratch: Path):
    """As `bilateral parity` does, with what reads the file and few inputs."""
    checkpoint, metadata = subject.checkpoint, read_metadata(path)
    check_graph(path, metadata, checkpoint.card.model.family)
    made, _ = stages(checkpoint, path, metadata.precision, scratch, compiled=False)
    samples = random_samples(checkpoint.build_model(), (1, 4), items=8)
    reading = [stage for stage in made if stage.candidate.name.startswith("onnxruntime CPU")]
    return run_matrix(ParityJob(checkpoint, reading, samples, metadata, path, bisect=False))


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_fails_with_its_reason(
    subjects: dict[str, Subject], tmp_path: Path, change: Change
) -> None:
    subject = subjects["digits"]
    model = onnx.load(subject.onnx)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    report = _report(subject, tmp_path / "changed.onnx", tmp_path)
    failed = {check.name for check in report.checks if not check.passed}
    name = CHANGES[change]
    if name is None:
        assert report.passed
    else:
        assert name in failed
    if name == "interface":
        assert report.rows == ()
        assert {skipped.stage for skipped in report.skipped} >= {"onnxruntime CPU, fp32 file"}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_not_valid_is_refused(
    subjects: dict[str, Subject], tmp_path: Path, change: Change
) -> None:
    model = onnx.load(subjects["digits"].onnx)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match=r"changed\.onnx"):
        _report(subjects["digits"], tmp_path / "changed.onnx", tmp_path)


def test_a_node_without_an_attribute_fails_its_check(subjects: dict[str, Subject]) -> None:
    """Where the operator's schema is not registered, the checker lets it through."""
    model = onnx.load(subjects["digits"].onnx)
    _no_attribute(model)
    check = plugin_check(model)
    assert not check.passed
    assert "range_kernel" in check.detail
    body_check(model)


def test_the_interface_names_what_differs(subjects: dict[str, Subject]) -> None:
    trained = subjects["digits"].checkpoint.build_model()
    model = onnx.load(subjects["digits"].onnx)
    assert interface_check(model, trained).passed
    _rename_output(model)
    detail = interface_check(model, trained).detail
    assert detail == "it has no output logits; the model has no output scores"


@pytest.mark.parametrize("family", ["digits", "sequence"])
def test_a_lowered_file_has_the_interface_and_no_bare_exponential(
    subjects: dict[str, Subject], tmp_path: Path, family: str
) -> None:
    subject = subjects[family]
    lower(subject.onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx")
    model = onnx.load(tmp_path / "lowered.onnx")
    trained = subject.checkpoint.build_model()
    for check in (interface_check(model, trained), softmax_check(model), plugin_check(model)):
        assert check.passed, check.detail


def _written_out(model: onnx.ModelProto, largest_first: bool) -> None:
    """Every Softmax as exponentials over their sum."""
    axis = numpy_helper.from_array(np.array([-1]), "last axis")
    model.graph.initializer.append(axis)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Softmax":
            nodes.append(node)
            continue
        (logits,), (output,), name = node.input, node.output, node.name
        if largest_first:
            made = [f"{name}.most", f"{name}.less"]
            nodes.append(helper.make_node("ReduceMax", [logits, "last axis"], [made[0]]))
            nodes.append(helper.make_node("Sub", [logits, made[0]], [made[1]]))
            logits = made[1]
        made = [f"{name}.exp", f"{name}.sum"]
        nodes.append(helper.make_node("Exp", [logits], [made[0]], f"{name}/exp"))
        nodes.append(helper.make_node("ReduceSum", [made[0], "last axis"], [made[1]]))
        nodes.append(helper.make_node("Div", made, [output]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize("largest_first", [False, True])
def test_a_softmax_without_its_maximum_fails_in_a_lowered_file(
    subjects: dict[str, Subject], tmp_path: Path, largest_first: bool
) -> None:
    """No input of this model makes logits that are large enough to show it."""
    subject = subjects["digits"]
    lower(subject.onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx", form="mask")
    model = onnx.load(tmp_path / "lowered.onnx")
    _written_out(model, largest_first)
    onnx.save(model, tmp_path / "written.onnx")
    report = _report(subject, tmp_path / "written.onnx", tmp_path)
    assert all(row.passed for row in report.rows), [row.reason for row in report.rows]
    assert {c.name for c in report.checks if not c.passed} == (
        set() if largest_first else {"softmax"}
    )
