"""Look at the machine's processes and ports."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from bilateral_serving.access import METADATA_KEY, find_token
from bilateral_serving.process_status import owner_name
from bilateral_serving.server.processes.scratch import PREFIX


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def mentioning(text: str) -> list[int]:
    """The processes whose command line contains `text`; zombies have none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (process / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(process.name))
    return found


def left_by(pid: int) -> str:
    """What stands in the command lines and files of every server that a process has started."""
    return f"{PREFIX}{owner_name(pid)}-"


def management(url: str) -> dict[str, str]:
    """The request headers that let a test manage the server that it has started."""
    token = find_token(url)
    assert token is not None
    return {METADATA_KEY: token}


def wait_until_gone(text: str, seconds: float) -> list[int]:
    """What is left of `mentioning(text)` when it is empty or the time is over."""
    end = time.monotonic() + seconds
    while (left := mentioning(text)) and time.monotonic() < end:
        time.sleep(0.05)
    return left
