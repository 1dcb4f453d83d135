"""The directory of links and sockets, and what is left of servers that were killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.builders import tiny_models as models

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.access import find_token, published_token
from bilateral_serving.process_status import owner_is_gone, owner_name
from bilateral_serving.server.processes import scratch
from bilateral_serving.server.processes.scratch import PREFIX, link_model, scratch_directory

HELD = """
import os, time
from pathlib import Path
from bilateral_serving.access import published_token
from bilateral_serving.server.processes.scratch import scratch_directory

with scratch_directory() as path, published_token(1):
    region = Path("/dev/shm") / path.name
    region.touch()
    print(path, flush=True)
    time.sleep(600)
"""


def test_is_private_short_and_gone_at_the_end() -> None:
    with scratch_directory() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(f"{path}/grpc:1") < 107  # sockaddr_un
    assert not path.exists()


@pytest.mark.parametrize("name", ["with space", "modèles", "quote'", "l" * 60])
def test_lies_elsewhere_if_the_temporary_directory_has_no_plain_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with scratch_directory() as path:
        assert name not in str(path)


def test_is_refused_where_there_is_no_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_parents", lambda: [Path("/proc")])  # not even root writes there
    with pytest.raises(UserError, match="Set TMPDIR"), scratch_directory():
        pass


def test_what_a_killed_server_left_is_removed_by_the_next_and_of_one_that_runs_nothing() -> None:
    kept = [start_and_hold() for _ in range(2)]
    killed, runs = kept
    try:
        assert killed[1].is_dir()  # before: any start removes it, of another test too
        killed[0].send_signal(signal.SIGKILL)
        killed[0].wait()
        with scratch_directory():
            assert not killed[1].exists()
            assert not (Path("/dev/shm") / killed[1].name).exists()
            assert runs[1].is_dir()
            assert (Path("/dev/shm") / runs[1].name).exists()
    finally:
        runs[0].kill()
        runs[0].wait()
    with scratch_directory():
        assert not runs[1].exists()
        assert not (Path("/dev/shm") / runs[1].name).exists()


def test_the_token_of_a_killed_server_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    process, _ = start_and_hold()
    assert find_token("127.0.0.1:1") is not None
    process.kill()
    process.wait()
    with published_token(2):
        assert find_token("127.0.0.1:1") is None
        with published_token(3):
            assert find_token("127.0.0.1:2") is not None
    with scratch_directory():
        pass


def test_an_owner_is_named_so_that_its_number_may_be_used_again() -> None:
    name = owner_name(os.getpid())
    namespace, pid, started = name.split("-")
    assert not owner_is_gone(name)
    assert owner_is_gone(f"{namespace}-{pid}-{int(started, 16) - 1:x}")
    assert not owner_is_gone(f"{int(namespace, 16) + 1:x}-{pid}-0")  # a container's
    assert not owner_is_gone("something-else")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        name = owner_name(process.pid)
        assert not owner_is_gone(name)
    assert owner_is_gone(name)


def test_a_model_is_linked_as_it_is_now(tmp_path: Path) -> None:
    served = tmp_path / "models"
    served.mkdir()
    root = tmp_path / "repository"
    for version in (1, 2):
        repository.add("quadrants", models.quadrants(tmp_path / f"{version}.onnx"), root)
    (root / "quadrants/.partial-3").mkdir()
    link_model(root / "quadrants", served)
    repository.add("quadrants", models.quadrants(tmp_path / "3.onnx"), root)
    assert sorted(path.name for path in (served / "quadrants").iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
        "labels.txt",
    ]
    assert (served / "quadrants/2/model.onnx").is_file()
    assert "bilateral/3" not in (served / "quadrants/config.pbtxt").read_text()


def start_and_hold() -> tuple[subprocess.Popen[str], Path]:
    """A process that has a directory, shared memory and a token; and the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    assert path.name.startswith(PREFIX)
    return process, path


def test_python_keeps_no_compiled_code_in_a_repository_that_is_served(tmp_path: Path) -> None:
    served, version = tmp_path / "models", tmp_path / "repository/quadrants/1"
    served.mkdir()
    repository.add("quadrants", models.quadrants(tmp_path / "q.onnx"), tmp_path / "repository")
    (version / "__pycache__").mkdir()
    (version / "__pycache__" / "metrics.cpython-311.pyc").write_bytes(b"cut off")
    link_model(tmp_path / "repository/quadrants", served)
    (version / "part.py").write_text("value = 1\n")
    code = f"import sys; sys.path.insert(0, {str(version)!r}); import part; print(part.value)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"
    assert (version / "__pycache__").read_bytes() == b""
