"""System shared memory: large inputs reach a server on this machine without passing through gRPC.

A region is a file in /dev/shm that the server maps too when the client registers it. Its name,
which cannot be guessed, is removed right after that, so that nothing is left there however this
process ends; what remains is the server's mapping, which the client unregisters when it closes and,
if it was killed, the next client that shares memory with that server.

A region belongs to one process and to one request at a time, from `Regions.take` until that call is
over (not until its caller stops waiting); only then `Regions.give` makes it free for the next.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bilateral_export.tensors import Array, TensorSpec
from bilateral_serving.access import is_loopback
from bilateral_serving.process_status import owner_is_gone, owner_name

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
    """Return the offset in a region of each tensor worth sharing, by name, and the bytes in all.

    Texts have a form of their own on the way and stay in the message.
    """
    offsets: dict[str, int] = {}
    size = 0
    for spec in specs:
        array = inputs[spec.name]
        if array.nbytes >= LEAST_BYTES and spec.dtype != "object":
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
        self.name = f"{_PREFIX}.{owner_name(os.getpid())}.{secrets.token_hex(16)}"
        self.key = _KEY_PREFIX + self.name
        self.size = 1 << (size - 1).bit_length()
        self._path = _DIRECTORY / self.name
        _live.add(self.name)  # before there is a file, which would look abandoned
        try:
            file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                # Reserved now: writing to what cannot be had would end the process.
                os.posix_fallocate(file, 0, self.size)
                self._memory = mmap.mmap(file, self.size)
            finally:
                os.close(file)
        except OSError:
            self.hide()
            _live.discard(self.name)
            raise

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
    """The regions of one client in one process: each serves one request, and is used again.

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
        self._lock = threading.Lock()

    def make(self, size: int) -> Region | None:
        """Return a new region that the server does not know yet; None if there are `MOST_REGIONS`.

        Raises:
            OSError: There is no /dev/shm, or no room in it.
        """
        with self._lock:
            if len(self._all) >= MOST_REGIONS:
                return None
            region = Region(size)
            self._all.append(region)
            return region

    def registered(self, region: Region, error: Exception | None) -> None:
        """Make a new region free if the server has mapped it, and drop it if not."""
        if error:
            self.drop(region)
        else:
            region.hide()
            self.give(region)

    def take(self, size: int) -> Region | None:
        """Return a free region of at least `size` bytes for one request, or None."""
        with self._lock:
            found = next((region for region in self._free if region.size >= size), None)
            if found is not None:
                self._free.remove(found)
            return found

    def give(self, region: Region) -> None:
        """Hand a region back whose request is over."""
        with self._lock:
            self._free.append(region)

    def drop(self, region: Region) -> None:
        """Close a region that no request uses and that the server does not know."""
        with self._lock:
            if region in self._all:
                self._all.remove(region)
        region.close()

    def drop_free(self) -> None:
        """Close the free regions: the server was started anew and does not know them."""
        with self._lock:
            lost, self._free = self._free, []
        for region in lost:
            self.drop(region)

    def every(self) -> list[Region]:
        """Return all regions."""
        with self._lock:
            return list(self._all)

    def close(self) -> None:
        """Close all regions; none is written to any more."""
        self.possible = False
        for region in self.every():
            self.drop(region)

    def give_up(self, reason: str) -> None:
        """Use none from now on; said in one line if shared memory was asked for."""
        if self.possible and self._wanted:
            logger.warning(
                "no shared memory with %s (%s): inputs go through gRPC", self._url, reason
            )
        self.possible = False


def abandoned(names: Iterable[str]) -> list[str]:
    """Return those of a server's regions whose clients, on this machine, are gone."""
    return [name for name in names if _is_abandoned(name)]


def remove_abandoned_files() -> None:
    """Remove what this user's clients left that were killed before the server had mapped it."""
    for path in _DIRECTORY.glob(f"{_PREFIX}.*"):
        if _is_abandoned(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_abandoned(name: str) -> bool:
    parts = name.split(".")
    if parts[0] != _PREFIX or len(parts) != 3 or name in _live:
        return False
    return owner_is_gone(parts[1]) or parts[1] == owner_name(os.getpid())
