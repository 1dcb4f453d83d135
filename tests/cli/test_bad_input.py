"""Wrong input gets one line, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.cli.conftest import DIGITS, ROOT, Bilateral, Outcome

from bilateral_cli import main

IMAGE = ROOT / "export" / "checkpoints" / "digits" / "3-0.png"
NOBODY = "localhost:9"  # the discard port: nothing listens there

# A job in the background ignores Ctrl-C, and so would what it starts. (Not by `preexec_fn`, which
# forks: gRPC may be in use here.)
WITH_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def refused(outcome: Outcome) -> str:
    """The one line of a refusal."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.onnx"
    path.write_text("no model, no checkpoint, no image")
    return path


def test_a_missing_file(bilateral: Bilateral, digits_onnx: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ("export", nowhere, tmp_path / "m.onnx"),
        ("parity", nowhere, digits_onnx),
        ("parity", DIGITS, nowhere),
        ("parity", DIGITS, digits_onnx, "--inputs", nowhere),
        ("repository", "add", "digits", nowhere, "--repository", tmp_path / "models"),
    ):
        assert f"{nowhere} does not exist" in refused(bilateral(*arguments)), arguments
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_the_system_does_not_take(bilateral: Bilateral, digits_onnx: Path) -> None:
    long = Path("n" * 300)
    for arguments in (
        ("inspect", long),
        ("doctor", long),
        ("build", long, "d.plan"),
        ("build", digits_onnx, long),
    ):
        assert "File name too long" in refused(bilateral(*arguments)), arguments


def test_a_file_of_the_wrong_type(
    bilateral: Bilateral, digits_onnx: Path, text_file: Path, tmp_path: Path
) -> None:
    for arguments, complaint in (
        (("export", text_file, tmp_path / "m.onnx"), "not a checkpoint"),
        (("export", digits_onnx, tmp_path / "m.onnx"), "an ONNX model, not a checkpoint"),
        (("parity", DIGITS, text_file), "ONNX"),
        (("parity", DIGITS, DIGITS), "ONNX"),
        (("repository", "add", "d", text_file, "--repository", tmp_path / "models"), "ONNX"),
    ):
        assert complaint in refused(bilateral(*arguments)), arguments
    assert [path.name for path in tmp_path.iterdir()] == ["notes.onnx"]


def test_an_onnx_file_from_elsewhere_cannot_be_compared(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "anonymous.onnx")
    line = refused(bilateral("parity", DIGITS, tmp_path / "anonymous.onnx"))
    assert "does not say what it was exported from" in line


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((2, 1, 9, 8), np.float32), "has shape [1, 1, 9, 8]. Expected image float32"),
        (np.zeros((2, 1, 8, 8), np.int64), "is int64. Expected image float32"),
    ],
)
def test_inputs_of_the_wrong_shape_or_type(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path, array: np.ndarray, complaint: str
) -> None:
    np.savez(tmp_path / "inputs.npz", image=array)
    given = ("parity", DIGITS, digits_onnx, "--inputs", tmp_path / "inputs.npz")
    assert complaint in refused(bilateral(*given))


def test_unknown_names_and_options(bilateral: Bilateral, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for arguments, complaint in (
        (("export", DIGITS, tmp_path / "m.onnx", "--model", "deit_huge"), "unknown model name"),
        (("export", DIGITS, tmp_path / "m.onnx", "--precision", "fp8"), "'fp16'"),
        (("export", DIGITS, tmp_path / "m.onnx", "--opset", "7"), "Choose one of 18"),
        (("export", DIGITS), "Missing argument 'onnx'"),
        (("export", DIGITS, tmp_path / "m.onnx", "--quick"), "No such option: --quick"),
        (("repository", "show", "nobody", "--repository", models), "nobody"),
        (("repository", "remove", "nobody", "--repository", models), "nobody"),
        (("exprt",), "No such command 'exprt'"),
    ):
        assert complaint.lower() in refused(bilateral(*arguments)).lower(), arguments


def test_the_server_is_down(bilateral: Bilateral, digits_onnx: Path) -> None:
    for arguments in (
        ("infer", "digits", IMAGE, "--url", NOBODY, "--timeout", 60),
        ("parity", DIGITS, digits_onnx, "--served", "digits", "--url", NOBODY),
    ):
        line = refused(bilateral(*arguments))
        assert NOBODY in line
        assert "bilateral serve" in line


def test_a_repository_with_nothing_to_serve(bilateral: Bilateral, tmp_path: Path) -> None:
    line = refused(bilateral("serve", "--repository", tmp_path))
    assert str(tmp_path) in line
    assert "bilateral repository add" in line


def test_a_port_that_is_taken(bilateral: Bilateral, digits_onnx: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert bilateral("repository", "add", "d", digits_onnx, "--repository", models).code == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        off = ("--http-port", 0, "--metrics-port", 0)
        line = refused(bilateral("serve", "--repository", models, "--grpc-port", port, *off))
    assert str(port) in line


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, smaller than the model."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk(bilateral: Bilateral, digits_onnx: Path, full_disk: Path) -> None:
    line = refused(bilateral("export", DIGITS, full_disk / "digits.onnx"))
    assert f"cannot write {full_disk / 'digits.onnx'}: No space left on device" in line
    line = refused(
        bilateral("repository", "add", "d", digits_onnx, "--repository", full_disk / "m")
    )
    assert "No space left on device" in line
    left = [path for path in full_disk.rglob("*") if path.is_file()]
    assert left == []


def test_a_directory_that_cannot_be_written(bilateral: Bilateral, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(bilateral("export", DIGITS, tmp_path / "file" / "digits.onnx"))
    assert "cannot write" in line


@pytest.mark.parametrize("path", [".", "..", "/"])
@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("lower",),
        ("lower", "--for", "/a/b"),
        ("build", "{path}"),
        ("build", "{path}", "--json"),
        ("export", "out.onnx"),
        ("parity", "out.onnx"),
        ("explain", "3-0.png"),
        ("repository", "add", "name"),
        ("repository", "add", "name", "--target", "tensorrt"),
    ],
    ids=" ".join,
)
def test_a_path_without_a_name(
    bilateral: Bilateral,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    path: str,
) -> None:
    """Names derived from it (a suffix, a manifest beside it) are not even tried."""
    monkeypatch.chdir(tmp_path)
    given = [word.format(path=path) for word in command]
    words = 3 if given[:2] == ["repository", "add"] else 1
    refused(bilateral(*given[:words], path, *given[words:]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["/a/b", "..", "cuda"])
def test_a_runtime_that_is_not_known_has_no_lowering(
    bilateral: Bilateral, digits_onnx: Path, target: str
) -> None:
    before = sorted(digits_onnx.parent.iterdir())
    assert f"no lowering for '{target}'" in refused(
        bilateral("lower", digits_onnx, "--for", target)
    )
    assert sorted(digits_onnx.parent.iterdir()) == before


@pytest.mark.parametrize("path", [".", "/"])
def test_an_output_without_a_name(bilateral: Bilateral, digits_onnx: Path, path: str) -> None:
    for command in (["build", digits_onnx, path], ["lower", digits_onnx, "-o", path]):
        assert "is a directory" in refused(bilateral(*command))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, number: int) -> None:
    arguments = ["export", str(DIGITS), str(tmp_path / "digits.onnx")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, sys.executable, "-m", "bilateral_cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == main.EXIT_INTERRUPTED
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_turned_into_its_own_error_is_one(tmp_path: Path) -> None:
    program = """
import os, signal
import typer
from bilateral_cli.main import run
def command(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        raise SystemError("a library's") from None
typer.Typer.__call__ = command
run()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == main.EXIT_INTERRUPTED
    assert result.stderr == "Interrupted; nothing half-written was left.\n"


def test_a_package_that_is_not_installed_names_the_extra(
    bilateral: Bilateral, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("bilateral_export.graph")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    line = refused(bilateral("export", DIGITS, tmp_path / "digits.onnx"))
    assert 'pip install "bilateral-serve[export]"' in line
