"""System shared memory: large inputs reach a server on this machine without passing through gRPC.

A region is a file in /dev/shm that the server maps too when the client registers it. Its name is
removed right after that, so that nothing is left there however this process ends; what remains is
the server's mapping, which the client unregisters when it closes and, if it was killed, the next
client that shares memory with that server.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bilateral_export.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)

# Smaller tensors are as fast inside the message.
LEAST_BYTES = 64 << 10
# Requests in flight beyond so many carry their tensors themselves.
MOST_REGIONS = 64

_DIRECTORY = Path("/dev/shm")
_PREFIX = "bilateral-client"
_KEY_PREFIX = "/"  # of POSIX shared memory
_ALIGNMENT = 64
_live: set[str] = set()


def layout(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> tuple[dict[str, int], int]:
    """Where in a region each tensor goes that is worth it, by name, and how many bytes that is.

    Texts and bfloat16 have a form of their own on the way and stay in the message.
    """
    offsets: dict[str, int] = {}
    size = 0
    for spec in specs:
        array = inputs[spec.name]
        if array.nbytes >= LEAST_BYTES and spec.dtype not in ("object", "bfloat16"):
            offsets[spec.name] = size
            size += math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT
    return offsets, size


class Region:
    """Memory that a server on this machine can map by `key`.

    Args:
        size: Bytes needed; it gets the next power of two.

    Raises:
        OSError: There is no /dev/shm, or no room in it.
    """

    def __init__(self, size: int) -> None:
        self.name = ".".join((_PREFIX, *_process(os.getpid()), uuid.uuid4().hex[:12]))
        self.key = _KEY_PREFIX + self.name
        self.size = 1 << (size - 1).bit_length()
        self._path = _DIRECTORY / self.name
        file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Reserved now: writing to what cannot be had would end the process.
            os.posix_fallocate(file, 0, self.size)
            self._memory = mmap.mmap(file, self.size)
        except OSError:
            self.hide()
            raise
        finally:
            os.close(file)
        _live.add(self.name)

    def write(self, offset: int, array: Array) -> None:
        """Copy an array of any memory layout to `offset`."""
        place = np.frombuffer(self._memory, array.dtype, array.size, offset)
        place.reshape(array.shape)[...] = array

    def hide(self) -> None:
        """Remove the name; whoever has the memory mapped keeps it."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the memory back."""
        self.hide()
        self._memory.close()
        _live.discard(self.name)


class Regions:
    """The regions of one client: each serves one request at a time, and is used again.

    Args:
        url: The server's address.
        wanted: True: try, and say so if it does not work. None: try if `url` is a loopback address.
            False: never.

    Attributes:
        possible: Whether it works, as far as is known.
        tidy: Whether what killed clients left was looked for.
    """

    def __init__(self, url: str, wanted: bool | None) -> None:
        self.tidy = False
        self._url = url
        self._wanted = wanted
        self.possible = is_loopback(url) if wanted is None else wanted
        self._all: list[Region] = []
        self._free: list[Region] = []
        self._doubtful: list[Region] = []
        self._lock = threading.Lock()

    @property
    def may_grow(self) -> bool:
        """Whether a further region may be made."""
        return len(self._all) < MOST_REGIONS

    def take(self, size: int) -> Region | None:
        """A free region of at least `size` bytes, or None."""
        with self._lock:
            found = next((region for region in self._free if region.size >= size), None)
            if found is not None:
                self._free.remove(found)
            return found

    def add(self, region: Region) -> None:
        """Take in a region that the server has registered; it is in use."""
        with self._lock:
            self._all.append(region)

    def give(self, region: Region) -> None:
        """Hand a region back whose request was answered."""
        with self._lock:
            if region in self._all:
                self._free.append(region)

    def doubt(self, region: Region) -> None:
        """Hand a region back whose request was given up: the server may still read it."""
        with self._lock:
            self._doubtful.append(region)

    def doubtful(self) -> list[Region]:
        """What was handed back with `doubt`; to be dropped once the server lets go of it."""
        with self._lock:
            return list(self._doubtful)

    def drop(self, region: Region) -> None:
        """Close a region that the server does not have registered any more."""
        with self._lock:
            for regions in (self._all, self._free, self._doubtful):
                if region in regions:
                    regions.remove(region)
        region.close()

    def unused(self) -> list[Region]:
        """The regions that no request uses."""
        with self._lock:
            return list(self._free)

    def every(self) -> list[Region]:
        """All regions."""
        with self._lock:
            return list(self._all)

    def give_up(self, reason: str) -> None:
        """Use none from now on; said in one line if shared memory was asked for."""
        if self.possible and self._wanted:
            logger.warning(
                "no shared memory with %s (%s): inputs go through gRPC", self._url, reason
            )
        self.possible = False


def is_loopback(url: str) -> bool:
    """Whether "host:port" names this machine's loopback interface."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def abandoned(names: Iterable[str]) -> list[str]:
    """Those of a server's regions that belonged to clients on this machine which are gone."""
    return [name for name in names if _is_abandoned(name)]


def _is_abandoned(name: str) -> bool:
    parts = name.split(".")
    if parts[0] != _PREFIX or len(parts) != 5 or name in _live:
        return False
    namespace, number, start = parts[1:4]
    if namespace != _process(os.getpid())[0]:
        return False  # its numbers mean nothing here
    try:
        alive = _process(int(number)) == (namespace, number, start)
    except (OSError, ValueError):
        return True
    return not alive or int(number) == os.getpid()


def _process(number: int) -> tuple[str, str, str]:
    """What tells a process from all others: its namespace, number and start time.

    Raises:
        OSError: There is no such process.
    """
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return str(namespace), str(number), fields[19]
