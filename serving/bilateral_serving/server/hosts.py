"""Addresses to listen on, as gRPC, Triton's HTTP service and people write them."""

from __future__ import annotations

import socket

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_LOOPBACK = ("127.0.0.1", "::1")


def bracketed(host: str) -> str:
    """Return the host as it stands before ":port"."""
    return f"[{host}]" if ":" in host else host


def reachable(host: str) -> str:
    """Return the host at which this machine reaches a server that listens on `host`."""
    return _EVERYWHERE.get(host, host)


def addresses(host: str) -> tuple[str, ...]:
    """Return the numeric addresses of a host, IPv4 first.

    Raises:
        OSError: It has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host}: {error}") from error
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


def numeric(host: str) -> str:
    """Return the numeric address of a host for Triton, which takes one address and no names."""
    return addresses(host)[0]


def for_http(address: str) -> str:
    """Return a numeric address as Triton's HTTP and metrics services want it."""
    return f"ipv6:{address}" if ":" in address else address


def conflicting(host: str) -> tuple[str, ...]:
    """Return the addresses where nobody else may listen on a port that is to be served on `host`.

    These are its own, and for what is reached as "localhost" the loopback of IPv4 and IPv6: a
    caller would otherwise reach the other server.
    """
    own = addresses(host)
    local = any(address in (*_LOOPBACK, *_EVERYWHERE) for address in own)
    return tuple(dict.fromkeys((*own, *(_LOOPBACK if local else ()))))
