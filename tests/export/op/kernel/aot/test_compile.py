"""Ahead-of-time compilation, without a GPU: a few specialisations for every architecture."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bilateral_export.op.architectures import COMPILED
from bilateral_export.op.contract import SPATIAL_KERNELS
from bilateral_export.op.kernel.aot.specialisation import specialisations
from bilateral_export.op.kernel.launch_config import (
    FEATURE_ROWS,
    HEAD_DIMS,
    table,
)

ROOT = Path(__file__).parents[5]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("export", "serving", "benchmarks", "cli"))
REPORT = json.loads((ROOT / "benchmarks/results/kernel_build.json").read_text())
# Triton decides at import whether it compiles; this process may have it as an interpreter.
COMPILE = """
import json, sys
from pathlib import Path
from bilateral_export.op.kernel.aot.compile import compile_all
from bilateral_export.op.kernel.aot.manifest import problems
from bilateral_export.op.kernel.aot.specialisation import specialisations
wanted = [item for item in specialisations() if item.name in sys.argv[2:]]
assert len(wanted) == len(sys.argv) - 2, wanted
print(json.dumps(problems(compile_all(Path(sys.argv[1]), wanted, 1))))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "export")
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def representative() -> list[str]:
    """One gaussian kernel per architecture, the longest float32 head, the rest once for 9.0."""
    chosen: dict[object, str] = {}
    for item in specialisations():
        if item.name == "attention_sm90_fp32_d256_gaussian2_term":
            chosen["longest float32"] = item.name
        if (item.dtype, item.head_dim) == ("bf16", 64) and item.coordinates in (0, 2):
            if item.kernel == "attention" and item.spatial == "gaussian":
                chosen[item.architecture, item.spatial] = item.name
            if item.architecture == 90 and (item.kernel != "attention" or item.spatial == "none"):
                chosen[item.kernel, item.key_term] = item.name
            if item.architecture == 90 and item.features == 64:
                chosen["features"] = item.name
    return list(chosen.values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    directory = tmp_path_factory.mktemp("aot") / "cubins"
    result = run("-c", COMPILE, str(directory), *representative())
    assert result.returncode == 0, result.stderr
    manifest = json.loads((directory / "manifest.json").read_text())
    return directory, manifest, json.loads(result.stdout.splitlines()[-1])


Built = tuple[Path, dict[str, Any], list[str]]


def test_nothing_spills_and_everything_fits(built: Built) -> None:
    _, manifest, problems = built

    assert problems == []
    assert all(0 < cubin["registers"] <= 255 for cubin in manifest["cubins"])
    assert {cubin["architecture"] for cubin in manifest["cubins"]} == set(COMPILED)


def test_the_committed_report_has_every_kernel_without_spills() -> None:
    """At the configurations of the table; with Hopper's instructions in what is fast on 9.0."""
    reported = {cubin["file"]: cubin for cubin in REPORT["cubins"]}

    assert REPORT["problems"] == []
    assert set(reported) == {f"{item.name}.cubin" for item in specialisations()}
    for item in specialisations():
        cubin = reported[f"{item.name}.cubin"]
        for size in ("block_m", "block_n", "num_warps", "num_stages"):
            assert cubin[size] == getattr(item.configuration, size), item.name
        assert cubin["spill_bytes"] == 0, item.name
        if (item.kernel, item.architecture) == ("attention", 90) and item.dtype != "fp32":
            assert "wgmma" in cubin["matrix_instructions"], item.name


def test_the_committed_report_is_of_this_code(built: Built) -> None:
    """The full build takes too long for a test; what it reported has to be what these report."""
    _, manifest, _ = built
    if REPORT["triton"] != [manifest["triton"]]:
        pytest.skip(f"the report is of Triton {REPORT['triton']}, here is {manifest['triton']}")
    reported = {cubin["file"]: cubin for cubin in REPORT["cubins"]}

    for cubin in manifest["cubins"]:
        for fact in ("registers", "shared_bytes", "bytes"):
            assert cubin[fact] == reported[cubin["file"]][fact], cubin["file"]


def test_every_architecture_uses_its_own_matrix_instructions(built: Built) -> None:
    _, manifest, _ = built
    kinds = {
        cubin["architecture"]: cubin["matrix_instructions"]
        for cubin in manifest["cubins"]
        if cubin["kernel"] == "attention" and cubin["dtype"] == "bf16"
    }

    assert kinds[80] == kinds[86] == kinds[120] == ["mma"]
    assert kinds[90] == ["wgmma"]
    assert kinds[100] == ["tcgen05"]


def test_the_manifest_describes_the_files(built: Built) -> None:
    directory, manifest, _ = built
    for cubin in manifest["cubins"]:
        image = (directory / cubin["file"]).read_bytes()
        assert image[:4] == b"\x7fELF"
        assert hashlib.sha256(image).hexdigest() == cubin["sha256"]
        assert cubin["symbol"].encode() in image


def test_the_arguments_are_those_of_the_launch_abi(built: Built) -> None:
    _, manifest, _ = built
    readme = (ROOT / "export/bilateral_export/op/kernel/README.md").read_text()

    assert manifest["abi"] == 1
    for arguments in manifest["arguments"].values():
        assert arguments[-2:] == [["global_scratch", "pointer"], ["profile_scratch", "pointer"]]
        for name, _ in arguments[:-2]:
            assert f"`{name}`" in readme, f"README.md does not explain {name}"


def test_no_worker_outlives_its_parent() -> None:
    """Not even where the parent has no time to say so."""
    code = """
import os
from bilateral_export.op.kernel.aot.workers import worker_pool
if __name__ == "__main__":
    pool = worker_pool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    input()
"""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        parent = subprocess.Popen(
            [sys.executable, script.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT / "export")),
        )
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        assert worker.exists()
        parent.kill()
        parent.wait()
    for _ in range(600):
        try:
            if "State:\tZ" in (worker / "status").read_text():
                return
        except OSError:  # it is gone
            return
        time.sleep(0.05)
    raise AssertionError(f"{worker} still runs")


def test_the_interpreter_is_refused_in_one_line(tmp_path: Path) -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=PATHS)
    command = [
        sys.executable,
        "-m",
        "bilateral_cli",
        "kernels",
        "compile",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(
        [*command, "--sm", "80", "--workers", "1"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr.startswith("Error: TRITON_INTERPRET is set")
    assert list(tmp_path.iterdir()) == []


def test_every_case_has_a_configuration() -> None:
    for architecture in COMPILED:
        for bits in (16, 32):
            for spatial_kernel in SPATIAL_KERNELS:
                have = {
                    (case.head_dim, case.features)
                    for case in table()
                    if (case.architecture, case.bits, case.spatial_kernel)
                    == (architecture, bits, spatial_kernel)
                }
                rows = FEATURE_ROWS if spatial_kernel == "dot" else (0,)
                assert have == set(product(HEAD_DIMS, rows))
