"""The plugin without a GPU, from its creator to the numbers it computes: `replay.py BUILD CUBINS`.

The plugin runs on host memory over the stand-in for libcuda, which records every launch. Triton's
interpreter then executes what was recorded, with the constants of the cubin that was loaded, and
the result is held against the operator in float64. Prints a JSON line per case. Needs the stand-in
on LD_LIBRARY_PATH and TRITON_INTERPRET=1.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilateral_benchmarks.gpu_checks.plugin import DTYPES, Case, CaseResult, judge, operands_of
from bilateral_benchmarks.gpu_checks.plugin_harness import PluginCall
from bilateral_export.engine.installation.plugin import FILE_NAME
from bilateral_export.errors import UserError
from bilateral_export.op.contract import RANGE_KERNELS
from bilateral_export.op.kernel.aot.cubin import kernel_of
from bilateral_export.op.kernel.aot.specialisation import Specialisation
from bilateral_export.op.kernel.launch_config import LaunchConfig


class Launch(ctypes.Structure):
    """FakeLaunch of export/plugin/tests/fake_cuda.h."""

    _fields_ = (
        ("kernel", ctypes.c_char * 256),
        ("image", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("arguments", ctypes.c_uint64 * 64),
        ("argument_count", ctypes.c_int32),
    )


class FakeCuda(ctypes.Structure):
    """FakeCuda of export/plugin/tests/fake_cuda.h."""

    _fields_ = (
        ("has_context", ctypes.c_bool),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("fail_launch_with", ctypes.c_int),
        ("libraries_loaded", ctypes.c_int32),
        ("last_image", ctypes.c_void_p),
        ("shared_bytes_allowed", ctypes.c_int32),
        ("cleared", ctypes.c_void_p),
        ("cleared_count", ctypes.c_int32),
        ("launches", ctypes.c_int32),
        ("launch", Launch * 16),
    )


def cases() -> Iterator[Case]:
    """Every kernel in every type; options, lengths and head sizes take turns."""
    options: Iterator[dict[str, Any]] = cycle(
        ({}, {"prefix": 1}, {"causal": True}, {"prefix": 2, "key_bias": True}, {"key_bias": True})
    )
    lengths = cycle(((50, 70), (33, 33), (70, 50), (1, 1)))
    head_dims = cycle((24, 64, 72))
    for dtype, range_kernel, (spatial_kernel, width) in product(
        DTYPES, RANGE_KERNELS, (("none", 0), ("gaussian", 2), ("dot", 24))
    ):
        n_query, n_key = next(lengths)
        case = Case(
            dtype, range_kernel, spatial_kernel, width, next(head_dims), n_query, n_key, heads=2
        )
        option = next(options)
        yield replace(case, **(option if min(n_query, n_key) > 1 else {}))
    for dtype in ("fp16", "bf16"):  # far tiles are left out
        yield Case(dtype, "gaussian", "gaussian", 1, 32, 40, 4100, batch=1, heads=1, prefix=1)


def run(plugin: Path, manifest: dict[str, Any], images: dict[bytes, Any], case: Case) -> CaseResult:
    """Enqueue one case, execute the launches it made, and judge the output."""
    cuda = ctypes.CDLL("libcuda.so.1")
    cuda.fakeCuda.restype = ctypes.POINTER(FakeCuda)
    fake = cuda.fakeCuda().contents
    fake.has_context, fake.major, fake.minor = True, 9, 0
    fake.launches, fake.cleared = 0, None
    operands = operands_of(case, "cpu")
    with PluginCall(plugin, operands) as call:
        call.workspace.fill_(255)  # as NaN: nothing may be read before it is written
        call.output.fill_(torch.nan)
        call()
        memory = [*call.inputs, call.output, call.workspace]
        if fake.cleared:
            at(fake.cleared, torch.float32, memory)[: fake.cleared_count] = 0
        for launch in fake.launch[: fake.launches]:
            image = ctypes.string_at(launch.image, len(next(iter(images))))
            execute(launch, images[image], manifest["arguments"], memory)
        return judge(case, operands, call.output)


def execute(
    launch: Launch, entry: dict[str, Any], arguments: dict[str, Any], memory: Sequence[Tensor]
) -> None:
    """Run one launch in Triton's interpreter."""
    assert launch.kernel.decode() == entry["symbol"]
    assert list(launch.grid[1:]) == [1, 1]
    assert list(launch.block) == [entry["threads"], 1, 1]
    assert launch.shared_bytes == entry["shared_bytes"]
    names = [name for name, _ in arguments[entry["kernel"]]]
    assert launch.argument_count == len(names)
    sizes = (entry[name] for name in ("head_dim", "spatial", "coordinates", "features", "key_term"))
    chosen = LaunchConfig(entry["block_m"], entry["block_n"], entry["threads"] // 32, 1)
    function, constants, _ = kernel_of(
        Specialisation(entry["kernel"], entry["architecture"], entry["dtype"], chosen, *sizes)
    )
    if entry["dtype"] == "bf16" and "PRECISION" in constants:
        constants["PRECISION"] = "widened"  # the interpreter has no bfloat16 products
    parameters = inspect.signature(function.fn).parameters
    values = {
        name: decode(name, str(parameters[name].annotation), slot, entry, memory)
        for name, slot in zip(names[:-2], launch.arguments, strict=False)
    }
    function[(launch.grid[0],)](**values, **constants)


def decode(
    name: str, kind: str, slot: int, entry: dict[str, Any], memory: Sequence[Tensor]
) -> object:
    """What an argument's eight bytes mean to the kernel."""
    formats = {"tl.int32": "i4x", "tl.int64": "q", "tl.float32": "f4x"}
    if kind in formats:
        return struct.unpack("<" + formats[kind], struct.pack("<Q", slot))[0]
    floats = {"bandwidth", "key_term", "key_bias", "tile_norm", "tile_term", "tile_boxes", "source"}
    if entry["kernel"] != "attention" or entry["spatial"] != "dot":
        floats |= {"query_positions", "key_positions"}
    dtype = torch.float32 if name in floats else DTYPES[entry["dtype"]]
    return at(slot, torch.int32 if name == "tile_ranges" else dtype, memory)


def at(address: int, dtype: torch.dtype, memory: Sequence[Tensor]) -> Tensor:
    """The rest of the tensor that holds an address, from there on; nothing for a null pointer."""
    if not address:
        return torch.empty(1, dtype=dtype)
    for owner in memory:
        offset = address - owner.data_ptr()
        if 0 <= offset < owner.nbytes:
            assert address % 16 == 0
            flat = owner.reshape(-1).view(torch.uint8)[offset:]
            return flat[: len(flat) // dtype.itemsize * dtype.itemsize].view(dtype)
    raise AssertionError(f"the plugin passed {address:#x}, which is nobody's memory")


def main(build: Path, cubins: Path) -> None:
    """Run all cases."""
    manifest = json.loads((cubins / "manifest.json").read_text())
    images = {(cubins / entry["file"]).read_bytes(): entry for entry in manifest["cubins"]}
    for case in cases():
        result = run(build / FILE_NAME, manifest, images, case)
        truncated = 2 if case.dtype == "bf16" else 1  # the interpreter's bfloat16 is cut off
        facts = {"case": str(case), "error": result.error, "limit": truncated * result.limit}
        print(json.dumps(facts), flush=True)
    try:
        PluginCall(build / FILE_NAME, replace(operands_of(Case("fp16"), "cpu"), scale=-1.0))
    except UserError as error:
        print(json.dumps({"case": "a negative scale", "refused": str(error)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
