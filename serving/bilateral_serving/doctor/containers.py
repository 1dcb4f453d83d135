"""TensorRT versions of NVIDIA's Triton containers, as far as public sources name them."""

from __future__ import annotations

from bilateral_export.errors import UserError

# Release -> TensorRT; README.md names the source of each. `bilateral doctor --tensorrt VERSION` is
# for every other release.
TENSORRT = {
    "24.11": "10.6.0",
    "24.12": "10.7.0",
    "25.01": "10.8.0",
    "25.05": "10.10.0",
    "26.07": "11.1.0",
}


def tensorrt_of(release: str) -> str:
    """Return the TensorRT version in NVIDIA's container `tritonserver:<release>-py3`.

    Raises:
        UserError: The release is not in the table.
    """
    if release not in TENSORRT:
        raise UserError(
            f"what TensorRT the container {release} ships is not known here"
            f" (known: {', '.join(TENSORRT)})",
            "Ask the image, and give the answer with --tensorrt VERSION: docker run --rm"
            f' nvcr.io/nvidia/tritonserver:{release}-py3 bash -c "dpkg -l | grep tensorrt"',
        )
    return TENSORRT[release]
