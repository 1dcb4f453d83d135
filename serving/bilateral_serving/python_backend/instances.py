"""Messages between the instances of one version of a model, each a process of its own.

Triton hands a request to any instance, so that the one which is told that a stream was left may not
be the one that writes it. The sockets are abstract ones (Linux): no file is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path


class Others:
    """The other instances.

    Args:
        directory: The version's directory, which they have in common.
        receive: Takes what another instance tells, in a thread of its own.
    """

    def __init__(self, directory: Path, receive: Callable[[str], object]) -> None:
        common = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
        self._prefix = f"bilateral-{common}-"
        self._own = uuid.uuid4().hex
        self._receive = receive
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self._prefix}{self._own}")
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, message: str) -> None:
        """Send a short text to each; it reads it in a moment, or has gone."""
        for line in Path("/proc/net/unix").read_text().splitlines():
            _, _, name = line.partition(f"@{self._prefix}")
            if name and name != self._own:
                with contextlib.suppress(OSError):
                    self._socket.sendto(message.encode(), f"\0{self._prefix}{name}")

    def _listen(self) -> None:
        while True:
            self._receive(self._socket.recv(1024).decode(errors="replace"))
