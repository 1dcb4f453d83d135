"""Execution of a user's Python file, and the line of it that an error comes from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)$")
# The stack that the tracer kept of an operation, inside an error's text.
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LONGEST = 200


def is_reference(model: str) -> bool:
    """Whether `--model` names a function in a Python file, such as my_model.py:build."""
    return model.partition(":")[0].endswith(".py")


def call_function(reference: str) -> tuple[Any, Path]:
    """Run a Python file, call a function of it, and return its result and the file.

    The file's directory goes to the front of `sys.path`, as `python FILE` puts it.

    Args:
        reference: Such as "my_model.py:build".

    Raises:
        UserError: There is no such file or function, or the code fails: with its line.
    """
    parts = _REFERENCE.match(reference)
    if parts is None:
        raise UserError(
            f"--model {reference!r} names no function of a Python file",
            "Write it as my_model.py:build.",
        )
    path = require_file(Path(parts["file"]), "model definition").resolve()
    with user_line(path.parent, f"{path.name} fails"):
        module = _module(path)
        function = getattr(module, parts["function"], None)
        if callable(function):
            return function(), path
    named = [name for name, each in vars(module).items() if _is_own(each, module)]
    raise UserError(
        f"{path.name} has no function {parts['function']}",
        f"It has {', '.join(sorted(named)) or 'none'}.",
    )


def _is_own(thing: object, module: ModuleType) -> bool:
    return (
        callable(thing)
        and not isinstance(thing, type)
        and getattr(thing, "__module__", "") == module.__name__
    )


def _module(path: Path) -> ModuleType:
    """Run a file anew: it may have changed since the last time."""
    directory = str(path.parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    # Two files of the same name in different directories are two modules.
    name = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and torch.compile look for it
    importlib.invalidate_caches()
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def user_line(directory: Path, what: str) -> Iterator[None]:
    """Turn whatever is raised inside into one line that names the line of the user's code.

    Args:
        directory: Where the user's code is.
        what: What cannot be done, such as "my_model.py fails".

    Raises:
        UserError: In place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = fault(error, directory)
        if not place and isinstance(error, ImportError) and error.name:
            place = f"import of {error.name}"
        raise UserError(f"{what}{f' at {place}' if place else ''}: {reason(error)}") from error


def fault(error: BaseException, directory: Path) -> str:
    """Return the innermost line of a directory's files that an error passed through; "" if none."""
    seen: set[int] = set()
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        chain.append(following)
        following = following.__cause__ or following.__context__
    for each in reversed(chain):  # the first cause knows best
        if isinstance(each, SyntaxError) and each.filename:
            frames = [(each.filename, each.lineno or 0)]
        else:
            frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(each.__traceback__)]
        for file, line in reversed(frames):
            if place := relative(file, directory):
                return f"{place}:{line}"
    for each in reversed(chain):
        for file, number in reversed(_FRAME.findall(str(each))):
            if place := relative(file, directory):
                return f"{place}:{number}"
    return ""


def relative(file: str, directory: Path) -> str:
    """Return a file's path below the user's directory; "" where it is not the user's."""
    try:
        inside = Path(file).resolve().relative_to(directory)
    except (ValueError, OSError):
        return ""
    installed = {"site-packages", "dist-packages", "bilateral_export"} & set(inside.parts[:-1])
    return "" if installed else inside.as_posix()


def reason(error: BaseException) -> str:
    """Return an error's kind and the first line of it that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"{type(error).__name__}: {text}"
