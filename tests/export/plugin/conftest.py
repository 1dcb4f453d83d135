"""Builds the plugin's test executable around made-up kernels, once for all tests of this folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders.exported import shared_folder

SOURCES = Path(__file__).parents[3] / "export" / "plugin"
ARCHITECTURES = {80: [80], 86: [86, 89], 90: [90], 100: [100], 120: [120]}
TOKENS = ["query", "key", "value", "output"]
STRIDES = [f"stride_{tensor}{axis}" for tensor in "qkvo" for axis in "bhn"]
# As in the launch ABI (export/bilateral_export/op/kernel/README.md).
ARGUMENTS = {
    "attention": [
        *TOKENS,
        *("query_positions", "key_positions", "bandwidth", "key_term", "tile_ranges"),
        *STRIDES,
        *("stride_tb", "stride_th", "heads", "n_query", "n_key", "head_dim", "n_features"),
        *("query_prefix", "key_prefix", "diagonal", "has_ranges", "scale"),
    ],
    "key_tiles": [
        *("key", "key_bias", "key_positions", "key_term", "tile_norm", "tile_term", "tile_boxes"),
        *("stride_kb", "stride_kh", "stride_kn", "stride_bias", "heads", "n_key", "head_dim"),
        *("key_prefix", "gaussian_range", "has_bias", "coordinates", "scale"),
    ],
    "plan": [
        *("query", "key", "query_positions", "key_positions", "bandwidth", "key_term"),
        *("tile_norm", "tile_term", "tile_boxes", "tile_ranges"),
        *STRIDES[:6],
        *("stride_tb", "stride_th", "heads", "n_query", "n_key", "head_dim"),
        *("query_prefix", "key_prefix", "diagonal", "scale", "budget"),
    ],
    "features": [
        *("source", "target", "heads", "n_tokens", "n_features", "prefix", "scale", "largest")
    ],
}


def write_cubins(folder: Path) -> None:
    """A manifest of the ABI's form whose cubins are a few bytes that begin like one."""
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []

    def add(kernel: str, architecture: int, dtype: str, **facts: object) -> None:
        sizes = "_".join(str(value) for value in facts.values())
        file = f"{kernel}_{architecture}_{dtype}_{sizes}.cubin"
        content = f"\x7fELF {file}".ljust(96).encode()
        (folder / file).write_bytes(content)
        entries.append(
            {
                "kernel": kernel,
                "architecture": architecture,
                "file": file,
                "sha256": hashlib.sha256(content).hexdigest(),
                "symbol": f"{kernel}_{dtype}",
                "runs_on": ARCHITECTURES[architecture],
                "dtype": dtype,
                "head_dim": 0,
                "spatial": "none",
                "coordinates": 0,
                "features": 0,
                "key_term": False,
                "block_m": 64,
                "block_n": 32,
                "threads": 128,
                "shared_bytes": 65536,
            }
            | facts
        )

    # The set of the real compiler, with fewer classes: key terms may be left out only without a
    # spatial kernel, and far tiles are planned in 16 bits alone.
    for architecture, dtype in itertools.product(ARCHITECTURES, ("fp32", "fp16", "bf16")):
        add("features", architecture, dtype, block_m=0, block_n=0)
        for head_dim in (64, 128):
            common = {"head_dim": head_dim, "key_term": True}
            add("attention", architecture, dtype, head_dim=head_dim, block_n=16)
            add("attention", architecture, dtype, **common, block_n=16)
            add("key_tiles", architecture, dtype, head_dim=head_dim, spatial="gaussian")
            for coordinates in (1, 2, 3):
                facts = common | {"spatial": "gaussian", "coordinates": coordinates}
                add("attention", architecture, dtype, **facts)
                if dtype != "fp32":
                    add("plan", architecture, dtype, **facts)
            for features in (16, 32):
                add("attention", architecture, dtype, **common, spatial="dot", features=features)
    types = {
        name: [[argument, "any"] for argument in [*names, "global_scratch", "profile_scratch"]]
        for name, names in ARGUMENTS.items()
    }
    manifest = {"abi": 1, "arguments": types, "cubins": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def build(folder: Path, cubins: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure and build with CMake into `folder`."""
    configure = [
        *("cmake", "-S", str(SOURCES), "-B", str(folder), f"-DCUBINS_DIR={cubins}"),
        f"-DPython3_EXECUTABLE={sys.executable}",
        *options,
    ]
    compile_ = ["cmake", "--build", str(folder), "--parallel", "2"]
    for command in (configure, compile_):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            break
    return result


@pytest.fixture(scope="session")
def plugin_compiler() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The function `build`; skips where there is no compiler."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine")
    return build


@pytest.fixture(scope="session")
def made_up_cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels") / "cubins"
    write_cubins(folder)
    return folder


@pytest.fixture(scope="session")
def plugin_build(
    tmp_path_factory: pytest.TempPathFactory, made_up_cubins: Path, plugin_compiler
) -> Path:
    """The folder of a build with tests; skips where there is no compiler or no headers."""
    with shared_folder(tmp_path_factory, "plugin") as folder:
        built = folder / "built"
        if not built.exists():
            result = plugin_compiler(folder, made_up_cubins, "-DBILATERAL_PLUGIN_TESTS=ON")
            if "headers were not found" in result.stderr:
                pytest.skip("no TensorRT or CUDA headers on this machine")
            assert result.returncode == 0, result.stdout + result.stderr
            built.touch()
    return folder
