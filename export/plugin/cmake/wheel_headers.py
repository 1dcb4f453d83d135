"""Prints the folders of installed wheels that may hold TensorRT's or CUDA's headers, one a line."""

import importlib.util
from pathlib import Path

# (package, folder below it): NVIDIA's CUDA runtime, OpenAI Triton, and a development wheel that
# carries TensorRT's headers.
PLACES = [
    ("nvidia", "cu13/include"),
    ("nvidia", "cuda_runtime/include"),
    ("triton", "backends/nvidia/include"),
    ("kernel_lens", "include/tensorrt"),
]

for package, folder in PLACES:
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(root) / folder).is_dir():
            print(path)
