"""Ray, started here or joined by address, and left as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.scoring.size import Resources

_PREFIX = "bilateral-ray-"  # the path of a Unix socket, below it, has 107 bytes
_CONNECT_S = 10.0
_STORE_BYTES = 100 << 20  # chunks' numbers and results go through it, never a picture


@contextlib.contextmanager
def connected(address: str = "") -> Iterator[Resources]:
    """Join the cluster at an address, or start one here; yields what it has.

    One that is running in this process already is used, and left running.

    Raises:
        UserError: No cluster answers at the address.
    """
    # Said before Ray is imported: it reads them then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    import ray

    if address:
        _require_listening(address)
    if ray.is_initialized():
        yield _resources()
        return
    _remove_left()
    scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    local = {
        "num_cpus": len(os.sched_getaffinity(0)),
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": str(scratch),
    }
    try:
        try:
            with _quiet():
                ray.init(
                    **({"address": address} if address else local),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"Ray cannot be started{f' at {address}' if address else ''}: {error}",
                "Ray's own message says why; `ray status` shows a cluster.",
            ) from error
        yield _resources()
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's C++ says of its own settings from the screen; errors come as exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _require_listening(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself tries it for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error}",
            "Give host:6379 of the head of a cluster, or ray://host:10001.",
        ) from error


def _resources() -> Resources:
    import ray

    found = ray.cluster_resources()
    return Resources(
        cpus=max(1, int(found.get("CPU", 1))),
        gpus=int(found.get("GPU", 0)),
        memory_bytes=int(found.get("memory", 0)),
    )


def _remove_left() -> None:
    """Remove the directories of this user's processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        alive = not owner.isdigit() or Path("/proc", owner).exists()
        if not alive and path.stat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
