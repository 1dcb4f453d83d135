"""What the code uses of TensorRT is in both libraries' Python bindings.

The bindings of the full library install without it. They are imported in a process of their own on
top of empty libraries that have the names and the functions they link to.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPORT = Path(__file__).parents[4] / "export" / "bilateral_export"
SOURCES = [
    *(
        EXPORT / "engine" / f"{name}.py"
        for name in ("build", "builder_config", "network", "options", "progress")
    ),
    EXPORT / "engine" / "installation" / "library.py",
    EXPORT / "engine" / "installation" / "plugin.py",
    EXPORT / "runners" / "tensorrt_runner.py",
]
# What the variables of these names are, and what `self._engine` and the like are.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "registry": "IPluginRegistry",
    "shapes": "IOptimizationProfile",
    "layer": "ILayer",
    "context": "IExecutionContext",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
}
# Named by strings in the code.
NAMED = {
    "BuilderFlag": {"TF32", "REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE"},
    "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
    "LayerType": {
        *("MATRIX_MULTIPLY", "CONVOLUTION", "EINSUM", "ATTENTION_INPUT", "PLUGIN_V3"),
        *("SHUFFLE", "DEQUANTIZE"),
    },
    "DataType": {"FLOAT", "HALF", "BF16", "FP8", "INT8", "INT4", "INT32", "INT64", "BOOL"},
    "ITensor": {"name", "dtype", "shape"},
    "IPluginRegistry": {"load_library", "get_creator"},
}
# Used behind a question which library it is, or whether the name is there.
RTX_ONLY = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("", "ComputeCapability"),
    ("ComputeCapability", "CURRENT"),
}
OF_DICTIONARIES = {"items", "values"}  # `shapes` is also a name of dictionaries

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
LINKED = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "getBuilderPluginRegistry"),
    "initLibNvInferPlugins",
)
DESCRIBE = """
import ctypes, json, os, sys
for path in sys.argv[2:]:
    ctypes.CDLL(path, mode=os.RTLD_GLOBAL)
module = __import__(sys.argv[1])
names = {name: dir(getattr(module, name)) for name in dir(module)}
signature = module.IBuilderConfig.set_timing_cache.__doc__
print(json.dumps({"version": module.__version__, "names": names, "timing_cache": signature}))
"""


def chain(node: ast.AST) -> list[str]:
    """The names of `a.b.c`; empty for what begins with anything but a name."""
    if isinstance(node, ast.Attribute):
        before = chain(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def used() -> set[tuple[str, str]]:
    """(class, attribute) pairs of the code; class "" for the module itself."""
    found = {(owner, name) for owner, names in NAMED.items() for name in names}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = chain(node) if isinstance(node, ast.Attribute) else []
            for position, name in enumerate(names[:-1]):
                after = names[position + 1]
                if name == "trt":
                    found.add(("", after))
                    if len(names) > position + 2 and not names[position + 2].startswith("__"):
                        found.add((after, names[position + 2]))
                elif name in CLASSES and after not in OF_DICTIONARIES:
                    found.add((CLASSES[name], after))
    return found


def describe(module: str, libraries: tuple[Path, ...] = ()) -> dict[str, Any]:
    command = [sys.executable, "-c", DESCRIBE, module, *map(str, libraries)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("the bindings of the full TensorRT are not installed")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("nvinfer")
    source = folder / "empty.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in LINKED))
    for name in LIBRARIES:
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(command, check=True)
    return describe("tensorrt_bindings", tuple(folder / name for name in LIBRARIES))


@pytest.fixture(scope="module")
def rtx() -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx")
    return describe("tensorrt_rtx")


def missing(library: dict[str, Any]) -> set[tuple[str, str]]:
    names = library["names"]
    return {
        (owner, name)
        for owner, name in used()
        if name not in (names.get(owner, ()) if owner else names)
    }


def test_the_scan_sees_what_the_code_uses() -> None:
    assert {
        ("IBuilderConfig", "set_timing_cache"),
        ("IBuilderConfig", "plugins_to_serialize"),
        ("IExecutionContext", "execute_async_v3"),
        ("MemoryPoolType", "WORKSPACE"),
        ("Runtime", "engine_host_code_allowed"),
        ("", "get_plugin_registry"),
    } <= used()


def test_tensorrt_for_rtx_has_all_of_it(rtx: dict[str, Any]) -> None:
    assert missing(rtx) == set()


def test_tensorrt_11_has_all_but_ahead_of_time_targets(full: dict[str, Any]) -> None:
    assert full["version"].startswith("11.")
    assert missing(full) == RTX_ONLY


def test_the_timing_cache_is_set_as_both_declare_it(
    rtx: dict[str, Any], full: dict[str, Any]
) -> None:
    for library in (rtx, full):
        assert "ignore_mismatch: bool" in library["timing_cache"]
