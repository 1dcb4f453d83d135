"""The matrix: every stage or the reason it was left out, as table, JSON and page."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.builders.graph_faults import GRAPH_FAULTS, after, batch_of_one
from tests.builders.subjects import Subject

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.parity.compare import Candidate
from bilateral_export.parity.identity import (
    body_check,
    check_graph,
    identity_checks,
    labels_check,
    random_check,
)
from bilateral_export.parity.matrix import ParityJob, run_matrix
from bilateral_export.parity.report.baseline import regressions, require_same_model
from bilateral_export.parity.report.document import SCHEMA_PATH, ParityReport, read_report, schema
from bilateral_export.parity.report.html import render_html
from bilateral_export.parity.stages import Stage, stages
from bilateral_serving.client.runner import TritonRunner

FAULT = GRAPH_FAULTS["residual dropped"]


def _job(subject: Subject, path: Path, scratch: Path, **options: object) -> ParityJob:
    made, skipped = stages(subject.checkpoint, path, "fp32", scratch, compiled=False)
    return ParityJob(
        subject.checkpoint,
        made,
        subject.samples,
        read_metadata(path),
        path,
        skipped,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def healthy(subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    subject = subjects["digits"]
    scratch = tmp_path_factory.mktemp("scratch")
    return run_matrix(_job(subject, subject.onnx, scratch, adversarial=3))


@pytest.fixture(scope="module")
def faulty(subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    subject, directory = subjects["digits"], tmp_path_factory.mktemp("faulty")
    model = onnx.load(subject.onnx)
    FAULT.apply(model)
    onnx.save(model, directory / "faulty.onnx")
    job = _job(subject, directory / "faulty.onnx", directory, reproducers=directory / "alone")
    return run_matrix(job)


def test_a_healthy_model_passes_at_every_stage(healthy: ParityReport) -> None:
    assert healthy.passed, healthy.failures
    stages = {row.stage for row in healthy.rows}
    assert stages >= {
        "torch eager fp32",
        "torch eager fp16",
        "torch eager bf16",
        "torch.export float32",
        "onnxruntime CPU, fp32 file",
    }
    skipped = {skipped.stage: skipped.reason for skipped in healthy.skipped}
    assert skipped["torch.compile"]
    assert skipped["onnxruntime CUDA"]
    assert {check.name for check in healthy.checks} >= {
        "labels",
        "operator body",
        "concurrent calls",
        "extreme: NaN",
        "adversarial inputs",
    }


def test_a_faulty_file_fails_where_it_is_read_and_its_node_is_named(faulty: ParityReport) -> None:
    assert not faulty.passed
    assert "torch.export float32" not in faulty.failures
    assert "onnxruntime CPU, fp32 file" in faulty.failures
    for bisection in faulty.bisections:
        assert bisection.culprit is not None
        assert bisection.culprit.node == FAULT.node
        assert (Path(bisection.reproducer) / "reproduce.py").is_file()


def test_a_file_that_nothing_can_read_is_refused(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    model = onnx.load(subjects["digits"].onnx)
    model.graph.node[3].op_type = "Nonsense"
    onnx.save(model, tmp_path / "broken.onnx")
    job = _job(subjects["digits"], tmp_path / "broken.onnx", tmp_path)
    reading = [stage for stage in job.stages if stage.graph is not None]
    with pytest.raises(UserError, match="broken"):
        run_matrix(replace(job, stages=reading))


def test_a_file_that_fails_at_some_sizes_fails_with_its_node(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    model = onnx.load(subjects["digits"].onnx)
    batch_of_one(model)
    onnx.save(model, tmp_path / "one.onnx")
    job = _job(subjects["digits"], tmp_path / "one.onnx", tmp_path)
    served = ("onnxruntime CPU", "openvino")
    reading = [stage for stage in job.stages if stage.candidate.name.startswith(served)]
    report = run_matrix(replace(job, stages=reading))
    failed = [check for check in report.checks if check.name == "runs on every input"]
    assert "model/Concat_2" in failed[0].detail
    assert len(failed) == len(report.bisections) == len(reading)
    for found in report.bisections:
        assert found.culprit is not None
        assert found.culprit.node == "model/Concat"


def test_what_only_a_search_or_an_extreme_meets_is_walked_too(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """No ordinary input reaches the limit that the patches are cut off at."""
    model = onnx.load(subjects["digits"].onnx)
    after("model/Add", "Clip", np.float32(-30), np.float32(30))(model)
    onnx.save(model, tmp_path / "cut.onnx")
    job = _job(subjects["digits"], tmp_path / "cut.onnx", tmp_path)
    reading = [stage for stage in job.stages if stage.candidate.name.startswith("onnxruntime CPU")]
    report = run_matrix(replace(job, stages=reading))
    assert all(row.passed for row in report.rows)
    (found,) = report.bisections
    assert found.culprit is not None
    assert found.culprit.node == "model/Add/fault"


def test_a_file_that_one_runtime_finds_invalid_fails_though_another_reads_it(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """ONNX Runtime wants the shapes that a Reshape takes inside the file."""
    path = tmp_path / "elsewhere.onnx"
    outside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(subjects["digits"].onnx), path, **outside)
    report = run_matrix(_job(subjects["digits"], path, tmp_path))
    assert all(row.passed for row in report.rows)
    assert "onnxruntime CPU, fp32 file" not in {row.stage for row in report.rows}
    failed = [(check.stage, check.name) for check in report.checks if not check.passed]
    assert ("onnxruntime CPU, fp32 file", "opens") in failed


def test_a_stage_asked_for_that_cannot_run_is_refused_before_any_work(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    subject = subjects["digits"]
    job = _job(subject, subject.onnx, tmp_path)
    absent = Stage(Candidate(TritonRunner("digits", "127.0.0.1:1"), "fp32"), required=True)
    seen: list[str] = []
    with pytest.raises(UserError, match="no Triton server answers"):
        run_matrix(replace(job, stages=[*job.stages, absent]), seen.append)
    assert seen == []


@pytest.mark.parametrize("damage", ["no nodes", "a weight lost", "weights elsewhere"])
def test_a_damaged_file_is_refused(
    subjects: dict[str, Subject], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "damaged.onnx"
    model = onnx.load(subjects["digits"].onnx)
    if damage == "no nodes":
        del model.graph.node[:]
    elif damage == "a weight lost":
        del model.graph.initializer[0]
    elsewhere = {"save_as_external_data": damage == "weights elsewhere", "location": "weights"}
    onnx.save(model, path, **elsewhere)
    (tmp_path / "weights").unlink(missing_ok=True)
    metadata = read_metadata(subjects["digits"].onnx)
    with pytest.raises(UserError, match=r"damaged\.onnx"):
        check_graph(path, metadata, "image-classifier")
    check_graph(subjects["digits"].onnx, metadata, "image-classifier")


def test_a_file_of_another_family_is_refused(subjects: dict[str, Subject]) -> None:
    path = subjects["digits"].onnx
    with pytest.raises(UserError, match="of family image-classifier, the checkpoint of sequence"):
        check_graph(path, read_metadata(path), "sequence-classifier")


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema(), (
        "run `bilateral check schema --write`"
    )


def test_reports_are_valid_by_the_schema(healthy: ParityReport, faulty: ParityReport) -> None:
    schema_read = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema_read)
    for report in (healthy, faulty):
        jsonschema.validate(json.loads(report.model_dump_json()), schema_read)
    broken = json.loads(faulty.model_dump_json())
    del broken["rows"][0]["budget"]
    with pytest.raises(jsonschema.ValidationError, match="budget"):
        jsonschema.validate(broken, schema_read)


def test_a_report_survives_json(faulty: ParityReport, tmp_path: Path) -> None:
    row = faulty.rows[0].model_copy(update={"error": float("inf")})
    report = faulty.model_copy(update={"rows": (row, *faulty.rows[1:])})
    (tmp_path / "report.json").write_text(report.model_dump_json())
    assert "Infinity" not in (tmp_path / "report.json").read_text()
    assert read_report(tmp_path / "report.json") == report


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(UserError, match="not a parity report of schema version 2"):
        read_report(tmp_path / "other.json")
    with pytest.raises(UserError, match="does not exist"):
        read_report(tmp_path / "gone.json")


def test_a_report_is_no_worse_than_itself(healthy: ParityReport) -> None:
    assert regressions(healthy, healthy) == []


def test_a_report_of_another_model_is_no_baseline(
    healthy: ParityReport, checkpoints: dict[str, Checkpoint]
) -> None:
    require_same_model(healthy, checkpoints["digits"].card)
    with pytest.raises(UserError, match="baseline is of"):
        require_same_model(healthy, checkpoints["sequence"].card)


def test_what_became_worse_is_listed(healthy: ParityReport, faulty: ParityReport) -> None:
    found = regressions(faulty, healthy)
    assert any("onnxruntime CPU, fp32 file, logits: passed and does not" in text for text in found)
    fewer = healthy.model_copy(update={"rows": healthy.rows[:-1]})
    assert any("did not run" in text for text in regressions(fewer, healthy))
    row = healthy.rows[-1]
    slower = row.model_copy(
        update={"typical_low": 2 * row.typical_high, "typical": 2.5 * row.typical_high}
    )
    worse = healthy.model_copy(update={"rows": (*healthy.rows[:-1], slower)})
    assert any("typical error" in text for text in regressions(worse, healthy))


def test_the_page_loads_nothing_and_shows_the_verdict(
    faulty: ParityReport, subjects: dict[str, Subject]
) -> None:
    page = render_html(faulty, subjects["digits"].samples)
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<circle") >= len(faulty.bisections[0].nodes)
    assert "data:image/png;base64," in page
    assert FAULT.node in page


# What a reader sees of the page, in a wide and in a narrow window, measured by the browser.
MEASURE = """
const middle = (box) => (box.top + box.bottom) / 2;
const seen = (frame) => {
  const page = frame.contentDocument, style = (e) => frame.contentWindow.getComputedStyle(e);
  const plots = [...page.querySelectorAll("svg.layers")].map((plot) => ({
    width: plot.getBoundingClientRect().width,
    powers: [...plot.querySelectorAll("text[text-anchor=end]")].map((text) => [
      Number(text.textContent.slice(2)),
      middle(text.previousElementSibling.getBoundingClientRect())]),
    points: [...plot.querySelectorAll("circle")].map((point) => ({
      tip: point.textContent, height: middle(point.getBoundingClientRect()),
      fill: style(point).fill}))}));
  const images = [...page.querySelectorAll("figure img")].map((image) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, 8, 8);
    const data = context.getImageData(0, 0, 8, 8).data;
    return {title: image.alt, pixels: [...data].filter((_, i) => i % 4 == 0)}});
  return {plots, images, text: style(page.body).color,
    verdict: page.querySelector("#verdict").textContent,
    shown: page.documentElement.clientWidth, wide: page.documentElement.scrollWidth}};
window.onload = () => {
  const found = document.createElement("pre");
  found.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(seen));
  document.body.replaceChildren(found)};
"""


def _looked_at(page: str, folder: Path, dark: bool) -> list[dict[str, Any]]:
    """What the browser shows of the page, 1200 and 390 pixels wide."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for width in (1200, 390)
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!doctype html><script>{MEASURE}</script><body>{frames}</body>")
    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1300,1000",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(
        html.unescape(shown.stdout.partition("<pre>")[2].partition("</pre>")[0])
    )
    return found


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_what_the_report_says(
    faulty: ParityReport, subjects: dict[str, Subject], tmp_path: Path, dark: bool
) -> None:
    samples = {sample.origin: sample for sample in subjects["digits"].samples}
    page = render_html(faulty, list(samples.values()))
    wide, narrow = _looked_at(page, tmp_path, dark)
    for seen in (wide, narrow):
        assert seen["verdict"] == "FAIL"
        assert seen["wide"] <= seen["shown"]
        assert seen["text"] == ("rgb(255, 255, 255)" if dark else "rgb(0, 0, 0)")
        for plot, bisection in zip(seen["plots"], faulty.bisections, strict=True):
            assert 300 < plot["width"] <= seen["shown"]
            (low, bottom), *_, (high, top) = plot["powers"]
            for point, node in zip(plot["points"], bisection.nodes, strict=True):
                assert point["tip"].startswith(f"{node.node}: error {node.error:.2e}")
                power = low + (bottom - point["height"]) / (bottom - top) * (high - low)
                if 10**low <= node.error <= 10**high:
                    assert power == pytest.approx(np.log10(node.error), abs=0.1)
                broken = point["fill"] == "rgb(207, 34, 46)"
                assert broken == (node.error > node.limit)
        rows = {
            f"{row.stage}, {row.output}: {row.worst.sample}, item {row.worst.item}": row.worst
            for row in faulty.rows
        }
        assert seen["images"]
        for image in seen["images"]:
            worst = rows[image["title"]]
            pixels = samples[worst.sample].arrays["image"][worst.item].ravel()
            stretched = 255 * (pixels - pixels.min()) / np.ptp(pixels)
            np.testing.assert_allclose(image["pixels"], stretched, atol=1.5)


def test_a_file_must_be_of_the_checkpoint_it_is_compared_with(
    subjects: dict[str, Subject], checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint, metadata = subjects["digits"].checkpoint, read_metadata(subjects["digits"].onnx)
    assert all(check.passed for check in identity_checks(checkpoint, metadata))
    for name, change in {
        "weights": {"checkpoint_sha256": "0" * 64},
        "labels": {"labels": metadata.labels[::-1]},
        "preprocessing": {
            "preprocessing": metadata.preprocessing.model_copy(update={"mean": (0.5,)})  # type: ignore[union-attr]
        },
        "configuration": {"model": metadata.model | {"heads": 6}},
    }.items():
        changed = metadata.model_copy(update=change)
        failed = [check for check in identity_checks(checkpoint, changed) if not check.passed]
        assert [check.name for check in failed] == [name]


@pytest.mark.parametrize(
    ("labels", "trained", "holds"),
    [
        (("a", "b"), ("a", "b"), True),
        (("a", "a"), ("a", "a"), True),  # whether two may be equal is for the export to say
        (("x", "y"), ("a", "b"), True),  # all given anew, by `bilateral export --labels`
        (("x", "y"), (), True),
        ((), (), True),
        ((), ("a", "b"), False),
        (("a",), ("a", "b"), False),
        (("b", "a"), ("a", "b"), False),
        (("a", "x"), ("a", "b"), False),
        (("a", "a"), ("a", "b"), False),
    ],
)
def test_labels_are_those_of_the_checkpoint(
    labels: tuple[str, ...], trained: tuple[str, ...], holds: bool
) -> None:
    check = labels_check(labels, trained)
    assert check.passed is holds


@pytest.mark.parametrize("fault", ["softmax in half precision", "key norm with the wrong sign"])
def test_a_changed_operator_body_is_seen_in_the_file(
    subjects: dict[str, Subject], fault: str
) -> None:
    model = onnx.load(subjects[GRAPH_FAULTS[fault].model].onnx)
    assert body_check(model).passed
    GRAPH_FAULTS[fault].apply(model)
    assert not body_check(model).passed


TRUE, FALSE = (numpy_helper.from_array(np.array(value), "training") for value in (True, False))


def test_a_dropout_in_training_mode_fails_though_no_number_shows_it(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """ONNX Runtime's CPU provider passes it through."""
    subject = subjects["digits"]
    model = onnx.load(subject.onnx)
    half = np.array(0.5, dtype=np.float32)
    after("blocks.1.mlp/Gelu", "Dropout", half, np.array(True))(model)
    onnx.save(model, tmp_path / "dropping.onnx")
    job = _job(subject, tmp_path / "dropping.onnx", tmp_path)
    in_ort = [s for s in job.stages if s.candidate.name.startswith("onnxruntime CPU")]
    report = run_matrix(replace(job, stages=in_ort))
    assert all(row.passed for row in report.rows)
    assert not report.passed
    (failed,) = [check for check in report.checks if not check.passed]
    assert failed.name == "same each time"
    assert failed.detail == "drawn at random: blocks.1.mlp/Gelu/fault (Dropout)"


@pytest.mark.parametrize(
    ("nodes", "weights", "draws"),
    [
        ([("Dropout", ["x"])], [], False),
        ([("Dropout", ["x", "", "training"])], [FALSE], False),
        ([("Dropout", ["x", "", "training"])], [TRUE], True),
        ([("Dropout", ["x", "", "x"])], [], True),  # whoever calls decides
        ([("Bernoulli", ["x"])], [], True),
        ([("RandomNormalLike", ["x"])], [], True),
        ([("RandomUniformLike", ["x"])], [], True),
        ([("RandomNormal", [])], [], True),
        ([("RandomUniform", [])], [], True),
        ([("Multinomial", ["x"])], [], True),
        ([("Relu", ["x"])], [], False),
    ],
)
@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_what_draws_is_found_wherever_it_is(
    place: str,
    nodes: list[tuple[str, list[str]]],
    weights: list[onnx.TensorProto],
    draws: bool,
) -> None:
    opset = [helper.make_opsetid("", 20)]
    made = [helper.make_node(operator, inputs, ["y"], "suspect") for operator, inputs in nodes]
    constants = [helper.make_node("Constant", [], [w.name], value=w) for w in weights]
    if place == "branch":
        branch = helper.make_graph([*constants, *made], "branch", [], [])
        made, constants = [helper.make_node("If", ["x"], ["y"], then_branch=branch)], []
    functions = []
    if place == "function":
        functions = [helper.make_function("d", "body", ["x"], ["y"], [*constants, *made], opset)]
        made, constants = [helper.make_node("body", ["x"], ["y"], domain="d")], []
    graph = helper.make_graph([*constants, *made], "graph", [], [])
    check = random_check(helper.make_model(graph, functions=functions, opset_imports=opset))
    assert check.passed is not draws
    assert ("suspect" in check.detail) is draws


def _dropout(
    graph: onnx.GraphProto | None = None, function: onnx.FunctionProto | None = None
) -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    call = helper.make_node("body", ["x", "yes"], ["y"], domain="d")
    graph = graph or helper.make_graph([call], "graph", [], [], [FALSE])
    functions = [function] if function else []
    return helper.make_model(graph, functions=functions, opset_imports=opset)


SUSPECT = helper.make_node("Dropout", ["x", "", "training"], ["y"], "suspect")
OPSET = [helper.make_opsetid("", 20)]


def test_a_caller_may_replace_an_initializer_that_is_an_input() -> None:
    given = helper.make_tensor_value_info("training", onnx.TensorProto.BOOL, [])
    assert not random_check(
        _dropout(helper.make_graph([SUSPECT], "g", [given], [], [FALSE]))
    ).passed
    assert random_check(_dropout(helper.make_graph([SUSPECT], "g", [], [], [FALSE]))).passed


def test_a_function_sees_its_arguments_and_no_initializer_of_that_name() -> None:
    body = helper.make_function("d", "body", ["x", "training"], ["y"], [SUSPECT], OPSET)
    assert not random_check(_dropout(function=body)).passed


def test_a_function_s_attribute_is_no_constant() -> None:
    constant = helper.make_node("Constant", [], ["training"])
    constant.attribute.add(name="value", ref_attr_name="mode", type=onnx.AttributeProto.TENSOR)
    body = helper.make_function("d", "body", ["x"], ["y"], [constant, SUSPECT], OPSET, ["mode"])
    assert not random_check(_dropout(function=body)).passed


def test_a_branch_s_own_initializer_counts() -> None:
    branch = helper.make_graph([SUSPECT], "branch", [], [], [FALSE])
    either = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    assert random_check(_dropout(helper.make_graph([either], "g", [], []))).passed


def test_a_value_that_is_not_in_the_file_is_not_known() -> None:
    outside = onnx.TensorProto()
    outside.CopyFrom(FALSE)
    onnx.external_data_helper.set_external_data(outside, "weights.data")
    assert not random_check(_dropout(helper.make_graph([SUSPECT], "g", [], [], [outside]))).passed
