"""Random arguments and damaged files: no traceback, no hang, no exit code but 0, 1, 2 and 130."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from tests.cli.conftest import CHECKPOINTS, DIGITS, ROOT

from bilateral_cli import main
from bilateral_cli.commands import app
from bilateral_serving import repository

# Each case runs in a process of its own, forked from one that has imported everything.
LIMIT_S = 240
PATIENCE_S = 60
CODES = {0, 1, 2, 130}
# They start servers or measure for minutes by nature; what they refuse is tested elsewhere.
LEFT_OUT = {("quickstart",)} | {
    ("bench", name)
    for name in (
        *("suite", "pipeline", "limit", "growth", "tiles", "runtimes", "ablation"),
        *("sizes", "language", "cold-start", "serving-cost", "quantize"),
    )
}
NUMBERS = ("0", "-1", "1", "3", "1e400", "nan", "", "x", str(2**63), "1,2", "0.5", "[bold]")
TEXTS = ("", "[/x]", "a b", "../up", "ü😀", "\udcff", "x" * 300, "\x1b[31m", "-", "--", "/", "None")
SHORT = {  # what would make a healthy case long
    "--duration": "0.2",
    "--warmup": "0.1",
    "--timeout": "1",
    "--rounds": "1",
    "--models": "1",
    "--seconds": "0.05",
    "--lengths": "5",
    "--items": "2",
    "--batches": "1",
    "--adversarial": "0",
    "--url": "localhost:9",
    "--grpc-port": "1",
}


@dataclass(frozen=True)
class Case:
    seed: int
    arguments: list[str]


def damaged(rng: random.Random, files: list[Path], folder: Path) -> Path:
    """A copy of a healthy file, damaged in one of the ways that files are."""
    source = rng.choice(files)
    data = bytearray(source.read_bytes())
    how = rng.choice(("whole", "cut", "flip", "empty", "text", "noise", "other end", "json"))
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "flip":
        for _ in range(rng.choice((1, 8, 64))):
            data[rng.randrange(min(len(data), rng.choice((64, 4096, len(data)))))] ^= 1 << (
                rng.randrange(8)
            )
    elif how == "empty":
        data = bytearray()
    elif how == "text":
        data = bytearray(rng.choice(TEXTS).encode("utf-8", "surrogateescape") * 9)
    elif how == "noise":
        data = bytearray(rng.randbytes(rng.choice((1, 100, 5000))))
    elif how == "json":
        data = bytearray(
            rng.choice((b"{}", b"[]", b"null", b"[" * 5000, b'{"title": 1, "a": NaN}'))
        )
    ends = (".onnx", ".safetensors", ".pth", ".plan", ".json", ".npz", ".png", ".txt")
    end = rng.choice(ends) if how == "other end" else source.suffix
    path = folder / f"{rng.choice(('file', 'a b', '[red]x', 'ü'))}{rng.randrange(10**6)}{end}"
    path.write_bytes(data)
    return path


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, found in (inner or {}).items():
        yield from leaves(found, (*path, name))


def make_case(seed: int, files: list[Path], folder: Path) -> Case:
    """Arguments for one command: its own options, mostly, with values that mostly are wrong."""
    rng = random.Random(seed)
    everything = dict(leaves(typer.main.get_command(app)))
    path = rng.choice(sorted(set(everything) - LEFT_OUT))

    def value(parameter: Any) -> str:
        if rng.random() < 0.6 and "Path" in str(parameter.type_descriptor):
            return str(damaged(rng, files, folder))
        kinds = (
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(TEXTS),
            lambda: str(damaged(rng, files, folder)),
            lambda: str(folder / f"out{rng.randrange(5)}" / "made.onnx"),
            lambda: str(folder),
            lambda: rng.choice(("digits", "digits_bilateral", "python", "onnxruntime", "fp16")),
        )
        return rng.choice(kinds)()

    arguments: list[str] = [*path]
    short = dict(SHORT)
    for parameter in everything[path].params:
        option = parameter.opts[-1]
        if not option.startswith("-"):
            if rng.random() < 0.95:
                arguments.append(value(parameter))
        elif option in short and rng.random() < 0.9:
            arguments += [option, short[option]]
        elif option != "--help" and rng.random() < 0.2:
            arguments += [option] if parameter.is_flag else [option, value(parameter)]
    if rng.random() < 0.05:
        arguments.append(rng.choice(("--nonsense", "[/]", "\udcff")))
    return Case(seed, [argument.replace("\0", "") for argument in arguments])


def child(case: Case, folder: str, pipe: Any) -> None:
    """Run one case; tell its exit code, what it said, and the traceback if there was one."""
    os.chdir(folder)
    os.setpgrp()
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "strict") for _ in range(2)]
    sys.stdout, sys.stderr = streams
    sys.argv = ["bilateral", *case.arguments]
    code, trace = -1, ""
    try:
        main.run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else -1
    except BaseException:
        trace = traceback.format_exc()
    said = ""
    for stream in streams:
        with contextlib.suppress(ValueError):
            stream.flush()
            said += stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    pipe.send((code, said, trace))
    pipe.close()
    os._exit(0)


def outcome(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ended; None if nothing."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(case, str(folder), theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_S):
            if case.arguments[0] != "study":
                return f"hangs after {LIMIT_S} s"
            # A study measures for minutes: it ends when it is told to.
            os.killpg(process.pid or 0, signal.SIGINT)
            if not ours.poll(PATIENCE_S):
                return f"goes on for {PATIENCE_S} s after an interrupt"
        code, said, trace = ours.recv()
    except EOFError:
        return "died"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    if trace or "Traceback" in said:
        return trace or said
    if code not in CODES:
        return f"exit code {code}: {said}"
    if code == 2 and "Error: " not in said:
        return f"exit code 2 without a reason: {said}"
    return None


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, digits_onnx: Path) -> list[Path]:
    """A healthy file of each kind that a command reads."""
    folder = tmp_path_factory.mktemp("healthy")
    small = onnx.load(digits_onnx)
    onnx.save(small, folder / "digits.onnx")
    np.savez(folder / "inputs.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    (folder / "text.txt").write_text("def f(x):\n    return x\n")
    (folder / "config.json").write_text('{"family": "image_classifier"}')
    repository.add("digits", folder / "digits.onnx", folder / "models")
    return [
        folder / "digits.onnx",
        folder / "inputs.npz",
        folder / "text.txt",
        folder / "config.json",
        folder / "models" / "digits" / "config.pbtxt",
        DIGITS,
        CHECKPOINTS / "digits" / "3-0.png",
        ROOT / "benchmarks" / "results" / "cpu.json",
    ]


@pytest.mark.forks
@pytest.mark.timeout(900)
def test_some_random_commands(healthy: list[Path], tmp_path: Path) -> None:
    check(range(25), healthy, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_commands(healthy: list[Path], tmp_path: Path) -> None:
    check(range(1000, 1500), healthy, tmp_path)


def check(seeds: range, healthy: list[Path], tmp_path: Path) -> None:
    found = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        case = make_case(seed, healthy, folder)
        if problem := outcome(case, folder):
            found.append(f"{seed}: bilateral {' '.join(map(repr, case.arguments))}\n{problem}")
    assert not found, f"{len(found)} of {len(seeds)}\n" + "\n\n".join(found)
