"""Model files that are replaced, cut off, overwritten or deleted while they are served."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.serving.front_door.door import OWN_CONNECTION, request
from tests.serving.server.test_supervise import Supervised
from tests.serving.under_load.steady_caller import SteadyCaller
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import repository
from bilateral_serving.config import Settings


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:  # in place: the same inode
        file.write(b"\x01" * path.stat().st_size)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"\x01" * path.stat().st_size)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten": overwrite,
    "replaced": replace,
    "cut off": lambda path: os.truncate(path, 100),
    "deleted": lambda path: path.unlink(),
}


def name(change: str) -> str:
    return change.replace(" ", "_")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervised, Path]]:
    """A server: a model of external data for each change, runtimes by turns, and a steady one."""
    root = tmp_path_factory.mktemp("changed")
    one = Settings(threads=1, warmup=False)
    file = models.with_external_data(root / "wide.onnx")
    repository.add("quadrants", models.quadrants(root / "q.onnx"), root / "r", settings=one)
    for number, change in enumerate(CHANGES):
        runtime = ("onnxruntime", "openvino")[number % 2]
        settings = Settings(threads=1, warmup=False, runtime=runtime)
        repository.add(name(change), file, root / "r", settings=settings)
    server = Supervised(root / "r")
    server.wait_for("ready")
    yield server, root / "r"
    server.end()


def ask(server: Supervised, model: str) -> str:
    """ "" if a model with external data answers rightly, else the error."""
    with grpc.insecure_channel(server.url, options=OWN_CONNECTION) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelInfer(request(model, x=np.full((1, 1), 3, np.float32)), timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    assert answer.raw_output_contents[0] == np.full(1 << 18, 3, np.float32).tobytes(), "wrong"
    return ""


def test_answers_stay_right_until_a_restart_which_refuses_what_changed(
    served: tuple[Supervised, Path],
) -> None:
    server, root = served
    caller = SteadyCaller(server.url)
    caller.start()
    kept = root.with_name("kept")
    shutil.copytree(root / name("cut off"), kept)
    for change, do in CHANGES.items():
        for file in ("model.onnx", "wide.onnx.data"):
            do(root / name(change) / "1" / file)
        for _ in range(3):
            assert ask(server, name(change)) == ""
    before = caller.account.answered
    shutil.rmtree(root / "replaced")  # the whole model
    assert ask(server, "replaced") == ""
    assert server.lines_so_far() == []
    os.kill(server.server(), signal.SIGKILL)
    print(server.wait_for("event"))
    said = sorted(server.wait_for("event") for _ in CHANGES)
    for change, line in zip(sorted(map(name, CHANGES)), said, strict=True):
        assert line.startswith(f"Model '{change}' is not served any more: ")
    assert "is not the file that was added, whose SHA-256 is" in said[2]  # overwritten
    for change in CHANGES:
        problem = ask(server, name(change))
        assert "NOT_FOUND" in problem or "UNAVAILABLE" in problem, (change, problem)
    shutil.copytree(kept, root / name("cut off"), dirs_exist_ok=True)
    os.kill(server.server(), signal.SIGKILL)
    print(server.wait_for("event"))
    assert server.wait_for("event") == "Model 'cut_off' is served again."
    assert ask(server, name("cut off")) == ""
    account = caller.finish()
    assert account.answered > before
    assert (account.wrong, account.failed) == (0, [])
