"""The end of a server that another process runs: `bilateral down`."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from bilateral_export.errors import UserError
from bilateral_serving.access import serving_processes
from bilateral_serving.process_status import read_status

_COMMANDS = {"up", "serve"}
_POLL_S = 0.1


def stop(grpc_port: int | None = None, timeout_s: float = 60.0) -> int:
    """End the server of `bilateral up` or `bilateral serve`, as Ctrl-C would, and wait for its end.

    Requests under way get the time that the server was started with (`--stop-timeout`).

    Args:
        grpc_port: Its port; None: that of the only one.
        timeout_s: Seconds until it must have ended.

    Returns:
        The port.

    Raises:
        UserError: There is no such server, there are several, or it does not end.
    """
    found = {port: pid for port, pid in serving_processes().items() if _is_ours(pid)}
    ports = ", ".join(map(str, sorted(found)))
    if not found:
        raise UserError("no server of this user runs here", "Start one with `bilateral up`.")
    if grpc_port is None and len(found) > 1:
        raise UserError(f"servers run on the ports {ports}", "Name one with --grpc-port.")
    port = next(iter(found)) if grpc_port is None else grpc_port
    if port not in found:
        raise UserError(f"no server of this user runs on port {port}", f"One runs on {ports}.")
    pid = found[port]
    started = _started(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while started is not None and _started(pid) == started:
        if time.monotonic() > deadline:
            raise UserError(
                f"the server on port {port} still runs after {timeout_s:g} s",
                "Requests under way may take longer; run the command again to end them.",
            )
        time.sleep(_POLL_S)
    return port


def _is_ours(pid: int) -> bool:
    """Return whether a process is a command that serves until it is told to end."""
    status = read_status(pid)
    return status is not None and not _COMMANDS.isdisjoint(status.command)


def _started(pid: int) -> int | None:
    status = read_status(pid)
    return status.started if status else None
