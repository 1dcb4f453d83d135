"""Studies, checks and kernel commands refuse bad input in one line, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.conftest import CHECKPOINTS, DIGITS, Bilateral
from tests.cli.test_bad_input import refused

from bilateral_export.engine.installation.cuda import read_driver


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("study", "tile-skipping", "--sm", "12"), "--sm 12. Use one of"),
        (("kernels", "block-sizes", "--sm", "12"), "--sm 12. Use one of"),
        (("kernels", "block-sizes", "--workers", "0"), "--workers"),
        (("kernels", "compile", "out", "--workers", "-1"), "--workers"),
        (("kernels", "compile", "out", "--sm", "12"), "--sm 12. Use one of"),
        (("kernels", "compile", "out", "--dtype", "fp8"), "--dtype fp8. Use one of"),
        (("kernels", "compile", "out", "--only", "("), "--only '(' is not a regular expression"),
        (("kernels", "compile", "out", "--only", "nothing"), "no cubin has 'nothing' in its name"),
        (("study", "build-matrix", "--models", "nobody"), "--models nobody. Use one of"),
        (("study", "build-matrix", "--precisions", "fp8"), "--precisions fp8. Use one of"),
        (("study", "build-matrix", "--sm", "x"), "'x'"),
        (("study", "robustness", "nowhere.safetensors"), "does not exist"),
        (("study", "robustness", DIGITS, "--budgets", "x"), "'x'"),
        (("check", "runner"), "Missing argument"),
    ],
)
def test_arguments_out_of_range(
    bilateral: Bilateral,
    arguments: tuple[object, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(bilateral(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_attacked_is_refused_before_a_server_is_started(
    bilateral: Bilateral, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", pixels=np.zeros(3))
    out = ("--out", tmp_path / "out")
    line = refused(bilateral("study", "robustness", DIGITS, "--data", tmp_path / "data.npz", *out))
    assert "the arrays images and labels" in line
    data = ("--data", CHECKPOINTS / "digits_heldout.npz")
    assert "budget 256" in refused(
        bilateral("study", "robustness", DIGITS, *data, "--budgets", "256", *out)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("group", ["bench", "check"])
def test_the_kernel_without_a_gpu_says_what_it_needs(bilateral: Bilateral, group: str) -> None:
    line = refused(bilateral(group, "kernel"))
    assert "this measurement needs an NVIDIA GPU" in line
    assert "bilateral bench kernel" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_plugin_without_a_gpu_says_what_it_needs(bilateral: Bilateral) -> None:
    assert "this check needs an NVIDIA GPU" in refused(bilateral("check", "plugin"))


def test_the_runner_without_a_gpu_says_what_it_needs(bilateral: Bilateral) -> None:
    driver = read_driver()
    if driver is not None and driver.devices:
        pytest.skip("there is a GPU here")
    assert "no NVIDIA GPU is visible" in refused(bilateral("check", "runner", DIGITS))


def test_the_schema_of_parity_reports_is_checked(bilateral: Bilateral) -> None:
    outcome = bilateral("check", "schema")
    assert outcome.code == 0
    assert "current" in outcome.out
