"""The plugin around kernels that were compiled for it: a few of them, so that it takes seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.builders.exported import exported
from tests.export.plugin.conftest import ARGUMENTS, SOURCES

from bilateral_export.engine.installation.plugin import FILE_NAME, plugin_contents

KERNELS = ("--head-dim", "32")


def compile_kernels(folder: Path, *options: str) -> dict:
    """Run compile_kernels.py for one GPU and type; its manifest."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, SOURCES / "compile_kernels.py", folder]
    options = ("--sm", "86", "--dtype", "fp16", *options)
    result = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standard kernels of one head size, for one GPU and type."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("kernels") / "cubins"
    compile_kernels(folder, *KERNELS)
    return folder


@pytest.fixture(scope="module")
def plugin(cubins: Path, plugin_compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    result = plugin_compiler(folder, cubins)
    if "headers were not found" in result.stderr:
        pytest.skip("no TensorRT or CUDA headers on this machine")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / FILE_NAME


def test_the_manifest_has_the_arguments_the_tests_of_the_schedule_assume(cubins: Path) -> None:
    manifest = json.loads((cubins / "manifest.json").read_text())
    scratch = ["global_scratch", "profile_scratch"]
    for kernel, typed in manifest["arguments"].items():
        assert [name for name, _ in typed] == [*ARGUMENTS[kernel], *scratch]


def test_64_bit_arguments_are_those_the_plugin_passes_as_such(cubins: Path) -> None:
    """A 64-bit number that the plugin set as one of 32 bits would lose its sign."""
    manifest = json.loads((cubins / "manifest.json").read_text())
    kinds = {name: kind for typed in manifest["arguments"].values() for name, kind in typed}
    wide = {name for name, kind in kinds.items() if kind == "int64"}
    strides = {f"stride_{tensor}{axis}" for tensor in "qkvo" for axis in "bh"}
    assert wide == strides | {"stride_tb", "stride_th", "stride_bias"}
    assert {name for name, kind in kinds.items() if kind == "float"} == {
        "scale",
        "budget",
        "largest",
    }


def test_the_machine_code_takes_the_arguments_of_the_manifest(cubins: Path) -> None:
    """Read from the cubins: a kernel takes as many bytes of each argument as the plugin wrote."""
    triton = pytest.importorskip("triton")
    manifest = json.loads((cubins / "manifest.json").read_text())
    size = {"int32": 4, "float": 4}
    for kernel, typed in manifest["arguments"].items():
        file = next(entry["file"] for entry in manifest["cubins"] if entry["kernel"] == kernel)
        command = [triton.knobs.nvidia.cuobjdump.path, "-elf", cubins / file]
        listing = subprocess.check_output(command, text=True)
        found = re.findall(r"Ordinal\s*: 0x(\w+).*?Size\s*: 0x(\w+)", listing, re.DOTALL)
        sizes = {int(ordinal, 16): int(bytes_, 16) for ordinal, bytes_ in found}
        assert sizes == {index: size.get(kind, 8) for index, (_, kind) in enumerate(typed)}


def test_the_library_holds_every_kernel(cubins: Path, plugin: Path) -> None:
    manifest = json.loads((cubins / "manifest.json").read_text())
    contents = plugin_contents(plugin)
    assert contents.targets == (86, 89)
    assert contents.kernels == len(manifest["cubins"])
    library = plugin.read_bytes()
    for entry in manifest["cubins"]:
        assert (cubins / entry["file"]).read_bytes() in library


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(
    cubins: Path, plugin: Path, plugin_compiler, tmp_path: Path
) -> None:
    """Kernels and library, compiled again elsewhere; the kernel compiler caches nothing."""
    again = tmp_path / "elsewhere" / "cubins"
    compile_kernels(again, *KERNELS)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in cubins.iterdir()
    }
    assert plugin_compiler(tmp_path / "build", again).returncode == 0
    assert (tmp_path / "build" / FILE_NAME).read_bytes() == plugin.read_bytes()


def test_the_digits_model_builds_through_it(
    plugin: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a process of its own: one process takes one plugin library."""
    pytest.importorskip("tensorrt_rtx")
    onnx = exported("digits_bilateral", tmp_path_factory, precision="fp16")
    plan = tmp_path / "digits.plan"
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "bilateral_cli", "build", onnx, plan, "--json"]
    result = subprocess.run(
        [*command, "--sm", "86", "--plugin", plugin, "--embed-plugin"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["plugin"]["nodes"] == 4
    assert manifest["plugin"]["embedded"] is True
    assert plan.stat().st_size > plugin.stat().st_size
