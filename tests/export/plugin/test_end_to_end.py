"""The plugin and its kernels together, from the creator to the numbers, with and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bilateral_benchmarks.gpu_checks import plugin
from bilateral_export.engine.installation.plugin import FILE_NAME, find_plugin
from bilateral_export.errors import UserError

REPLAY = Path(__file__).with_name("replay.py")


@pytest.fixture(scope="module")
def replayed(plugin_build: Path, made_up_cubins: Path) -> list[dict[str, Any]]:
    """In a process of its own, which sees the stand-in for libcuda."""
    pytest.importorskip("triton")
    environment = dict(os.environ) | {
        "LD_LIBRARY_PATH": str(plugin_build / "fake"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, REPLAY, plugin_build, made_up_cubins]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_what_the_plugin_launches_computes_the_operator(replayed: list[dict[str, Any]]) -> None:
    """Its choice of kernels, their arguments and scratch memory, by the numbers that come out."""
    ran = [row for row in replayed if "error" in row]

    assert len(ran) == 20
    assert [row for row in ran if not row["error"] <= row["limit"]] == []


def test_what_the_plugin_refuses_reaches_the_caller(replayed: list[dict[str, Any]]) -> None:
    assert "scale is -1" in replayed[-1]["refused"]


def test_without_a_gpu_the_check_says_what_it_needs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="this check needs an NVIDIA GPU"):
        plugin.check_plugin(None, None, print)


def notes(*results: plugin.CaseResult) -> tuple[str, ...]:
    found = plugin.PluginCheck(device="none", overhead_us={}, results=results)
    return found.tables()[0].notes


def test_what_keeps_a_case_from_running_is_a_failure_unless_it_is_a_missing_kernel(
    plugin_build: Path,
) -> None:
    """Here no driver is found, so that whatever is launched fails."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    library = plugin_build / FILE_NAME
    launched = plugin.check(library, plugin.Case("fp16"), "cpu")
    missing = plugin.check(library, plugin.Case("fp16", head_dim=136), "cpu")

    assert "no NVIDIA driver" in launched.failed
    assert not launched.passed
    assert "head size 136" in missing.refused
    assert not missing.failed
    lines = notes(launched, missing)
    assert any(line.startswith("FAIL Case(") and "no NVIDIA driver" in line for line in lines)
    assert any(line.startswith("1 cases not run") for line in lines)
    many = notes(*[launched] * 30)
    assert sum(line.startswith("FAIL Case(") for line in many) == 20
    assert many[-1] == "FAIL 10 more"


def test_the_grid_has_every_kernel_option_type_and_ragged_lengths() -> None:
    grid = list(plugin.cases())

    assert len(set(grid)) == len(grid)
    for field, values in {
        "dtype": {"fp32", "fp16", "bf16"},
        "range_kernel": {"dot", "gaussian"},
        "spatial_kernel": {"none", "gaussian", "dot"},
        "prefix": {0, 1, 2},
        "causal": {False, True},
        "key_bias": {False, True},
    }.items():
        assert {getattr(case, field) for case in grid} == values
    assert {case.n_key % 8 for case in grid} >= {0, 1, 5, 6}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_whole_grid_on_a_gpu() -> None:
    if find_plugin() is None:
        pytest.skip("the plugin is not built: make plugin")
    assert plugin.check_plugin(None, None, print).passed
