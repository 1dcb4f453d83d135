"""`bilateral score-files`: exactly one row an item, whatever is killed, and whatever an item is.

The command runs in a process of its own: Ray forks, and the processes of pytest use gRPC.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.builders import tiny_models
from tests.builders.exported import exported

pytest.importorskip("ray", reason="ray is not installed: pip install 'bilateral-serve[ray]'")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from bilateral_export.preprocessing import BytesPreprocessing

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
DAMAGED = 40  # every so many rows hold half a picture


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


def pictures(path: Path, count: int) -> Path:
    """A Parquet file of digits as PNG files, in row groups of 500; some are damaged."""
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        images, labels = file["images"], file["labels"]
    rows = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(images[number % len(images)]).save(buffer, "PNG")
        content = buffer.getvalue()
        rows.append(
            {
                "path": f"digit-{number:06}",
                "image": content[: len(content) // 2] if number % DAMAGED == 7 else content,
                "label": int(labels[number % len(images)]),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    return path


@contextlib.contextmanager
def scoring(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bilateral_cli", "score-files", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in (*descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


def descendants(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [parent]
    for pid in found:  # grows meanwhile
        found += [child for child, of in parents.items() if of == pid]
    return found[1:]


def workers(driver: int) -> list[int]:
    found = []
    for pid in descendants(driver):
        with contextlib.suppress(OSError):
            if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    end = time.monotonic() + 240
    while parts(folder) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def check_rows(folder: Path, count: int, model: Path) -> None:
    """Each item has one row; the damaged ones, and no others, have a reason."""
    table = pyarrow.dataset.dataset(folder).to_table()
    rows = sorted(table.to_pylist(), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == [f"digit-{number:06}" for number in range(count)]
    failed = [number for number, row in enumerate(rows) if row["error"]]
    assert failed == list(range(7, count, DAMAGED))
    assert all(rows[number]["decision"] is None for number in failed)
    assert "damaged" in rows[7]["error"]
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        labels = file["labels"]
    right = [
        row["decision"] == str(labels[number % len(labels)])
        for number, row in enumerate(rows)
        if not row["error"]
    ]
    assert np.mean(right) > 0.9
    assert sum(rows[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert {row["model_sha256"] for row in rows} == {hashlib.sha256(model.read_bytes()).hexdigest()}
    assert not list(folder.glob(".partial-*"))
    assert not list(folder.glob("_plan/*.attempts"))


@pytest.mark.slow
def test_one_row_an_item_after_a_worker_and_the_driver_were_killed(
    digits: Path, tmp_path: Path
) -> None:
    data, folder = pictures(tmp_path / "digits.parquet", 8000), tmp_path / "scores"
    asked = (digits, data, "--content", "image", "--output", folder, "--workers", 2)
    with scoring(*asked) as first:
        wait_for_parts(first, folder, 2)
        for worker in workers(first.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
        wait_for_parts(first, folder, parts(folder) + 3)
        first.kill()
    (folder / ".partial-1-part-0000-000001.parquet").write_bytes(b"left by a writer")
    with scoring(*asked, "--json") as second:
        told = json.loads(ended(second))
    assert told["items"] == 8000
    assert told["scored"] < 8000  # what was there stays
    check_rows(folder, 8000, digits)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_one_row_an_item_whenever_it_is_killed(seed: int, digits: Path, tmp_path: Path) -> None:
    """Workers, the driver, or all processes as if the machine had stopped, at random moments."""
    moments = random.Random(seed)
    data, folder = pictures(tmp_path / "digits.parquet", 12_000), tmp_path / "scores"
    asked = (digits, data, "--content", "image", "--output", folder, "--workers", 2)
    for kill in moments.sample(["worker", "driver", "machine", "machine"], 4):
        with scoring(*asked) as process:
            wait_for_parts(process, folder, min(32, parts(folder) + moments.randrange(1, 6)))
            time.sleep(moments.uniform(0, 0.3))
            if kill == "worker":
                for pid in workers(process.pid):
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(moments.uniform(0, 2))
            elif kill == "driver":
                process.kill()
                time.sleep(moments.uniform(0, 2))  # its workers may still write
    with scoring(*asked) as process:
        ended(process)
    check_rows(folder, 12_000, digits)


@pytest.mark.slow
def test_a_model_that_runs_on_nothing_is_one_line(tmp_path: Path) -> None:
    """The reason comes from a worker, through Ray."""
    how = BytesPreprocessing(length=2)
    model = tiny_models.save(
        tmp_path / "m.onnx",
        [
            tiny_models.helper.make_node("Gather", ["table", "ids"], ["wide"]),
            tiny_models.helper.make_node("Squeeze", ["wide", "axis"], ["logits"]),
        ],
        {"ids": (tiny_models.TensorProto.INT64, ["batch", "length"])},
        {"logits": (tiny_models.TensorProto.FLOAT, ["batch", "length"])},
        {"table": np.zeros((20, 1), dtype=np.float32), "axis": np.array([2])},
        tiny_models.metadata(preprocessing=how, labels=("first", "second")),
    )
    pq.write_table(pa.table({"text": ["zz"] * 200}), tmp_path / "texts.parquet")
    told = ("--content", "text", "--output", tmp_path / "scores")
    with scoring(model, tmp_path / "texts.parquet", *told) as process:
        _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert err.strip().count("\n") == 0
    assert "cannot run" in err
