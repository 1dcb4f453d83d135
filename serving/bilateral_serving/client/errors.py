"""Errors of a call, each in one line, and which calls may be retried."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_serving import transport
from bilateral_serving.access import is_loopback
from bilateral_serving.client.balance import Outcome
from bilateral_serving.client.deadline import Deadline

START_A_SERVER = "Start one with `bilateral serve`, or give its address with --url."

# How Triton words an UNAVAILABLE of a request that it did not take.
_TURNED_AWAY = ("exceeds maximum queue size", "unknown model", "no available versions")
# How a front door that is ending words one.
_ENDING = "takes no new requests"
# How Triton says that the process of a Python model has died.
_DEAD_MODEL = "is not healthy"
# Calls that change nothing wherever they got to.
_READING = ("ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig")

# How gRPC words an UNAVAILABLE of its own; Triton uses the same status for other things.
_NOT_REACHED = ("failed to connect", "resolving", "resolution", "lookup failed")


def check_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses in `url`, which are separated by commas, or a sequence.

    Raises:
        UserError: One does not read "host:port" or "http(s)://host:port", or comes twice.
    """
    urls = tuple(part.strip() for part in url.split(",")) if isinstance(url, str) else tuple(url)
    for one in urls:
        address = one.rstrip("/").removeprefix("http://").removeprefix("https://")
        host, colon, port = address.rpartition(":")
        bare_ipv6 = ":" in host and not host.startswith(("[", "unix:"))
        if not (host and colon and port.isdecimal()) or "//" in address or bare_ipv6:
            raise UserError(
                f"'{one}' is not the address of a server",
                "Give host:port of gRPC, such as localhost:8001 or [::1]:8001, or "
                "http://host:port.",
            )
        if urls.count(one) > 1:
            raise UserError(f"the address {one} is given twice", "Give each server once.")
    if not urls:
        raise UserError("no address of a server", "Give host:port, such as localhost:8001.")
    return tuple(one.rstrip("/") for one in urls)


class LateError(UserError):
    """No answer came within the deadline. The request may still be executed."""


def late(url: str, deadline: Deadline, what: str) -> LateError:
    """Say that no answer came in time."""
    return LateError(
        f"{what}: no answer from {url} within {deadline.timeout_s:g} s",
        "Raise the timeout, send smaller batches, or look at the server's load.",
    )


def may_repeat(error: InferenceServerException, method: str, broken: bool = False) -> bool:
    """Return whether a call that failed can be made again without anything being done twice.

    The rule: only what is UNAVAILABLE, and only if nothing was executed: no connection could be
    made, the server says that it did not take the request, or the call only asks for something.

    Args:
        error: How the call failed.
        method: The call of Triton's gRPC service.
        broken: Whether the caller lets an inference be executed twice.
    """
    if broken and method == "ModelInfer":
        return _broke(error) or is_turned_away(error)
    if _status(error) != "UNAVAILABLE":
        return False
    return unsent(error) or is_turned_away(error) or method in _READING


def is_turned_away(error: InferenceServerException) -> bool:
    """Return whether a server that answers did not take a request, which another one may."""
    lower = _message(error).lower()
    return _status(error) == "UNAVAILABLE" and any(sign in lower for sign in _TURNED_AWAY)


def outcome(error: BaseException | None) -> Outcome:
    """Return what the end of a call says of its server."""
    if not isinstance(error, InferenceServerException):
        return Outcome.ANSWERED
    if _status(error) == "UNAVAILABLE" and not is_turned_away(error):
        return Outcome.AWAY
    return Outcome.SILENT if _DEAD_MODEL in _message(error) else Outcome.ANSWERED


def is_well(error: Exception | None) -> bool:
    """Return whether the end of a probe is an answer: a model may refuse zeros, too."""
    if error is None:
        return True
    answered = isinstance(error, InferenceServerException) and outcome(error) is Outcome.ANSWERED
    return answered and not is_turned_away(error) and _status(error) != "NOT_FOUND"


def explain(error: InferenceServerException, url: str, deadline: Deadline, what: str) -> UserError:
    """Say in one line what went wrong.

    Args:
        error: What tritonclient raised.
        url: The server's address.
        deadline: The call's deadline.
        what: What was asked, such as "model 'digits'".
    """
    status, message = _status(error), _message(error)
    lower = message.lower()
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in lower:
        return late(url, deadline, what)
    if status == "UNAVAILABLE" and "handshake failed" in lower:
        why = message.rpartition("OPENSSL_internal:")[2].partition(":")[0]
        return UserError(
            f"no TLS connection to {url}: {why}",
            "Give the authority of the server's certificate with --tls-ca.",
        )
    if status == "UNAVAILABLE" and "failed to connect" in lower and "socket closed" in lower:
        return UserError(
            f"{url} closes connections at once",
            "It may answer over TLS (--tls-ca), or want a certificate (--tls-cert, --tls-key).",
        )
    if status == "UNAVAILABLE" and any(sign in lower for sign in _NOT_REACHED):
        return UserError(f"no Triton server answers at {url}", _proxy_hint(url) or START_A_SERVER)
    if transport.has_broken(status, message):
        return UserError(
            f"{what}: the connection to {url} broke before the answer came",
            "Look whether the server still runs; the request may or may not have been executed.",
        )
    if status == "UNAUTHENTICATED":
        return UserError(f"{what}: {message}", "Give a token of the server with --token-file.")
    if status == "NOT_FOUND" or "unknown model" in lower or "is not found" in lower:
        return UserError(
            f"{what} is not served at {url}",
            "Add it to the server's repository, or use a name from `bilateral repository list`.",
        )
    if "exceeds maximum queue size" in lower:
        return UserError(
            f"{what}: the server at {url} has too many requests waiting",
            "Send fewer at once, or add instances.",
        )
    if status == "UNIMPLEMENTED":
        return UserError(f"what answers at {url} is not a Triton server", START_A_SERVER)
    return UserError(f"{what}: {message}")


def refusal(error: UserError) -> str | None:
    """Return what the server said when it refused a call; None if none answered in time."""
    cause = error.__cause__
    if not isinstance(cause, InferenceServerException):
        return None
    unanswered = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
    return _message(cause) if needs_token(error) or _status(cause) not in unanswered else None


def needs_token(error: UserError) -> bool:
    """Return whether the server refused a call for want of its token."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and (
        _status(cause) == "PERMISSION_DENIED" or "protocol is restricted" in _message(cause)
    )


def lost_region(error: UserError) -> bool:
    """Return whether a request did not run because a new server lacks its shared memory."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and (
        unsent(cause) or "shared memory region" in (refusal(error) or "")
    )


def lost_answer(error: UserError) -> bool:
    """Return whether the connection broke, or a proxy's did, before a server had answered."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and _broke(cause)


def _broke(error: InferenceServerException) -> bool:
    # A server that stops says CANCELLED of what it has not begun; this client cancels nothing.
    return _status(error) in ("UNAVAILABLE", "CANCELLED") and not is_turned_away(error)


def unsent(error: InferenceServerException) -> bool:
    """Return whether a call reached no server that takes any: none was there, or it is ending."""
    status, message = _status(error), _message(error)
    ending = status == "UNAVAILABLE" and _ENDING in message
    return ending or transport.was_not_sent(status, message)


def _proxy_hint(url: str) -> str | None:
    """Return what to do if environment variables sent the call to `url` through a proxy."""
    host = url.rpartition(":")[0].strip("[]")
    variables = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order
    used = next((name for name in variables if os.environ.get(name)), None)
    if used is None or is_loopback(url) or host.startswith("unix:"):
        return None
    return (
        f"The environment variable {used} is set, so the call went to that proxy: add {host} to "
        "no_proxy if the server is reached without it."
    )


def _status(error: InferenceServerException) -> str:
    return str(error.status() or "").removeprefix("StatusCode.")


def _message(error: InferenceServerException) -> str:
    return str(error.message() or error)
