"""The list of runtimes: what each row names exists, and reading the list is cheap."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bilateral_export.errors import UnsupportedError, UserError
from bilateral_export.lowering.lower import RUNTIMES as TARGETS
from bilateral_export.runners.base import BaseRunner
from bilateral_export.runners.registry import LOWERED, RUNTIMES, SERVED, Runtime, lowered_runtime


@pytest.mark.parametrize("name", [name for name, each in RUNTIMES.items() if each.reads == "onnx"])
def test_every_runtime_that_reads_an_exported_file_has_a_runner(
    name: str, digits_onnx: Path
) -> None:
    assert isinstance(RUNTIMES[name].load(digits_onnx), BaseRunner)


def test_every_target_of_the_lowering_belongs_to_one_runtime() -> None:
    assert sorted(RUNTIMES[name].lowering for name in LOWERED) == sorted(TARGETS)


def test_the_python_backend_runs_what_the_list_says() -> None:
    source = Path("serving/bilateral_serving/python_backend/model.py")
    text = (Path(__file__).parents[3] / source).read_text(encoding="utf-8")
    for name in SERVED:
        assert f'"{name}": open_{name},' in text


def test_the_list_is_read_without_any_runtime() -> None:
    code = (
        "import sys, bilateral_export.runners.registry;"
        "print({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


def test_what_is_not_installed_is_named_with_its_installation() -> None:
    absent = Runtime("other", "Other", "none:None", "a_package_that_nobody_has", "extra")
    assert importlib.util.find_spec(absent.package) is None
    assert absent.missing() == "not installed: pip install 'bilateral-serve[extra]'"
    with pytest.raises(UnsupportedError, match="Other is not installed"):
        absent.require()


def test_a_provider_that_the_installed_package_lacks_is_named() -> None:
    absent = Runtime("tpu", "TPU", "none:None", "onnxruntime", "gpu", provider="TPUProvider")
    assert absent.missing() == "this ONNX Runtime has no TPUProvider"


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UserError, match="unknown runtime 'tensorrt'"):
        lowered_runtime("tensorrt")
