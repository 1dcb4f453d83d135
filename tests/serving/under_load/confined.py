"""A supervised server whose shared memory and disk are small and its own, to be filled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports
from tests.serving.server.test_supervise import Supervised

from bilateral_serving import repository
from bilateral_serving.config import Settings

SHARED_MEMORY_MB, DISK_MB = 192, 24
_MOUNTED = """
mount -t tmpfs -o size={memory}m tmpfs /dev/shm || exit 1
mount -t tmpfs -o size={disk}m tmpfs "$0" || exit 1
exec "$@"
"""


def add_models(files: Path, root: Path) -> None:
    """What is asked under load: small and large answers, slow ones, and streams."""
    one = Settings(threads=1, warmup=False)
    repository.add("quadrants", models.quadrants(files / "q.onnx"), root, settings=one)
    alone = Settings(max_batch_size=1, threads=1, warmup=False)
    repository.add("slow", models.slow(files / "s.onnx"), root, settings=alone)
    wide = models.with_external_data(files / "w.onnx", megabytes=4)
    repository.add("wide", wide, root, settings=one)
    endless = models.words(files / "words.onnx", likely=(0, 0, 1))
    stream = Settings(threads=1, stream=True, warmup=False)
    repository.add("words", endless, root, settings=stream)


class Confined:
    """`serve` with a mount namespace of its own: its /dev/shm, and a disk with all its files.

    Args:
        folder: Where that disk is mounted, for the server only.
    """

    def __init__(self, folder: Path) -> None:
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
            pytest.skip("a mount namespace needs unshare and its privileges")
        self._mount, self._files = folder / "disk", folder / "files"
        for made in (self._mount, self._files):
            made.mkdir()
        add_models(self._files, folder / "repository")
        (self.http_port,) = free_ports(1)
        (self.metrics_port,) = free_ports(1)
        script = _MOUNTED.format(memory=SHARED_MEMORY_MB, disk=DISK_MB)
        copy = f'cp -a {folder / "repository"} "$0"/repository || exit 1\nexec "$@"'
        script = script.replace('exec "$@"', copy)
        self.server = Supervised(
            self._mount / "repository",
            under=(unshare, "--mount", "sh", "-c", script, str(self._mount)),
            http_port=self.http_port,
            metrics_port=self.metrics_port,
            access_log=self._mount / "calls.log",
            ready_file=self._mount / "ready",
        )
        self.server.wait_for("ready")

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def disk(self) -> Path:
        """The server's disk, as this process reaches it."""
        return Path(f"/proc/{self.server.process.pid}/root{self._mount}")

    @property
    def shared_memory(self) -> Path:
        return Path(f"/proc/{self.server.process.pid}/root/dev/shm")

    @property
    def repository(self) -> Path:
        return self.disk / "repository"

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `bilateral` where the server's disk is."""
        inside = ("nsenter", "--mount", "--target", str(self.server.process.pid))
        return subprocess.run(
            [*inside, sys.executable, "-m", "bilateral_cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )

    def new_version(self, gain: float = 8.0) -> Path:
        return models.quadrants(self._files / f"gain-{gain}.onnx", gain=gain)

    def end(self) -> None:
        self.server.end()


@contextlib.contextmanager
def filled(directory: Path, leave: int = 0) -> Iterator[None]:
    """Fill a file system to its last byte but `leave`, until the end of the block."""
    ballast = directory / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            block = bytes(64 << 10)
            with contextlib.suppress(OSError):
                while file.write(block):
                    pass
            assert not shutil.disk_usage(directory).free
            if leave:
                file.truncate(file.tell() - leave)
        yield
    finally:
        ballast.unlink()
