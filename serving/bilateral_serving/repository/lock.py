"""The lock of a model repository: one command at a time writes there.

Everything that is written is first put into a staging directory, `.writing-*`, on the repository's
file system, and then renamed to its place. Only who holds the lock has one, so one that is found by
who just got the lock belongs to a command that was killed.

The lock is flock(2) on the file `.lock`. The kernel releases it with the process, however that
ends. On NFS, Linux turns it into a byte-range lock that the file server keeps (flock(2), "NFS
details"), which holds between machines too, unless the share is mounted with `nolock` or
`local_lock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors

LOCK_FILE = ".lock"
_STAGING = ".writing-"
# What commands left that were killed before there was a lock: in the repository, in its models.
_FORMER = (".removed-*", "*/.partial-*", "*/.before-*", "*/.removed-*")
_POLL_S = 0.05


@contextlib.contextmanager
def writing(repository: Path, wait_s: float = 300.0) -> Iterator[Path]:
    """Hold the lock of a repository and yield an empty staging directory in it.

    What killed commands left behind is deleted first, what is left in the staging directory at the
    end. The repository is made if it is not there, and goes again if nothing comes into it.

    Args:
        repository: The repository's directory.
        wait_s: Seconds to wait for another command that is writing.

    Raises:
        UserError: Another command still holds the lock, or the directory cannot be written.
    """
    new = not repository.exists()
    lock = _lock(repository, wait_s)
    try:
        with disk_errors(repository):
            for left in leftovers(repository):
                shutil.rmtree(left)
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=repository))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        if new:
            _remove_if_empty(repository)
        os.close(lock)


@contextlib.contextmanager
def one_at_a_time(repository: Path, wait_s: float = 300.0) -> Iterator[None]:
    """Hold off other commands of many writings, by a lock on the directory itself.

    Each of its writings takes the lock of `writing` besides, as single ones do.

    Raises:
        UserError: Another one still holds the lock, or the directory cannot be made.
    """
    new = not repository.exists()
    with disk_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
        directory = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _wait_for(directory, repository, time.monotonic() + wait_s, wait_s)
        yield
    finally:
        if new:
            _remove_if_empty(repository)
        os.close(directory)


def _remove_if_empty(repository: Path) -> None:
    """Remove a repository that was made for models which did not come."""
    if {path.name for path in repository.iterdir()} <= {LOCK_FILE}:
        (repository / LOCK_FILE).unlink(missing_ok=True)
        repository.rmdir()


def leftovers(repository: Path) -> tuple[Path, ...]:
    """Return the directories of commands that were killed, or of one that is writing now."""
    found = [path for pattern in (f"{_STAGING}*", *_FORMER) for path in repository.glob(pattern)]
    # An export into this directory writes to `.partial-*` too; a former `add` had a version there.
    found += {path.parent for path in repository.glob(".partial-*/[1-9]*") if path.is_dir()}
    return tuple(sorted(path for path in found if path.is_dir() and not path.is_symlink()))


def _lock(repository: Path, wait_s: float) -> int:
    """Return the lock's file descriptor, locked."""
    end = time.monotonic() + wait_s
    while True:
        with disk_errors(repository):
            repository.mkdir(parents=True, exist_ok=True)
            lock = os.open(repository / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait_for(lock, repository, end, wait_s)
            if os.fstat(lock).st_nlink:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # who had it removed a repository that got no model


def _wait_for(lock: int, repository: Path, end: float, wait_s: float) -> None:
    """Return when an open file is locked, which may take `wait_s` in all and ends at `end`."""
    while not _try_lock(lock, repository):
        if time.monotonic() > end:
            raise UserError(
                f"another command has been writing {repository} for {wait_s:g} s",
                f"Wait for it; `fuser {repository / LOCK_FILE}` says which process it is.",
            )
        time.sleep(_POLL_S)


def _try_lock(lock: int, repository: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{repository} cannot be locked: {error.strerror}",
            "Use a file system that has locks; an NFS share needs its lock service.",
        ) from error
    return True
