"""Triton's releases decide opsets, settings and launch arguments."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.builders.exported import exported

from bilateral_export.errors import UserError
from bilateral_export.graph.export import DEFAULT_OPSET, OPSETS
from bilateral_serving import repository
from bilateral_serving.doctor.diagnose import diagnose
from bilateral_serving.doctor.machine import read_machine
from bilateral_serving.releases import RELEASES, number, opset_for, release, release_of

TWO_YEARS = 24


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of opset 22, which ONNX Runtime loads from 1.21 on."""
    return exported("digits_bilateral", tmp_path_factory, opset=22)


def test_the_table_is_in_order_without_gaps() -> None:
    months = [12 * int(r.name[:2]) + int(r.name[3:]) for r in RELEASES]
    assert months == list(range(months[0], months[0] + len(months)))
    servers = [r.server for r in RELEASES]
    assert servers == sorted(servers, key=lambda text: [int(part) for part in text.split(".")])
    for numbers in itertools.pairwise(RELEASES):
        older, newer = (number(r.onnxruntime) for r in numbers)
        assert older <= newer


def test_the_default_opset_loads_in_every_release_of_two_years() -> None:
    recent = RELEASES[-TWO_YEARS:]
    loaded = min(release.opset for release in recent)
    assert max(opset for opset in OPSETS if opset <= loaded) == DEFAULT_OPSET


@pytest.mark.parametrize(
    ("name", "opset"), [("24.10", 21), ("25.02", 21), ("25.03", 22), ("25.08", 23), ("26.08", 23)]
)
def test_a_release_takes_the_newest_opset_it_is_known_to_load(name: str, opset: int) -> None:
    assert opset_for(name, "fp32") == opset_for(name, "fp16") == opset


def test_bf16_and_unknown_releases_are_refused() -> None:
    with pytest.raises(UserError, match="no bfloat16"):
        opset_for("26.07", "bf16")
    with pytest.raises(UserError, match=r"99\.99 is not a release"):
        release("99.99")


def test_a_server_of_unknown_version_has_every_known_fault() -> None:
    assert not release_of(None).bears_cancellation
    assert not release_of("2.56.1").bears_cancellation
    assert release_of("2.57.0").bears_cancellation
    assert release_of("2.59.0").name == release_of("2.59.0dev").name
    assert not release_of("2.67.0").asks_for_client_memory
    assert release_of("2.99").asks_for_client_memory


def test_add_refuses_what_the_release_cannot_load_and_says_what_does(
    newer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"opset 22, and Triton 24\.10 loads 21"):
        repository.add("m", newer, tmp_path, target="onnxruntime", for_triton="24.10")
    assert not list(tmp_path.iterdir())
    added = repository.add("m", newer, tmp_path, target="onnxruntime")
    assert any("from 25.03 on" in remark for remark in added.remarks)
    named = repository.add("m", newer, tmp_path, target="onnxruntime", for_triton="25.03")
    assert not any("Triton" in remark for remark in named.remarks)
    with pytest.raises(UserError, match="only target onnxruntime"):
        repository.add("p", newer, tmp_path, for_triton="25.03")


@pytest.mark.parametrize(("name", "errors"), [("24.10", 1), ("25.03", 0), ("26.08", 0)])
def test_the_doctor_judges_a_file_by_the_containers_onnx_runtime(
    newer: Path, tmp_path: Path, name: str, errors: int
) -> None:
    repository.add("m", newer, tmp_path, target="onnxruntime")
    found = diagnose(tmp_path, read_machine(container=name)).findings
    assert [finding.problem for finding in found if "opset" in finding.problem] == [
        finding.problem for finding in found if finding.severity == "error"
    ]
    assert len([finding for finding in found if finding.severity == "error"]) == errors


@pytest.mark.parametrize("name", [release.name for release in RELEASES])
def test_the_doctor_takes_every_release(name: str) -> None:
    machine = read_machine(container=name)
    assert machine.in_container
    assert machine.tensorrt == release(name).tensorrt
    assert name in machine.facts["tritonserver"]


def test_bf16_is_refused_where_onnx_runtime_would_run_it_on_a_cpu(
    newer: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bf16 = exported("digits_bilateral", tmp_path_factory, precision="bf16")
    root = tmp_path / "repository"
    for target in ("python", "onnxruntime"):
        with pytest.raises(UserError, match="no bfloat16 operators on a CPU"):
            repository.add("m", bf16, root, target=target)
    assert not root.exists()
    # Nor beside a version whose configuration it would take.
    repository.add("m", newer, root, target="onnxruntime")
    with pytest.raises(UserError, match="no bfloat16 operators on a CPU"):
        repository.add("m", bf16, root, target="onnxruntime")
    assert [version.number for version in repository.show("m", root).versions] == [1]
