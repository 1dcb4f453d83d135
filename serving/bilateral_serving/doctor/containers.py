"""What NVIDIA's Triton containers ship, where it is known."""

from __future__ import annotations

from bilateral_export.errors import UserError

# Release -> TensorRT, as we know it from NVIDIA's Deep Learning Frameworks Support Matrix; not
# checked against the images. `bilateral doctor --tensorrt VERSION` overrides it.
TENSORRT = {
    "24.10": "10.5.0",
    "24.11": "10.6.0",
    "24.12": "10.7.0",
    "25.01": "10.8.0",
    "25.02": "10.8.0",
    "25.03": "10.9.0",
    "25.04": "10.9.0",
    "25.05": "10.10.0",
    "25.06": "10.11.0",
}


def tensorrt_of(release: str) -> str:
    """The TensorRT version in NVIDIA's container `tritonserver:<release>-py3`.

    Raises:
        UserError: The release is not in the table.
    """
    if release not in TENSORRT:
        raise UserError(
            f"what TensorRT the container {release} ships is not known here",
            f"Give it with --tensorrt VERSION; known are {', '.join(TENSORRT)}.",
        )
    return TENSORRT[release]
