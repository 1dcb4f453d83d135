"""From a trained bilateral Transformer to a verified, deployable artifact.

Importing this package is cheap: torch and onnx are imported only by the modules that need them.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version

# Nothing that is imported from here on, nor a process started from here, reports home. ONNX Runtime
# (from 1.29, on Linux too) would send the names and hashes of models; openvino reports its import,
# and needs a home directory for that, unless this package of its is missing.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

try:
    __version__ = version("bilateral-serve")
except PackageNotFoundError:  # a source tree that is on the path but not installed
    __version__ = "0.0.0+source"
