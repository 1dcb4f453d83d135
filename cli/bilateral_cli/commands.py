"""The Typer application with all commands."""

from __future__ import annotations

import importlib

from bilateral_cli.app import app as app

# One module a command; each adds itself to `app` when it is imported. The order is that of --help.
_COMMANDS = (
    "quickstart",
    "up",
    "down",
    "new",
    "export",
    "lower",
    "build",
    "inspect",
    "parity",
    "repository",
    "rollouts",
    "declared",
    "doctor",
    "serve",
    "token",
    "top",
    "deploy",
    "infer",
    "generate",
    "score",
    "score_files",
    "evaluate",
    "bench",
    "study",
    "check",
    "kernels",
    "models",
    "explain",
)
for _command in _COMMANDS:
    importlib.import_module(f"bilateral_cli.{_command}")
