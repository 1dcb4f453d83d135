"""The real command line, run in this process, and the files it is given."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.builders.exported import exported

from bilateral_cli.console import notes, out
from bilateral_cli.main import run

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "export" / "checkpoints"
DIGITS = CHECKPOINTS / "digits_bilateral.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Bilateral = Callable[..., Outcome]


@pytest.fixture
def bilateral(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bilateral:
    """Run `bilateral ARGUMENTS...`; its output is not wrapped."""
    for console in (out, notes):
        monkeypatch.setattr(console, "_width", 400)
        monkeypatch.setattr(console, "_height", 100)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `run` sets its own
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bilateral", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        captured = capsys.readouterr()
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)
