"""From a trained bilateral Transformer to a verified, deployable artifact.

Importing this package is cheap: torch and onnx are imported only by the modules that need them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bilateral-serve")
except PackageNotFoundError:  # a source tree that is on the path but not installed
    __version__ = "0.0.0+source"
