"""The token of one server start: what lets a caller on this machine manage that server.

Everybody who reaches the port may ask for health, metadata and inference. Model control, shared
memory, logging, trace and statistics need the token, which lies in a file that only the server's
user can read, named after the gRPC port. `Client` finds it for loopback addresses.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.credentials import Credentials
from bilateral_serving.process_status import owner_is_gone, owner_name, owner_pid

METADATA_KEY = "triton-grpc-protocol-bilateral-token"
"""The request metadata that carries the token, in the form of Triton's restricted protocols."""

HTTP_HEADER = "bilateral-token"
"""The same over HTTP."""


@contextlib.contextmanager
def published_token(grpc_port: int) -> Iterator[str]:
    """Make a token, write it to the file where `find_token` looks, and remove that at the end.

    Those of servers whose process was killed are removed, too.

    Raises:
        UserError: The directory of tokens belongs to somebody else, or cannot be written.
    """
    path, token = _directory() / str(grpc_port), secrets.token_urlsafe(32)
    for old in path.parent.iterdir():
        if owner_is_gone((_read(old) or "").partition("\n")[2]):
            old.unlink(missing_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n{owner_name(os.getpid())}")
    draft.replace(path)
    try:
        yield token
    finally:
        # A server that has started on the port since then has written its own.
        if _token(path) == token:
            path.unlink(missing_ok=True)


def is_token(shown: str | bytes, token: str) -> bool:
    """Return whether what a caller shows is the token; takes as long whatever it shows."""
    shown = shown.encode(errors="replace") if isinstance(shown, str) else shown
    return hmac.compare_digest(shown, token.encode())


def find_token(url: str) -> str | None:
    """Return the token of the server at a loopback "host:port" that this user started, or None."""
    port = url.rpartition(":")[2]
    if not is_loopback(url) or not port.isdecimal():
        return None
    try:
        return _token(_directory() / port)
    except UserError:
        return None


def serving_processes() -> dict[int, int]:
    """Return the process that serves on each gRPC port, of those that this user started here.

    Raises:
        UserError: The directory of tokens belongs to somebody else.
    """
    found = {}
    for path in _directory().iterdir():
        pid = owner_pid((_read(path) or "").partition("\n")[2])
        if path.name.isdecimal() and pid is not None:
            found[int(path.name)] = pid
    return found


def call_metadata(url: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call to the server at `url`: its token, if it is to be found.

    The bearer token that the environment names comes with it.
    """
    token = find_token(url)
    return (*Credentials.from_environment().metadata, *(((METADATA_KEY, token),) if token else ()))


def is_loopback(url: str) -> bool:
    """Return whether "host:port" names this machine's loopback interface."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _directory() -> Path:
    """Make the directory of tokens if there is none, and refuse one that others can enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = (
        Path(runtime) / "bilateral"
        if runtime and Path(runtime).is_dir()
        else Path(tempfile.gettempdir()) / f"bilateral-{os.geteuid()}"
    )
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise UserError(
            f"{path} cannot be made: {error.strerror}",
            "Set XDG_RUNTIME_DIR to a directory of yours.",
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UserError(
            f"{path} is not a directory that only this user can enter",
            "Remove it, or set XDG_RUNTIME_DIR to a directory of yours.",
        )
    return path


def _token(path: Path) -> str | None:
    """Return the first line of a token file; the second names the process that serves."""
    return (_read(path) or "").partition("\n")[0] or None


def _read(path: Path) -> str | None:
    """Return a token file's content; None if it is missing or open to other users."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        return file.read().strip() or None
