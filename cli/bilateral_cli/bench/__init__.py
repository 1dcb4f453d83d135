"""`bilateral bench`: latency and throughput, in process and served."""

from __future__ import annotations

import importlib

# Each adds its commands to the group when it is imported. The order is that of --help.
for _module in (
    "measure",
    "suite",
    "pipeline",
    "runtimes",
    "scenarios",
    "documents",
    "kernel",
    "score_files",
):
    importlib.import_module(f"bilateral_cli.bench.{_module}")
