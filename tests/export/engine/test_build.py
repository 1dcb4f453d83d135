"""Real builds with TensorRT for RTX; they need no GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.engine import options as options_module
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.plan.header import read_header
from bilateral_export.engine.plan.kernels import launched_kernels
from bilateral_export.engine.plan.manifest import manifest_path, read_manifest, verify_plan
from bilateral_export.engine.profiles import parse_profile
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.op.contract import OperatorVariant

pytest.importorskip("tensorrt_rtx")

GAUSSIAN = OperatorVariant("gaussian", "gaussian")
FUNCTION = BuildOptions(targets=(86,), attention="function")


@pytest.fixture(scope="module")
def library():
    return load_library("tensorrt_rtx")


def build(model: Path, options: BuildOptions = FUNCTION, **more):
    return build_plan(
        model, model.with_suffix(".plan"), options, library=load_library("tensorrt_rtx"), **more
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_manifest_states_the_precision_that_was_built(make_model, precision: str) -> None:
    manifest = build(make_model(GAUSSIAN, precision=precision))
    assert manifest.precision == precision
    assert manifest.types == {precision: 5}  # three projections, two products of attention
    assert manifest.tf32 is False
    assert manifest.library == "tensorrt_rtx"


def test_a_file_name_does_not_decide_the_precision(make_model) -> None:
    assert build(make_model(GAUSSIAN, name="model_fp16")).precision == "fp32"


def test_a_gpu_named_twice_is_built_for_once(make_model) -> None:
    options = BuildOptions(targets=(86, 80, 86), attention="function")
    manifest = build(make_model(), options)

    assert manifest.targets == ("sm_86", "sm_80")


def test_tf32_is_stated(make_model) -> None:
    assert build(
        make_model(GAUSSIAN), BuildOptions(targets=(86,), attention="function", tf32=True)
    ).tf32


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_of_16_bits_becomes_one_kernel_with_its_softmax_in_float32(
    make_model, precision: str
) -> None:
    manifest = build(make_model(GAUSSIAN, OperatorVariant("dot", "none"), precision=precision))
    assert manifest.attention.model_dump() == {"nodes": 2, "path": "function", "fused": 2}


def test_attention_of_32_bits_builds_although_it_is_not_fused(make_model) -> None:
    manifest = build(make_model(GAUSSIAN))
    assert manifest.attention.model_dump() == {"nodes": 1, "path": "function", "fused": 0}


def test_every_node_runs_through_its_own_body(make_model) -> None:
    """The parser tells functions apart by name alone; overloads would all get the first body."""
    mixed = [OperatorVariant("dot", "gaussian"), GAUSSIAN, OperatorVariant("dot", "none")]
    model = make_model(*mixed, precision="fp16")
    assert build(model).attention.fused == 3
    launched = launched_kernels(model.with_suffix(".plan"))
    assert launched is not None
    with_norm = {
        node.split("|")[1].split()[0]
        for kernel in launched
        for node in kernel.nodes
        if node.startswith("node_of_key_norm |")
    }
    assert with_norm == {"block.1/attention"}


def test_the_plan_and_its_manifest_belong_together(make_model) -> None:
    model = make_model(GAUSSIAN)
    plan = model.with_suffix(".plan")
    manifest = build(model)
    assert verify_plan(plan) == manifest == read_manifest(plan)
    header = read_header(plan)
    assert header is not None
    assert (header.library, header.version) == (manifest.library, manifest.version)
    assert header.bytes == plan.stat().st_size


def test_two_profiles_are_built_and_the_largest_batch_is_known(make_model) -> None:
    profiles = tuple(
        parse_profile(text) for text in ("x=1x16x64:1x16x64:1x16x64", "x=2x16x64:24x16x64:48x16x64")
    )
    manifest = build(
        make_model(GAUSSIAN), BuildOptions(targets=(86,), attention="function", profiles=profiles)
    )
    assert len(manifest.profiles) == 2
    assert manifest.max_batch == 48
    assert manifest.profiles[1]["x"].range() == profiles[1]["x"]


def test_memory_for_activations_is_that_of_the_largest_shapes(make_model) -> None:
    found = [
        build(
            make_model(GAUSSIAN, name=f"up_to_{batch}"),
            BuildOptions(targets=targets, attention="function", max_batch=batch),
        ).activation_bytes
        for batch, targets in ((1, (86,)), (512, (86,)), (512, (80, 86)))
    ]
    one, many, for_two = (count or 0 for count in found)
    values = 16 * 64 * 4  # of one item's x
    assert one > values
    assert many - one > 500 * values
    assert for_two >= many


def test_progress_comes_to_its_end(make_model) -> None:
    steps: list[tuple[str, int, int]] = []
    build(make_model(GAUSSIAN), progress=lambda *step: steps.append(step))
    phases = {phase for phase, *_ in steps}
    assert len(phases) > 2
    for phase in phases:
        done, total = [step[1:] for step in steps if step[0] == phase][-1]
        assert done == total


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (BuildOptions(targets=(90,)), "sm_90"),
        (BuildOptions(hardware_compatibility="ampere_plus"), "--hardware-compatibility"),
        (BuildOptions(version_compatible=True), "--version-compatible"),
        (BuildOptions(timing_cache=Path("cache")), "--timing-cache"),
        (BuildOptions(optimization_level=6), "0..5"),
        (BuildOptions(workspace_mib=0), "1 MiB"),
        (BuildOptions(workspace_mib=1 << 50), "1 MiB"),
        (BuildOptions(targets=(86,), attention="function", max_batch=10**11), "does not take"),
        (BuildOptions(targets=(86,), attention="function", max_batch=10**20), "does not take"),
        (BuildOptions(max_batch=0), "largest batch"),
        (BuildOptions(attention="function", embed_plugin=True), "embedded"),
        (BuildOptions(attention="plugin", plugin=Path("none.so")), "none.so"),
        (
            BuildOptions(
                targets=(86,), attention="function", profiles=(parse_profile("y=1x1:1x1:1x1"),)
            ),
            "does not have",
        ),
        (BuildOptions(targets=(75,), attention="function"), "SM75"),  # what only the builder finds
    ],
)
def test_what_cannot_be_built_is_said_and_leaves_nothing(
    make_model, options: BuildOptions, reason: str
) -> None:
    model = make_model(OperatorVariant("dot", "dot"), precision="fp16")
    with pytest.raises(UserError) as caught:
        build(model, options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_refit_without_a_gpu_is_refused_with_the_reason(make_model, monkeypatch) -> None:
    monkeypatch.setattr(options_module, "has_gpu", lambda: False)
    for options in (BuildOptions(refit=True), BuildOptions(strip_weights=True)):
        with pytest.raises(UserError, match="GPU"):
            build(make_model(GAUSSIAN), options)


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0a" + b"garbage" * 100)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for path in (broken, empty, tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(UserError):
            build(path)


def test_an_operator_the_library_does_not_know_is_named(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="odd one", domain="nowhere")],
        "g",
        [value("x", 1, [1])],
        [value("y", 1, [1])],
    )
    path = tmp_path / "odd.onnx"
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    with pytest.raises(UserError, match=r"(?s)odd one.*Frobnicate"):
        build(path)


def test_external_data_beside_the_model_is_found(make_model) -> None:
    model = make_model(GAUSSIAN)
    loaded = onnx.load(model)
    onnx.save(
        loaded, model, save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    assert build(model).precision == "fp32"
    (model.parent / "model.onnx.data").unlink()
    with pytest.raises(UserError, match=r"model\.onnx\.data does not exist"):
        build(model)


def test_no_file_of_a_build_is_written_over_another(make_model) -> None:
    model = make_model(GAUSSIAN)
    before = model.read_bytes()
    plan, folder = model.with_suffix(".plan"), model.parent / "folder"
    folder.mkdir()
    for target, cache in ((model, None), (plan, plan), (plan, model), (folder, None)):
        with pytest.raises(UserError, match=r"over another file|directory"):
            build_plan(model, target, BuildOptions(attention="function", timing_cache=cache))
    with pytest.raises(UserError, match="folder is a directory"):
        build_plan(model, plan, BuildOptions(attention="function", timing_cache=folder))
    assert model.read_bytes() == before
    assert sorted(model.parent.iterdir()) == [folder, model]


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.options import BuildOptions

number = int(sys.argv[3])
signal.signal(number, signal.default_int_handler)  # as the command line has it, for both signals

def interrupt(phase, step, steps):
    if step == 1:
        os.kill(os.getpid(), number)

try:
    build_plan(Path(sys.argv[1]), Path(sys.argv[2]),
               BuildOptions(targets=(86,), attention="function"), interrupt)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_builder_and_leaves_nothing(make_model, number: int) -> None:
    model = make_model(GAUSSIAN)
    plan = model.with_suffix(".plan")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(model), str(plan), str(int(number))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 128 + signal.SIGINT, result.stderr
    assert not plan.exists()
    assert not manifest_path(plan).exists()


def test_the_exported_model_describes_itself_in_the_manifest(make_model) -> None:
    model = make_model(GAUSSIAN)
    loaded = onnx.load(model)
    entry = loaded.metadata_props.add()
    entry.key, entry.value = "bilateral", json.dumps({"name": "small", "labels": ["a", "b"]})
    onnx.save(loaded, model)
    assert build(model).metadata == {"name": "small", "labels": ["a", "b"]}


def test_a_file_of_several_sizes_gets_a_profile_of_them_tuned_for_its_own(
    digits: Checkpoint, tmp_path: Path
) -> None:
    path = export_onnx(for_sizes(digits, [(4, 4), (12, 16)]), tmp_path / "several.onnx").path
    (profile,) = build(path).profiles
    found = profile["image"]
    assert (found.minimum, found.optimum, found.maximum) == (
        (1, 1, 4, 4), (8, 1, 8, 8), (32, 1, 12, 16)
    )  # fmt: skip
