"""Triton's releases: what each one contains, and what that changes for a model repository.

Server and ONNX Runtime are those of `build.py` at the tags v2.50.0 to v2.71.0 and the branch r26.08
of triton-inference-server/server. Its docs/introduction/compatibility.md names the same ONNX
Runtimes (for 25.08 as 1.23.0+1d1712fdaf) and the Python, which is that of the images with vLLM.
Where the TensorRT is from is said in doctor/README.md; None is not known. Run here: 2.51, which
nvidia-pytriton carries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bilateral_export.errors import UserError

# The highest ONNX opset that an ONNX Runtime loads, from its minor version on. Tried with files of
# `bilateral export` in builds of Triton's backend against 1.19 to 1.23 and 1.30.
_OPSETS = {19: 21, 21: 22, 23: 23, 30: 25}


@dataclass(frozen=True)
class Release:
    """A release of Triton, as NVIDIA's container `tritonserver:<name>-py3` has it.

    Attributes:
        name: Year and month, such as "24.10".
        server: Version of tritonserver.
        onnxruntime: Version of ONNX Runtime in its onnxruntime backend.
        python: Version of Python in its Python backend.
        tensorrt: Version of TensorRT in its tensorrt backend, or None.
    """

    name: str
    server: str
    onnxruntime: str
    python: str
    tensorrt: str | None = None

    @property
    def opset(self) -> int:
        """The highest opset that its ONNX Runtime is known to load."""
        minor = int(self.onnxruntime.split(".")[1])
        return max(opset for since, opset in _OPSETS.items() if since <= minor)

    @property
    def bears_cancellation(self) -> bool:
        """Whether it survives calls that are cancelled or late.

        Seen to die: 2.51. Triton's developers mended what they found of it in two steps, the second
        in March 2025 (triton-inference-server/server, pull requests 7840 and 8078).
        """
        return number(self.server) >= (2, 57)

    @property
    def asks_for_client_memory(self) -> bool:
        """Whether it refuses clients' shared memory unless started with --allow-client-shm."""
        return number(self.server) >= (2, 68)

    @property
    def sees_dead_models(self) -> bool:
        """Whether a Python model whose process has died shows in its readiness."""
        return number(self.server) >= (2, 68)

    @property
    def has_latency_histograms(self) -> bool:
        """Whether its histogram of first responses covers models that answer once."""
        return number(self.server) >= (2, 65)


RELEASES = (
    Release("24.09", "2.50.0", "1.19.2", "3.10"),
    Release("24.10", "2.51.0", "1.19.2", "3.10"),
    Release("24.11", "2.52.0", "1.19.2", "3.12", "10.6.0"),
    Release("24.12", "2.53.0", "1.20.1", "3.12", "10.7.0"),
    Release("25.01", "2.54.0", "1.20.1", "3.12", "10.8.0"),
    Release("25.02", "2.55.0", "1.20.1", "3.12"),
    Release("25.03", "2.56.0", "1.21.0", "3.12"),
    Release("25.04", "2.57.0", "1.21.0", "3.12"),
    Release("25.05", "2.58.0", "1.22.0", "3.12", "10.10.0"),
    Release("25.06", "2.59.0", "1.22.0", "3.12"),
    Release("25.07", "2.59.1", "1.22.0", "3.12"),
    Release("25.08", "2.60.0", "1.23.0", "3.12"),
    Release("25.09", "2.61.0", "1.23.0", "3.12"),
    Release("25.10", "2.62.0", "1.23.1", "3.12"),
    Release("25.11", "2.63.0", "1.23.2", "3.12"),
    Release("25.12", "2.64.0", "1.23.2", "3.12"),
    Release("26.01", "2.65.0", "1.23.2", "3.12"),
    Release("26.02", "2.66.0", "1.24.1", "3.12"),
    Release("26.03", "2.67.0", "1.24.2", "3.12"),
    Release("26.04", "2.68.0", "1.24.4", "3.12"),
    Release("26.05", "2.69.0", "1.24.4", "3.12"),
    Release("26.06", "2.70.0", "1.24.4", "3.12"),
    Release("26.07", "2.71.0", "1.27.0", "3.12", "11.1.0"),
    Release("26.08", "2.72.0", "1.28.0", "3.12"),
)
"""All that are known, the newest last."""


def release(name: str) -> Release:
    """Return a release by its name, such as "24.10".

    Raises:
        UserError: It is not in the table.
    """
    found = next((release for release in RELEASES if release.name == name), None)
    if found is None:
        raise UserError(
            f"Triton {name} is not a release that is known here",
            f"Known are {RELEASES[0].name} to {RELEASES[-1].name}, written as 24.10.",
        )
    return found


def opset_for(name: str, precision: str) -> int:
    """Return the opset to export with for a release's onnxruntime backend.

    Raises:
        UserError: The release is not known, or has no ONNX Runtime that loads the precision.
    """
    found = release(name)
    if precision == "bf16":
        raise UserError(
            f"bf16 is not for the onnxruntime backend of Triton {name}: ONNX Runtime has no"
            " bfloat16 operators on a CPU",
            "Export it as fp32 or fp16; for target tensorrt leave --for-triton out.",
        )
    return found.opset


def release_of(server: str | None) -> Release:
    """Return the newest release whose server is at most this version; the oldest if it is unknown.

    A server of an unknown version is thus taken for one with every known fault.
    """
    older = [release for release in RELEASES if number(release.server) <= number(server)]
    return older[-1] if older else RELEASES[0]


def number(version: str | None) -> tuple[int, ...]:
    """Return the first two numbers of a version: ("2.59.1") -> (2, 59); () of None."""
    return tuple(int(part) for part in re.findall(r"\d+", version or "")[:2])
