"""Run commands on a repository and kill each before its n-th write, for every n.

    python kill_points.py REPOSITORY OTHER.onnx DIRECTORY

Every killed repository is left in DIRECTORY/<command>-<n>. The commands run in forks of this
process, which has no threads; SIGKILL leaves them no time to clean up.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnx  # noqa: F401 - once, and not in every fork

import bilateral_export.lowering.lower  # noqa: F401 - the same
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.repository import adding
from bilateral_serving.repository.dry_run import DryRun

WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


def commands(other: Path) -> dict[str, Callable[[Path], object]]:
    def add(name: str, versions: str | None = None) -> Callable[[Path], object]:
        settings = Settings(versions=versions) if versions else None
        return lambda root: repository.add(name, other, root, settings=settings)

    return {
        "add-model": add("new"),
        "add-version": add("quadrants"),
        "add-named": add("quadrants", "3"),
        "add-named-too": add("quadrants", "1,3"),
        "remove-version": lambda root: repository.remove("quadrants", root, version=1),
        "remove-model": lambda root: repository.remove("quadrants", root),
    }


def die_before_write(n: int, root: Path) -> None:
    """Kill this process before its n-th write below `root`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in WRITES or not str(arguments[0]).startswith(str(root)):
            return
        if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        if seen == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(command: Callable[[Path], object], root: Path, n: int) -> bool:
    """Run a command in a fork; whether it died before its n-th write instead of ending well."""
    child = os.fork()
    if child == 0:
        die_before_write(n, root)
        command(root)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return bool(status)


def main(start: Path, other: Path, directory: Path) -> None:
    # Trying a file writes nothing in the repository, and is slow.
    adding.dry_run = lambda *_, **__: DryRun()  # type: ignore[attr-defined]
    for name, command in commands(other).items():
        n = 0
        while True:
            n += 1
            root = directory / f"{name}-{n}"
            shutil.copytree(start, root)
            if not killed(command, root, n):
                break


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
