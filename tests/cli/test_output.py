"""What is printed: text from elsewhere as it is, on any stream, and one valid JSON document."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.conftest import CHECKPOINTS, DIGITS, ROOT, Bilateral
from tests.cli.test_bad_input import WITH_CTRL_C, refused

from bilateral_cli.console import DescriptionColumn, LiteralConsole, print_json, styled, table
from bilateral_cli.main import run
from bilateral_export.errors import UserError
from bilateral_export.files import require_replaceable, to_json

# Markup, the end of none, an emoji's name, an order to the terminal, half a character.
HOSTILE = "[bold red]x[b] [] :smile: \x1b[31m ü😀 \udcff"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
PROGRAM = [sys.executable, "-m", "bilateral_cli"]


def squeezed(text: str) -> str:
    """Text without what a table puts between and around it."""
    return re.sub(r"[\s│┃|]", "", text)


def escaped(text: str) -> str:
    """What a terminal may be shown of it: no control characters, no halves of characters."""
    text = "".join(
        f"\\x{ord(c):02x}" if (c < " " and c not in "\t\n") or "\x7f" <= c < "\xa0" else c
        for c in text
    )
    return text.encode("utf-8", "backslashreplace").decode()


TAGS = ("[bold]", "[/bold]", "[/]", "[", "]", "\\", ":smile:", "\x1b[31m", "😀", "\udcff", "\r")
texts = st.lists(
    st.sampled_from(TAGS) | st.characters(exclude_characters="\n\t│┃"), max_size=8
).map("".join)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts, texts)
def test_any_text_is_printed_as_it_is(text: str, other: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    console = LiteralConsole(file=file, width=100_000, force_terminal=False)
    console.print(text, soft_wrap=True)
    console.print(styled(text, "bold red"), f"{other}{text}", markup=True, soft_wrap=True)
    console.print(table([text, ">n"], [(text, styled(text, "green"))], title=text))
    with console.status(text) as status:
        console.print(status.renderable.text)
        status.update(text)
        console.print(status.renderable.text)
    task = type("Task", (), {"description": text})
    console.print(DescriptionColumn().render(task))  # type: ignore[arg-type]
    file.seek(0)
    assert squeezed(file.read()).count(squeezed(escaped(text))) >= 9 if text.strip() else True


def test_only_the_console_decides_what_is_markup() -> None:
    """No command has a console, a progress text or a markup of its own."""
    forbidden = {"Console", "from_markup", "markup", "echo", "secho"}
    for path in (ROOT / "cli").rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            allowed = path.name == "app.py" and name == "echo"  # the version
            assert name not in forbidden or allowed, f"{path}:{getattr(node, 'lineno', 0)}: {name}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "[/" not in node.value, f"{path}:{node.lineno}: {node.value}"


def test_commands_print_names_as_they_are(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    name = HOSTILE
    folder = tmp_path / name
    folder.mkdir()
    model, report = folder / f"{name}.onnx", folder / f"{name}.json"
    shutil.copy(digits_onnx, model)
    shutil.copy(ROOT / "benchmarks" / "results" / "cpu.json", report)
    image = folder / f"{name}.png"
    shutil.copy(CHECKPOINTS / "digits" / "3-0.png", image)
    models = folder / "models"
    for code, arguments in (
        (0, ("inspect", model)),
        (0, ("lower", model, "-o", folder / f"{name}-l.onnx")),
        (0, ("repository", "add", "d", model, "--repository", models)),
        (0, ("repository", "list", "--repository", models)),
        (0, ("repository", "show", "d", "--repository", models)),
        (0, ("bench", "report", report)),
        (0, ("explain", image, model, "--out", folder / "explained")),
        (2, ("export", folder / "none", folder / "m.onnx")),
        (2, ("inspect", folder / "none")),
        (2, ("repository", "show", name, "--repository", models)),
        (2, ("repository", "remove", f"end [/{name}]", "--repository", models)),
        (2, (f"[/]{name}",)),
        (2, ("bench", "sweep", name, "1", "m")),
        (2, ("build", model, folder / "d.plan", "--attention", name)),
    ):
        outcome = bilateral(*arguments)
        assert outcome.code == code, outcome
        assert squeezed(escaped(name)) in squeezed(outcome.out + outcome.err), outcome
        assert "/]" not in str(arguments) or "[/" in outcome.err
        assert "\x1b" not in outcome.out + outcome.err
    # As JSON the name comes back whole.
    document = bilateral("repository", "show", "d", "--repository", models, "--json").json
    assert document["directory"] == str(models / "d")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_an_encoding_that_lacks_a_character_is_no_error(
    monkeypatch: pytest.MonkeyPatch, encoding: str, tmp_path: Path
) -> None:
    streams = {}
    for stream in ("stdout", "stderr"):
        streams[stream] = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, stream, streams[stream])
    for name in ("\N{CAT}", "\udcff", "œ"):
        monkeypatch.setattr(sys, "argv", ["bilateral", "repository", "list", "--repository", name])
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 0
        monkeypatch.setattr(sys, "argv", ["bilateral", "inspect", f"no {name}"])
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 2
    for stream in streams.values():
        assert b"\\U0001f408" in stream.buffer.getvalue() or encoding == "utf-8"  # type: ignore[attr-defined]


def shell(command: str) -> tuple[int, str]:
    """The exit code of a command in bash, and what it said on standard error."""
    line = command.replace("bilateral", " ".join(PROGRAM))
    result = subprocess.run(
        ["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("bilateral --help >/dev/full", 2, "No space left on device"),
        ("bilateral repository list --json --repository . >/dev/full", 2, "No space left"),
        ("bilateral --version >&-", 0, ""),
        ("bilateral inspect gone <&- >&- 2>&-", 2, ""),
        ("bilateral inspect gone 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_cannot_be_written(command: str, code: int, said: str) -> None:
    returned, error = shell(command)
    assert returned == code, error
    assert said in error
    assert len(error.splitlines()) == bool(said), error


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 130), (["inspect", "gone"], 2)])
def test_a_reader_that_has_left_is_no_error(arguments: list[str], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PROGRAM, *arguments]
    ended = subprocess.run(command, env=ENVIRONMENT, stdout=writer, stderr=writer, check=False)
    assert ended.returncode == code
    os.close(writer)


def test_a_device_is_never_replaced(bilateral: Bilateral, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("export", DIGITS, pipe), ("bench", "growth", "--output", pipe)):
        assert f"{pipe} is not a regular file" in refused(bilateral(*arguments))
    assert pipe.is_fifo()
    for device in ("/dev/null", "/dev/full", "/dev/stdout"):
        with pytest.raises(UserError, match="not a regular file"):
            require_replaceable(Path(device))


@pytest.mark.parametrize("delay_ms", [0, 90, 400])
def test_ctrl_c_at_any_time_is_one_line(delay_ms: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, *PROGRAM, "models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    # Python's own handler of Ctrl-C is there from the start, one of SIGTERM only once it is ours.
    bit = 1 << (signal.SIGTERM - 1)
    deadline = time.monotonic() + 60
    while process.poll() is None:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) & bit:
            break
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay_ms / 1000)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, 130), error  # 0: it was done already
    assert error in ("", "Interrupted; nothing half-written was left.\n")


def test_an_interrupt_that_python_drops_comes_again() -> None:
    program = """
import os, signal, time, typer
from bilateral_cli.main import run
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
def command(*_, **__):
    Dropped()
    time.sleep(60)
typer.Typer.__call__ = command
run()
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 130
    assert result.stderr == "Interrupted; nothing half-written was left.\n"


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def finite(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(json_values, max_size=3))
def test_json_is_strict(value: list[Any]) -> None:
    if finite(value):
        assert json.loads(to_json(value)) == value
    else:
        with pytest.raises(UserError, match="is not a finite number"):
            to_json(value)


def test_a_number_that_is_not_finite_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")):
        with pytest.raises(UserError, match=r"^\[0\]\.predictions\[1\]\.probability \("):
            print_json([{"predictions": [{"probability": 0.5}, {"probability": number}]}])
    assert capsys.readouterr().out == ""
    assert json.loads(to_json({"path": Path("a"), "n": np.int64(3)})) == {"path": "a", "n": 3}


def test_json_has_one_writer() -> None:
    """Nothing that a person or a program reads is written by another, which would print NaN."""
    allowed = {"isolated.py", "document.py"}  # a pipe, a schema
    for folder in ("cli", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "model_dump_json" not in text, path
            assert "json.dump" not in text or path.name in allowed, path


def test_nothing_reports_home(digits_onnx: Path, tmp_path: Path) -> None:
    program = f"""
import bilateral_export, openvino, onnxruntime
from openvino.tools.ovc import telemetry_utils
onnxruntime.InferenceSession({str(digits_onnx)!r})
print(telemetry_utils.tm.__name__)
"""
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "DO_NOT_TRACK")
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in silent}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip() == "openvino.tools.ovc.telemetry_stub", result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
