"""The shared library as others meet it: its symbols, its bytes, TensorRT's parser and builder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.installation.plugin import (
    FILE_NAME,
    find_plugin,
    load_plugin,
    plugin_contents,
    require_plugin,
)
from bilateral_export.engine.installation.soname import shared_object
from bilateral_export.engine.options import BuildOptions
from bilateral_export.errors import UserError
from bilateral_export.op.contract import OperatorVariant

SOURCES = Path(__file__).parents[3] / "export" / "plugin"
VARIANTS = [
    OperatorVariant(range_kernel, spatial_kernel, causal, key_bias)
    for range_kernel, spatial_kernel, causal, key_bias in itertools.product(
        ("dot", "gaussian"), ("none", "gaussian", "dot"), (False, True), (False, True)
    )
]


@pytest.fixture(scope="session")
def plugin(plugin_build: Path) -> Path:
    return plugin_build / FILE_NAME


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return load_library("tensorrt_rtx")


def test_only_the_documented_symbols_are_exported(plugin: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm on this machine")
    listing = subprocess.check_output(["nm", "-D", "--defined-only", plugin], text=True)
    strong = [line.split() for line in listing.splitlines()]
    # W, V and u: templates of the standard library that every user of it may share.
    assert {fields[-1] for fields in strong if fields[-2] not in "WVu"} == {
        "getCreators",
        "setLoggerFinder",
        "bilateralPluginContents",
    }


def test_it_depends_on_neither_tensorrt_nor_cuda(plugin: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on this machine")
    dynamic = subprocess.check_output(["readelf", "-d", plugin], text=True)
    needed = [line for line in dynamic.splitlines() if "NEEDED" in line]
    assert needed
    assert not any("nvinfer" in line or "tensorrt" in line or "cuda" in line for line in needed)


def test_it_says_what_it_holds(plugin: Path) -> None:
    contents = plugin_contents(plugin)
    assert contents.version == "1"
    assert contents.targets == (80, 86, 89, 90, 100, 120)


def test_cubins_of_another_abi_or_other_bytes_are_not_embedded(
    made_up_cubins: Path, tmp_path: Path
) -> None:
    script = SOURCES / "cmake" / "embed_cubins.py"

    def embed(folder: Path) -> str:
        command = [sys.executable, script, folder, tmp_path / "out"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    folder = tmp_path / "cubins"
    shutil.copytree(made_up_cubins, folder)
    cubin = min(folder.glob("attention_90_fp16*"))
    cubin.write_bytes(b"other")
    assert f"{cubin.name} is not the cubin" in embed(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"abi": 2}))
    assert "launch ABI 2" in embed(folder)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_parser_takes_the_plugin_for_every_variant(
    rtx, plugin: Path, make_model, tmp_path: Path, precision: str
) -> None:
    options = BuildOptions(targets=(86, 120), plugin=plugin)
    manifest = build_plan(
        make_model(*VARIANTS, precision=precision), tmp_path / "m.plan", options, library=rtx
    )
    assert manifest.attention.path == "plugin"
    assert manifest.plugin is not None
    assert manifest.plugin.nodes == len(VARIANTS)
    assert manifest.precision == precision


def test_plans_are_for_gpus_the_plugin_has_code_for(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    model = make_model(VARIANTS[0])
    with pytest.raises(UserError, match="no code for sm_121"):
        build_plan(
            model, tmp_path / "m.plan", BuildOptions(targets=(86, 121), plugin=plugin), library=rtx
        )
    every = build_plan(model, tmp_path / "m.plan", BuildOptions(plugin=plugin), library=rtx)
    assert every.targets == ("sm_80", "sm_86", "sm_89", "sm_120")
    function = BuildOptions(attention="function")
    assert "sm_121" in build_plan(model, tmp_path / "f.plan", function, library=rtx).targets


def test_without_the_plugin_the_same_file_runs_through_the_function_body(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    load_plugin(rtx, plugin)  # loaded, and yet not taken
    options = BuildOptions(targets=(86,), attention="function")
    model = make_model(OperatorVariant("gaussian", "gaussian"), precision="fp16")
    manifest = build_plan(model, tmp_path / "m.plan", options, library=rtx)
    assert manifest.attention.path == "function"
    assert manifest.plugin is None


def test_nodes_without_the_plugins_attributes_cannot_be_forced_through_it(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    model = make_model(VARIANTS[0], plugin_attributes=False, overloads=False)
    options = BuildOptions(targets=(86,), plugin=plugin)
    with pytest.raises(UserError, match="plugin_namespace"):
        build_plan(model, tmp_path / "m.plan", options, library=rtx)


def test_an_embedded_plugin_makes_the_plan_larger_by_about_its_size(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    model = make_model(VARIANTS[0])
    plain, embedded = (
        build_plan(
            model,
            tmp_path / f"{embed}.plan",
            BuildOptions(targets=(86,), plugin=plugin, embed_plugin=embed),
            library=rtx,
        )
        for embed in (False, True)
    )
    assert embedded.plugin is not None
    assert embedded.plugin.embedded
    growth = embedded.plan.bytes - plain.plan.bytes
    assert plugin.stat().st_size <= growth < plugin.stat().st_size + 65536


# As Triton's TensorRT backend does with `plugins=`: it opens the library, and that is all.
OPENED = """
import ctypes, sys
nvinfer, plugin, *libraries = sys.argv[1:]
opened = [ctypes.CDLL(library) for library in libraries]
tensorrt = ctypes.CDLL(nvinfer)
ctypes.CDLL(plugin)
if hasattr(tensorrt, "fakeNvinferLoaded"):
    tensorrt.fakeNvinferLoaded.restype = ctypes.c_char_p
    print(tensorrt.fakeNvinferLoaded().decode(), end="")
else:
    import tensorrt_rtx
    registry = tensorrt_rtx.get_plugin_registry()
    print(registry.get_creator("BilateralAttention", "1", "ai.bilateral"), end="")
"""


class TestOpenedByTriton:
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Path:
        path = tmp_path / "libtriton_tensorrt.so"
        path.write_bytes(shared_object(path.name, "libc.so.6"))
        return path

    def open(self, nvinfer: Path, plugin: Path, *libraries: Path) -> str:
        command = [sys.executable, "-c", OPENED, nvinfer, plugin, *libraries]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_it_has_tensorrt_load_and_register_it(
        self, plugin_build: Path, plugin: Path, tmp_path: Path, backend: Path
    ) -> None:
        (nvinfer,) = (plugin_build / "fake").glob("libnvinfer.so.*")
        assert self.open(nvinfer, plugin, backend) == str(plugin)

    def test_elsewhere_whoever_loads_it_registers_it(
        self, plugin_build: Path, plugin: Path, tmp_path: Path, backend: Path
    ) -> None:
        (nvinfer,) = (plugin_build / "fake").glob("libnvinfer.so.*")
        assert self.open(nvinfer, plugin) == ""
        unpacked = tmp_path / "from_a_plan.so"  # TensorRT gives it a name of its own
        shutil.copy(plugin, unpacked)
        assert self.open(nvinfer, unpacked, backend) == ""

    def test_the_registry_of_tensorrt_11_takes_it(
        self, plugin: Path, tmp_path: Path, backend: Path
    ) -> None:
        """TensorRT for RTX has that registry: here it goes by the name of the full library."""
        libraries = pytest.importorskip("tensorrt_rtx_libs")
        real = Path(libraries.__path__[0]) / "libtensorrt_rtx.so.1"
        nvinfer = tmp_path / "libnvinfer.so.11"
        nvinfer.write_bytes(shared_object(nvinfer.name, real.name))
        creator = self.open(nvinfer, plugin, backend, real)
        assert "IPluginCreatorV3One" in creator


def test_what_the_kernel_cannot_do_is_said_in_the_builders_error(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    model = make_model(OperatorVariant("dot", "none"))
    loaded = onnx.load(model)
    for node in loaded.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = -1.0
    onnx.save(loaded, model)
    options = BuildOptions(targets=(86,), plugin=plugin)
    with pytest.raises(UserError, match="scale is -1"):
        build_plan(model, tmp_path / "m.plan", options, library=rtx)


def test_files_that_are_not_the_plugin_are_refused(tmp_path: Path, plugin_build: Path) -> None:
    text = tmp_path / "plugin.so"
    text.write_text("not a library")
    for path in (text, plugin_build / "fake" / "libcuda.so.1"):
        with pytest.raises(UserError, match="not the BilateralAttention plugin"):
            plugin_contents(path)


def test_a_second_plugin_library_in_one_process_is_refused(
    rtx, plugin: Path, tmp_path: Path
) -> None:
    load_plugin(rtx, plugin)
    load_plugin(rtx, plugin)
    copy = tmp_path / FILE_NAME
    shutil.copy(plugin, copy)
    with pytest.raises(UserError, match="loaded already"):
        load_plugin(rtx, copy)


def test_a_wheel_carries_it_to_where_it_is_found(plugin: Path, tmp_path: Path) -> None:
    dist, installed = tmp_path / "dist", tmp_path / "installed"
    subprocess.run([sys.executable, SOURCES / "build_wheel.py", plugin, dist], check=True)
    (wheel,) = dist.iterdir()
    assert not wheel.name.endswith("-any.whl")  # it goes with this platform alone
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    script = (
        "import bilateral_export.engine.installation.plugin as plugin; print(plugin.find_plugin())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "BILATERAL_PLUGIN"}
    found = subprocess.check_output(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(installed)},
        text=True,
    )
    assert Path(found.strip()) == installed / "bilateral_export" / "lib" / FILE_NAME
    assert Path(found.strip()).read_bytes() == plugin.read_bytes()


def test_the_environment_names_the_plugin(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILATERAL_PLUGIN", str(plugin))
    assert find_plugin() == require_plugin(None) == plugin.resolve()
    monkeypatch.setenv("BILATERAL_PLUGIN", str(tmp_path / "missing.so"))
    with pytest.raises(UserError, match="BILATERAL_PLUGIN"):
        find_plugin()


def test_loading_it_in_a_fresh_process_does_not_abort(
    rtx, plugin: Path, make_model, tmp_path: Path
) -> None:
    """The wheel's parser opens libtensorrt_rtx.so, which the wheel does not have."""
    code = """
import sys
import zipfile
from pathlib import Path
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.installation.soname import shared_object
model, plan, plugin = map(Path, sys.argv[1:])
print(build_plan(model, plan, BuildOptions(targets=(86,), plugin=plugin)).attention.path)
"""
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code, make_model(VARIANTS[1]), tmp_path / "m.plan", plugin]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip() == "plugin", result.stderr


def test_the_sources_are_formatted() -> None:
    formatter = shutil.which("clang-format", path=str(Path(sys.executable).parent))
    if formatter is None:
        pytest.skip("clang-format is not installed")
    folders, endings = ("src", "harness", "tests"), ("cpp", "h")
    files = [
        f for folder in folders for ending in endings for f in SOURCES.glob(f"{folder}/*.{ending}")
    ]
    assert len(files) > 20
    subprocess.run([formatter, "--dry-run", "--Werror", *files], check=True)
