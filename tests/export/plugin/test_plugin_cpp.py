"""Runs the cases of export/plugin/tests/*_test.cpp, each as a test."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[3] / "export" / "plugin" / "tests").glob("*_test.cpp"))
CASES = [
    pytest.param(case, id=f"{source.stem}-{case}")
    for source in SOURCES
    for case in re.findall(r"^TEST\((\w+)\)", source.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("case", CASES)
def test_case(plugin_build: Path, case: str) -> None:
    environment = dict(os.environ)
    if case.startswith("driver_"):  # these see the stand-in for libcuda
        environment["LD_LIBRARY_PATH"] = str(plugin_build / "fake")
    result = subprocess.run(
        [plugin_build / "plugin_test", case],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout.strip() == f"ok {case}", result.stdout + result.stderr
