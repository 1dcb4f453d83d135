"""A private directory whose path is plain, through which tritonserver sees everything.

Triton's Python backend splits the paths that it hands to its processes at spaces, and reads them as
ASCII. The server is therefore given links to the models and backends. The sockets between server
and front door lie here too; a socket's path may have 107 characters.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.process_status import owner_is_gone, owner_name

PREFIX = "bilateral-serve-"
"""Begins the name of the directory and of the server's shared memory; the owner's follows."""

_SHARED_MEMORY = Path("/dev/shm")
_LONGEST_PARENT = 40
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory that only this user can enter, and remove it at the end.

    What earlier starts of this user left behind because they were killed is removed first.

    Raises:
        UserError: No directory for temporary files has a plain path.
    """
    _remove_left_behind()
    for parent in _parents():
        try:
            path = tempfile.mkdtemp(prefix=f"{PREFIX}{owner_name(os.getpid())}-", dir=parent)
        except OSError:
            continue
        try:
            yield Path(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    raise UserError(
        "tritonserver needs a directory for temporary files whose path is short and has neither"
        " spaces nor characters outside ASCII, and none can be written here",
        "Set TMPDIR to such a directory.",
    )


def link_model(model: Path, models: Path) -> None:
    """Make a directory of links that serves a model as it is now.

    The configuration is copied and each version linked, so that a server that starts again serves
    what it served before.
    """
    target = models / model.name
    target.mkdir()
    for item in model.resolve().iterdir():
        if item.name == CONFIG_FILE:
            shutil.copyfile(item, target / CONFIG_FILE)
        elif not item.name.startswith("."):
            (target / item.name).symlink_to(item)
            forbid_bytecode(item)


def forbid_bytecode(version: Path) -> None:
    """Have Python write no compiled code beside the code of a version.

    Where the disk is full a Python before 3.12.8 leaves it cut off, and can then load the code no
    more. It keeps none where something else than a directory has the directory's name; the
    interpreter that Triton embeds looks at no environment variable that says so.
    """
    kept = version / "__pycache__"
    if (version / "model.py").is_file() and not kept.is_file():
        with contextlib.suppress(OSError):  # what cannot be written here, Python cannot either
            shutil.rmtree(kept, ignore_errors=True)
            kept.touch()


def _parents() -> Sequence[Path]:
    """Return where the directory may lie, the best place first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/var/tmp")
    places = [
        tempfile.gettempdir(),
        "/tmp",
        "/var/tmp",
        "/dev/shm",
        runtime,
    ]
    return [
        Path(place)
        for place in dict.fromkeys(places)
        if len(place) <= _LONGEST_PARENT and _PLAIN.fullmatch(place)
    ]


def _remove_left_behind() -> None:
    """Remove the directories and the shared memory of processes of this user that have ended."""
    for parent in {*_parents(), _SHARED_MEMORY}:
        for path in parent.glob(f"{PREFIX}*"):
            owner = "-".join(path.name.removeprefix(PREFIX).split("-")[:3])
            with contextlib.suppress(OSError):
                if path.lstat().st_uid != os.geteuid() or not owner_is_gone(owner):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
