"""What PyTorch launches compiles: the just-in-time compiler sees the launcher's own arguments.

The interpreter knows no types of pointers, and the ahead-of-time build states them itself, so that
neither notices an argument of the wrong type. Needs no GPU: compiling asks the driver only what to
compile for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
# In a process of its own: Triton decides at import whether it compiles.
LAUNCH = """
import sys

import triton
from tests.export.op.kernel.problems import SMALL, problem
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import torch
from bilateral_export.op.kernel import launch


class Described:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", int(sys.argv[1]), 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


def compiled(function, grid):
    def compiling(*arguments, **options):
        print("compiled", function.run(*arguments, grid=grid, warmup=True, **options).name)

    return compiling


triton.runtime.driver.set_active(Described())
JITFunction.__getitem__ = compiled
launch._capability = lambda device: int(sys.argv[1])
for dtype, range_kernel, spatial_kernel, skip in (
    (torch.bfloat16, "dot", "gaussian", False),
    (torch.float16, "gaussian", "gaussian", True),
    (torch.float32, "dot", "none", False),
    (torch.bfloat16, "gaussian", "dot", False),
):
    case = problem(
        dtype=dtype, range_kernel=range_kernel, spatial_kernel=spatial_kernel, query_prefix=1
    )
    launch.bilateral_attention_forward(case, skip_tiles=skip, configuration=SMALL)
"""
NAMES = {
    "bilateral_attention_kernel": 4,
    "bilateral_key_tiles_kernel": 2,
    "bilateral_tile_ranges_kernel": 1,
    "bilateral_features_kernel": 2,
}


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_compiles_with_the_launchers_arguments(
    architecture: int, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / 'export'}:{ROOT}", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(architecture)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    compiled = result.stdout.split("compiled ")[1:]
    assert {name: compiled.count(f"{name}\n") for name in NAMES} == NAMES
