"""`bilateral bench`: latency and throughput, in process and served."""

from __future__ import annotations

import importlib

# Each adds its commands to the group when it is imported. The order is that of --help.
_MODULES = (
    "measure",
    "suite",
    "pipeline",
    "runtimes",
    "scenarios",
    "raw_input",
    "language",
    "several_sizes",
    "cold_start",
    "quantize",
    "eight_bits",
    "capacity",
    "documents",
    "kernel",
    "score_files",
    "serving_cost",
)
for _module in _MODULES:
    importlib.import_module(f"bilateral_cli.bench.{_module}")
