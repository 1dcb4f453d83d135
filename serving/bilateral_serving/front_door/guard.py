"""The guard: who a caller is, by bearer token, and how much it may ask."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bilateral_serving.tokens import Caller, Tokens

_NO_TOKEN = "a bearer token of this server is needed, in the metadata or header 'authorization'"


class RefusedError(Exception):
    """A caller may not do this.

    Attributes:
        is_unknown: Its token is none of the server's; else it asks too much.
    """

    def __init__(self, text: str, is_unknown: bool) -> None:
        super().__init__(text)
        self.is_unknown = is_unknown


@dataclass
class _Bucket:
    """A token bucket: as many requests as a second allows at once, then at the caller's rate."""

    left: float
    filled: float


class Guard:
    """Says who may call, and counts.

    Args:
        tokens: The callers; None: everybody may call, without a name.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens
        self._buckets: dict[str, _Bucket] = {}

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return self._tokens is None

    def caller(self, shown: str) -> Caller | None:
        """Return who shows this "Bearer TOKEN"; None where nobody needs one.

        Raises:
            RefusedError: It is no token of this server.
        """
        if self._tokens is None:
            return None
        scheme, _, token = shown.partition(" ")
        caller = self._tokens.caller(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise RefusedError(_NO_TOKEN, is_unknown=True)
        return caller

    def spend(self, caller: Caller | None, size: int) -> None:
        """Count a request of so many bytes.

        Raises:
            RefusedError: It is too large, or one too many.
        """
        if caller is None:
            return
        if caller.bytes is not None and size > caller.bytes:
            raise RefusedError(
                f"the request has {size} bytes, and {caller.name} may send {caller.bytes}",
                is_unknown=False,
            )
        if caller.rate is None:
            return
        now, most = time.monotonic(), max(1.0, caller.rate)
        bucket = self._buckets.setdefault(caller.name, _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.filled) * caller.rate)
        bucket.filled = now
        if bucket.left < 1.0:
            raise RefusedError(
                f"{caller.name} may send {caller.rate:g} requests a second: wait and send again",
                is_unknown=False,
            )
        bucket.left -= 1.0
