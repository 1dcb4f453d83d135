"""gRPC transport: the options of a channel to Triton, and the status of a failed connection."""

from __future__ import annotations

# Triton is on this machine, and is started again: what waits for it is there within 200 ms.
TRITON_CHANNEL = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", -1),
)

# How gRPC words an UNAVAILABLE of its own; Triton uses the same status for full queues and others.
_NOT_SENT = "failed to connect"
_BROKEN = ("socket closed", "goaway", "reset", "broken pipe", "recvmsg", "sendmsg", "connection")


def was_not_sent(status: str, details: str) -> bool:
    """Return whether a call failed because there was no connection, so that nothing ran."""
    return status == "UNAVAILABLE" and _NOT_SENT in details.lower()


def has_broken(status: str, details: str) -> bool:
    """Return whether a call failed because its connection broke: it may have run or not."""
    return status == "UNAVAILABLE" and any(sign in details.lower() for sign in _BROKEN)
