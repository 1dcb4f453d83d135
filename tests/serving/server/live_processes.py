"""Look at the machine's processes and ports."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from pathlib import Path

from bilateral_serving.access import METADATA_KEY, find_token
from bilateral_serving.process_status import owner_name
from bilateral_serving.server.processes.scratch import PREFIX

# Below those that the kernel gives to connections, which could take one before it is used; and not
# where a test process beside this one begins.
_PORTS = itertools.cycle(range(10_000, 32_000))
next(itertools.islice(_PORTS, os.getpid() * 641 % 22_000, None))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; each is given once."""
    return list(itertools.islice(filter(_is_free, _PORTS), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


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
