"""A healthy repository has no findings; each seeded fault is found, and nothing else is."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders import tiny_models as models
from tests.builders.plans import plugin_record, write_plan

from bilateral_export.engine.installation.cuda import Device, Driver
from bilateral_export.engine.installation.plugin import PluginContents
from bilateral_export.engine.plan.manifest import manifest_path
from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.doctor import diagnose as doctor
from bilateral_serving.doctor.machine import Machine, read_machine
from bilateral_serving.installation import PYTHON_VERSION, Installation

# Files are opened and run by test_agreement.py, which asks the server too.
diagnose = functools.partial(doctor.diagnose, run=False)
H100 = Device("H100", 90, 80 << 30, 79 << 30)


@dataclasses.dataclass
class Scene:
    """A Python model of two versions, a stream of words and a plan, and the machine they are on."""

    root: Path
    machine: Machine
    ports: dict[str, int | None] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.root / "quadrants" / "config.pbtxt"

    @property
    def plan(self) -> Path:
        return self.root / "planned" / "1" / "model.plan"

    def edit(self, old: str, new: str, model: str = "quadrants") -> None:
        path = self.root / model / "config.pbtxt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def edit_manifest(self, **changes: object) -> None:
        path = manifest_path(self.plan)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def change(self, **facts: object) -> None:
        self.machine = dataclasses.replace(self.machine, **facts)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a healthy scene, to be copied."""
    tmp_path = tmp_path_factory.mktemp("healthy")
    root, files = tmp_path / "repository", tmp_path / "files"
    for number in (1, 2):
        repository.add(
            "quadrants",
            models.quadrants(files / f"{number}.onnx", gain=number),
            root,
            settings=Settings(max_batch_size=4, versions="all"),
        )
    words = models.words(files / "words.onnx")
    repository.add("words", words, root, settings=Settings(stream=True))
    plugin = files / "libplugin.so"
    plugin.write_bytes(b"the plugin")
    plan = write_plan(files / "planned.plan", max_batch=16, plugin=plugin_record(plugin))
    # What `add` would ask of this machine's own plugin is not this test's business.
    repository.add("planned", plan, root, target="tensorrt", settings=Settings(max_batch_size=16))
    server = tmp_path / "tritonserver"
    for backend in ("python", "tensorrt"):
        (server / "backends" / backend).mkdir(parents=True)
    stub = server / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    return tmp_path


@pytest.fixture
def scene(healthy: Path, tmp_path: Path) -> Scene:
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)
    root, files, server = (tmp_path / name for name in ("repository", "files", "tritonserver"))
    stubs = server / "python_backend_stubs" / PYTHON_VERSION
    machine = Machine(
        driver=Driver((13, 0), (H100,)),
        tensorrt="10.14.1",
        runtimes={"onnxruntime": "1.22.0", "openvino": "2026.4.0"},
        tritonserver=Installation(
            server / "bin" / "tritonserver", server / "backends", stubs.parent, ()
        ),
        numpy="1.26.4",
        libpython=files / "libpython.so",
        plugin=files / "libplugin.so",
        plugin_contents=PluginContents("1", (80, 90), 10),
    )
    return Scene(root, machine)


def test_a_healthy_repository_has_no_findings(scene: Scene) -> None:
    diagnosis = diagnose(scene.root, scene.machine, ports=scene.ports)
    assert diagnosis.findings == ()
    assert diagnosis.healthy


def truncate(scene: Scene) -> None:
    scene.plan.write_bytes(scene.plan.read_bytes()[:-100])


def flip(scene: Scene) -> None:
    data = bytearray(scene.plan.read_bytes())
    data[1000] ^= 0x10
    scene.plan.write_bytes(data)


def empty_plan(scene: Scene) -> None:
    scene.plan.write_bytes(b"")


def truncate_rtx_plan(scene: Scene) -> None:
    """Its header says how long it should be, so no manifest is needed to tell."""
    length = (5000).to_bytes(8, "little")
    scene.plan.write_bytes(b"vtrt" + bytes(12) + length + bytes([1, 7, 1, 116]) + bytes(100))
    manifest_path(scene.plan).unlink()


def wrong_version(scene: Scene) -> None:
    scene.change(tensorrt="10.11.0")


def wrong_sm(scene: Scene) -> None:
    scene.change(driver=Driver((13, 0), (dataclasses.replace(H100, sm=86),)))


def plugin_without_code(scene: Scene) -> None:
    scene.change(plugin_contents=PluginContents("1", (80, 86), 10))


def missing_plugin(scene: Scene) -> None:
    scene.change(plugin=None, plugin_contents=None)


def other_plugin(scene: Scene) -> None:
    assert scene.machine.plugin is not None
    scene.machine.plugin.write_bytes(b"another build of it")


def rtx_plan(scene: Scene) -> None:
    scene.edit_manifest(library="tensorrt_rtx")


def stripped_plan(scene: Scene) -> None:
    scene.edit_manifest(options={"strip_weights": True})


def broken_manifest(scene: Scene) -> None:
    manifest_path(scene.plan).write_text("{")


def future_manifest(scene: Scene) -> None:
    scene.edit_manifest(schema_version=2)


def batch_above_profile(scene: Scene) -> None:
    scene.edit("max_batch_size: 16", "max_batch_size: 64", "planned")


def renamed_plan_input(scene: Scene) -> None:
    scene.edit('name: "image"', 'name: "picture"', "planned")


def missing_model_file(scene: Scene) -> None:
    (scene.root / "quadrants" / "2" / "model.onnx").unlink()


def unreadable_file(scene: Scene) -> None:
    """A link to nothing: permissions would not keep root out."""
    missing_model_file(scene)
    (scene.root / "quadrants" / "2" / "model.onnx").symlink_to("/nonexistent/model.onnx")


def directory_for_file(scene: Scene) -> None:
    missing_model_file(scene)
    (scene.root / "quadrants" / "2" / "model.onnx").mkdir()


def broken_onnx(scene: Scene) -> None:
    (scene.root / "quadrants" / "1" / "model.onnx").write_bytes(b"not a model")


def missing_model_py(scene: Scene) -> None:
    (scene.root / "quadrants" / "1" / "model.py").unlink()


def missing_weights_file(scene: Scene) -> None:
    path = scene.root / "quadrants" / "1" / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (path.parent / "weights").unlink()


def renamed_input(scene: Scene) -> None:
    scene.edit('name: "pixel_values"', 'name: "pixels"')


def wrong_dims(scene: Scene) -> None:
    scene.edit("dims: 4", "dims: 5")
    labels = scene.root / "quadrants" / "labels.txt"
    labels.write_text(labels.read_text() + "fifth\n")  # so that the dims alone are wrong
    scene.edit("label_filename", "# label_filename")


def wrong_type(scene: Scene) -> None:
    scene.edit("TYPE_FP32", "TYPE_FP16")


def second_version_with_other_outputs(scene: Scene) -> None:
    models.sum_and_product(scene.root / "quadrants" / "2" / "model.onnx")


def fixed_batch(scene: Scene) -> None:
    models.quadrants(scene.root / "quadrants" / "1" / "model.onnx", batch=1)


def stale_labels(scene: Scene) -> None:
    (scene.root / "quadrants" / "labels.txt").write_text("a\nb\nc\nd\n")


def too_few_labels(scene: Scene) -> None:
    (scene.root / "quadrants" / "labels.txt").write_text("a\nb\n")


def missing_labels(scene: Scene) -> None:
    (scene.root / "quadrants" / "labels.txt").unlink()


def unreadable_labels(scene: Scene) -> None:
    """A file whose first byte cannot be read: permissions would not keep root out."""
    missing_labels(scene)
    (scene.root / "quadrants" / "labels.txt").symlink_to("/proc/self/mem")


def negative_batch(scene: Scene) -> None:
    scene.edit("max_batch_size: 4", "max_batch_size: -4")


def config_of_another_form(scene: Scene) -> None:
    scene.config.write_text("max_batch_size: many")


def missing_config(scene: Scene) -> None:
    scene.config.unlink()


def other_name(scene: Scene) -> None:
    scene.edit('name: "quadrants"', 'name: "quarters"')


def policy(scene: Scene, text: str) -> None:
    scene.edit("version_policy {\n  all {\n  }\n}", f"version_policy {{ {text} }}")


def policy_serves_nothing(scene: Scene) -> None:
    policy(scene, "specific { versions: [7] }")


def no_gpu(scene: Scene) -> None:
    scene.change(driver=None)


def driver_without_gpu(scene: Scene) -> None:
    scene.change(driver=Driver((13, 0), ()))


def full_gpu(scene: Scene) -> None:
    scene.change(driver=Driver((13, 0), (dataclasses.replace(H100, free_bytes=100 << 20),)))


def activations_beyond_the_gpu(scene: Scene) -> None:
    """One instance fits, four do not."""
    scene.edit_manifest(activation_bytes=20 << 30)
    assert diagnose(scene.root, scene.machine).healthy
    scene.edit("count: 1", "count: 4", "planned")


def no_server(scene: Scene) -> None:
    scene.change(tritonserver=None)


def missing_backend(scene: Scene) -> None:
    assert scene.machine.tritonserver is not None
    (scene.machine.tritonserver.backends / "tensorrt").rmdir()


def missing_stub(scene: Scene) -> None:
    assert scene.machine.tritonserver is not None
    assert scene.machine.tritonserver.stub is not None
    scene.machine.tritonserver.stub.unlink()


def numpy_2(scene: Scene) -> None:
    scene.change(numpy="2.1.0")


def no_libpython(scene: Scene) -> None:
    scene.change(libpython=None)


def no_onnxruntime(scene: Scene) -> None:
    repository.remove("words", scene.root)  # it needs the same
    scene.change(runtimes=scene.machine.runtimes | {"onnxruntime": None})


def no_openvino(scene: Scene) -> None:
    scene.edit('string_value: "onnxruntime"', 'string_value: "openvino"')
    scene.change(runtimes=scene.machine.runtimes | {"openvino": None})


def unknown_runtime(scene: Scene) -> None:
    scene.edit('string_value: "onnxruntime"', 'string_value: "onnx"')


def missing_vocabulary(scene: Scene) -> None:
    (scene.root / "words" / "1" / "vocabulary.txt").unlink()


def other_vocabulary(scene: Scene) -> None:
    (scene.root / "words" / "1" / "vocabulary.txt").write_text("<eos>\n<unk>\nsword")


def missing_streamer(scene: Scene) -> None:
    (scene.root / "words" / "1" / "stream.py").unlink()


def unreadable_streamer(scene: Scene) -> None:
    """A file whose first byte cannot be read: permissions would not keep root out."""
    missing_streamer(scene)
    (scene.root / "words" / "1" / "stream.py").symlink_to("/proc/self/mem")


def renamed_option_of_a_stream(scene: Scene) -> None:
    scene.edit('name: "top_p"', 'name: "nucleus"', "words")


def stream_without_a_vocabulary(scene: Scene) -> None:
    path = scene.root / "words" / "1" / "model.onnx"
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def another_models_file(scene: Scene) -> None:
    """Of the same tensors, but trained on images prepared in another way."""
    other = models.PREPROCESSING.model_copy(update={"mean": (0.5,)})
    models.quadrants(scene.root / "quadrants" / "2" / "model.onnx", preprocessing=other)


def version_copied_by_hand(scene: Scene) -> None:
    shutil.copytree(scene.root / "quadrants" / "1", scene.root / "quadrants" / "3")


def unreadable_metadata(scene: Scene) -> None:
    scene.edit('\\"schema_version\\":1', '\\"schema_version\\":9', "words")


FAULTS: list[tuple[Callable[[Scene], None], str, str]] = [
    (truncate, "planned version 1", "1904 bytes"),
    (flip, "planned version 1", "SHA-256"),
    (empty_plan, "planned version 1", "is empty"),
    (truncate_rtx_plan, "planned version 1", "says it has 5000"),
    (wrong_version, "planned version 1", "here is 10.11.0"),
    (wrong_sm, "planned version 1", "the GPU is sm_86"),
    (plugin_without_code, "planned version 1", "no code for sm_90"),
    (missing_plugin, "planned version 1", "is not there"),
    (other_plugin, "planned version 1", "another plugin"),
    (rtx_plan, "planned version 1", "TensorRT for RTX"),
    (stripped_plan, "planned version 1", "without its weights"),
    (broken_manifest, "planned version 1", "not a plan manifest"),
    (future_manifest, "planned version 1", "schema_version"),
    (batch_above_profile, "planned version 1", "up to a batch of 16"),
    (renamed_plan_input, "planned version 1", "picture"),
    (missing_model_file, "quadrants version 2", "does not exist"),
    (unreadable_file, "quadrants version 2", "does not exist"),
    (directory_for_file, "quadrants version 2", "is a directory"),
    (broken_onnx, "quadrants version 1", "not an ONNX model"),
    (missing_model_py, "quadrants version 1", "model.py"),
    (missing_weights_file, "quadrants version 1", "weights"),
    (renamed_input, "quadrants version 1", "pixels"),
    (wrong_dims, "quadrants version 1", "logits"),
    (wrong_type, "quadrants version 1", "float16"),
    (second_version_with_other_outputs, "quadrants version 2", "logits"),
    (fixed_batch, "quadrants version 1", "the batch of the file is fixed"),
    (stale_labels, "quadrants", "other labels than version 1"),
    (too_few_labels, "quadrants", "2 labels"),
    (missing_labels, "quadrants", "are not there"),
    (unreadable_labels, "quadrants", "cannot be read"),
    (negative_batch, "quadrants", "max_batch_size is -4"),
    (config_of_another_form, "quadrants", "config.pbtxt"),
    (missing_config, "quadrants", "does not exist"),
    (other_name, "quadrants", "quarters"),
    (policy_serves_nothing, "quadrants", "none of the versions that are there: 1, 2"),
    (no_gpu, "planned", "no NVIDIA driver"),
    (driver_without_gpu, "planned", "no GPU is visible"),
    (full_gpu, "machine", "100 MiB free"),
    (activations_beyond_the_gpu, "machine", "81920 MiB for activations"),
    (no_server, "server", "no tritonserver"),
    (missing_backend, "planned", "backend 'tensorrt'"),
    (missing_stub, "server", "no stub"),
    (numpy_2, "machine", "numpy 2.1.0"),
    (no_libpython, "machine", "libpython"),
    (no_onnxruntime, "quadrants", "needs onnxruntime"),
    (no_openvino, "quadrants", "needs openvino"),
    (unknown_runtime, "quadrants", "runtime 'onnx'"),
    (missing_vocabulary, "words version 1", "vocabulary.txt"),
    (other_vocabulary, "words version 1", "not the vocabulary"),
    (missing_streamer, "words version 1", "stream.py"),
    (unreadable_streamer, "words version 1", "stream.py cannot be read"),
    (renamed_option_of_a_stream, "words version 1", "'nucleus'"),
    (stream_without_a_vocabulary, "words version 1", "has no vocabulary"),
    (another_models_file, "quadrants version 2", "describes another model"),
    (version_copied_by_hand, "quadrants version 3", "does not describe this version"),
    (unreadable_metadata, "words version 1", "not understood"),
]


@pytest.mark.parametrize(
    ("seed", "subject", "problem"), FAULTS, ids=[seed.__name__ for seed, *_ in FAULTS]
)
def test_the_fault_is_found(
    scene: Scene, seed: Callable[[Scene], None], subject: str, problem: str
) -> None:
    seed(scene)
    diagnosis = diagnose(scene.root, scene.machine, ports=scene.ports)
    assert not diagnosis.healthy
    errors = [finding for finding in diagnosis.findings if finding.severity == "error"]
    found = [f for f in errors if f.subject == subject and problem in f.problem]
    assert found, [f"{f.subject}: {f.problem}" for f in errors]
    assert all(finding.why and finding.fix for finding in found)
    # The fault alone is reported: nothing else of the scene is blamed for it.
    model = subject.split()[0]
    assert {finding.subject.split()[0] for finding in errors} == {model}


def test_a_taken_port_is_found(scene: Scene) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        diagnosis = diagnose(scene.root, scene.machine, ports={"grpc": port})
    (finding,) = diagnosis.findings
    assert finding.severity == "error"
    assert str(port) in finding.problem


def test_every_port_that_cannot_be_used_is_found(scene: Scene) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"grpc": port, "http": port, "metrics": 70000}
        findings = diagnose(scene.root, scene.machine, ports=ports).findings
    assert ["taken" in findings[0].problem, "both" in findings[1].problem] == [True, True]
    assert "70000 is not a port" in findings[2].problem


def test_an_address_of_another_machine_is_said_once(scene: Scene) -> None:
    ports = {"grpc": 8001, "http": 8000}
    diagnosis = diagnose(scene.root, scene.machine, "no.address.invalid", ports)
    assert [finding.problem for finding in diagnosis.findings] == [
        "'no.address.invalid' is not an address here"
    ]


def test_a_server_or_plugin_that_is_named_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an executable"):
        read_machine(tritonserver=tmp_path / "tritonserver")
    with pytest.raises(UserError, match="plugin library"):
        read_machine(plugin=tmp_path / "plugin.so")
    (tmp_path / "plugin.so").write_text("no library")
    with pytest.raises(UserError, match="not the BilateralAttention plugin"):
        read_machine(plugin=tmp_path / "plugin.so")


@pytest.mark.parametrize(
    ("seed", "problem"),
    [
        (lambda scene: manifest_path(scene.plan).unlink(), "no manifest"),
        (lambda scene: policy(scene, "specific { versions: [1, 7] }"), "version 7"),
        (lambda scene: (scene.root / "quadrants" / "old").mkdir(), "not a version"),
        (lambda scene: (scene.root / "quadrants" / "01").mkdir(), "not a version"),
        (
            lambda scene: (scene.root / "quadrants" / "1" / "model.py").write_text("# mine"),
            "model.py",
        ),
    ],
)
def test_what_may_be_meant_is_a_warning(
    scene: Scene, seed: Callable[[Scene], object], problem: str
) -> None:
    seed(scene)
    diagnosis = diagnose(scene.root, scene.machine)
    (finding,) = diagnosis.findings
    assert finding.severity == "warning"
    assert problem in finding.problem
    assert diagnosis.healthy


def test_an_empty_repository_is_a_warning_and_none_at_all_is_refused(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, Machine(in_container=True))
    assert [finding.severity for finding in diagnosis.findings] == ["warning"]
    with pytest.raises(UserError, match="no model repository"):
        diagnose(tmp_path / "missing", Machine())


def test_directories_that_are_no_models_are_no_errors(scene: Scene) -> None:
    (scene.root / "lost+found").mkdir()
    assert diagnose(scene.root, scene.machine).findings == ()
    (scene.root / "notes").mkdir()
    (finding,) = diagnose(scene.root, scene.machine).findings
    assert (finding.severity, finding.subject) == ("info", "notes")


def test_a_python_model_of_ones_own_is_not_judged_by_our_files(scene: Scene) -> None:
    version = scene.root / "own" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("class TritonPythonModel: ...")
    text = 'backend: "python" max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: 1 }'
    (scene.root / "own" / "config.pbtxt").write_text(text)
    assert diagnose(scene.root, scene.machine).findings == ()


def test_leftovers_of_an_interrupted_write_are_only_mentioned(scene: Scene) -> None:
    (scene.root / ".partial-abc").mkdir()
    (finding,) = diagnose(scene.root, scene.machine).findings
    assert finding.severity == "info"


def test_a_plan_that_carries_its_plugin_needs_none(scene: Scene) -> None:
    manifest = json.loads(manifest_path(scene.plan).read_text())
    scene.edit_manifest(plugin=manifest["plugin"] | {"embedded": True})
    for change in (missing_plugin, plugin_without_code):
        change(scene)
        assert diagnose(scene.root, scene.machine).findings == ()


def test_a_version_compatible_plan_loads_in_later_versions_alone(scene: Scene) -> None:
    scene.edit_manifest(version_compatible=True)
    for version, healthy in (
        ("10.14.1", True),
        ("10.15.0", True),
        ("11.0.0", True),
        ("10.9", False),
    ):
        scene.change(tensorrt=version)
        assert diagnose(scene.root, scene.machine).healthy is healthy


def test_an_ampere_plus_plan_loads_on_later_gpus(scene: Scene) -> None:
    scene.edit_manifest(targets=["sm_80"], hardware_compatibility="ampere_plus")
    assert diagnose(scene.root, scene.machine).healthy
    scene.change(driver=Driver((13, 0), (dataclasses.replace(H100, sm=75),)))
    assert not diagnose(scene.root, scene.machine).healthy


def test_what_a_container_will_serve_is_not_judged_by_this_machine(scene: Scene) -> None:
    scene.change(driver=None, tritonserver=None, in_container=True, numpy="2.1.0", libpython=None)
    assert diagnose(scene.root, scene.machine).findings == ()
    scene.change(tensorrt="10.11.0")
    assert not diagnose(scene.root, scene.machine).healthy


def test_the_machine_at_hand_can_be_read() -> None:
    machine = read_machine()
    assert machine.numpy == np.__version__
    assert set(machine.facts) >= {"driver", "GPU", "TensorRT", "ONNX Runtime", "tritonserver"}
    in_container = read_machine(tensorrt="10.11.0")
    assert in_container.in_container
    assert in_container.tensorrt == "10.11.0"


def test_the_containers_triton_version_is_read(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    (tmp_path / "TRITON_VERSION").write_text("2.59.0\n")
    assert read_machine(tritonserver=binary).triton == "2.59.0"
