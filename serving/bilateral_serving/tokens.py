"""Bearer tokens of callers: a file of their hashes, one a line, read again when it changes.

    NAME SHA256 [rate=REQUESTS_PER_SECOND] [bytes=LARGEST_REQUEST]

A token is 32 random bytes, so that its plain hash cannot be reversed; it is shown once, when it is
made, and stands nowhere.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_export.files import stamp

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_LINE = re.compile(
    rf"(?P<name>{_NAME.pattern}) (?P<hash>[0-9a-f]{{64}})"
    r"( rate=(?P<rate>\d{1,9}(\.\d{1,3})?))?( bytes=(?P<bytes>\d{1,12}))?"
)


@dataclass(frozen=True)
class Caller:
    """Who a token belongs to, and what it allows.

    Attributes:
        name: As the access log names it.
        rate: Requests a second; None: any number.
        bytes: The largest request; None: what the server takes.
    """

    name: str
    rate: float | None = None
    bytes: int | None = None


def hash_of(token: str) -> str:
    """Return the hash that stands in the file."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> dict[str, Caller]:
    """Return the callers by the hash of their token.

    Raises:
        UserError: The file cannot be read, has no token, or a line that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the tokens in {path} cannot be read: {error}", "Make one with `bilateral token NAME`."
        ) from error
    callers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"{path}, line {number} is no token",
                "Write NAME SHA256, then rate=10 and bytes=1000000 if wanted;"
                " `bilateral token NAME` does.",
            )
        rate, largest = match["rate"], match["bytes"]
        callers[match["hash"]] = Caller(
            match["name"], float(rate) if rate else None, int(largest) if largest else None
        )
    if not callers:
        raise UserError(f"{path} has no token", "Make one with `bilateral token NAME`.")
    return callers


def make_token(
    name: str, path: Path, *, rate: float | None = None, largest: int | None = None
) -> str:
    """Make a token, add its line to the file, and return it. A caller may have several.

    Args:
        name: The caller: letters, digits, '_', '-', '.' and '@'.
        path: The file; made readable for this user only if it is not there.
        rate: Requests a second that it allows; None: any number.
        largest: Bytes of its largest request; None: what the server takes.

    Raises:
        UserError: The name does not do, a limit is not positive, or the file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"'{name}' cannot name a caller", "Use letters, digits, '_', '-', '.' and '@'."
        )
    if (rate is not None and not 0.001 <= rate < 1e9) or (largest is not None and largest < 1):
        raise UserError("a limit of a token is not positive", "Give larger numbers, or none.")
    token = secrets.token_urlsafe(32)
    parts = [name, hash_of(token)]
    parts += [] if rate is None else [f"rate={rate:.3f}"]
    parts += [] if largest is None else [f"bytes={largest}"]
    line = " ".join(parts)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="ascii") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "Name another.") from error
    return token


class Tokens:
    """The callers of a file, as it is now; one that became wrong keeps what it said before.

    Raises:
        UserError: It is wrong from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._callers: Mapping[str, Caller] = read_tokens(path)
        self._seen = stamp(path)

    def caller(self, token: str) -> Caller | None:
        """Return whose token it is; None if it is nobody's. Looking a hash up tells no time."""
        state = stamp(self._path)
        if state != self._seen:
            self._seen = state
            try:
                self._callers = read_tokens(self._path)
            except UserError as error:
                logger.warning("%s; the tokens of before stay", error)
        return self._callers.get(hash_of(token))
