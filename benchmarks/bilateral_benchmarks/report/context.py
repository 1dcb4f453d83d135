"""The context of a measurement: machine, command, source revision and time."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.machine import Machine, git_revision


class Context(BaseModel):
    """Where, when and how a result was measured."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    command: str
    git_revision: str | None
    started: str

    @staticmethod
    def now() -> Context:
        """Return the context of this process at this moment."""
        return Context(
            machine=Machine.here(),
            command=command(),
            git_revision=git_revision(),
            started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def run(self) -> object:
        """Return what results of one run have in common: machine, versions, revision, command."""
        machine = self.machine
        versions = tuple(machine.versions.items())
        return machine.summary, versions, self.git_revision, self.command

    def facts(self) -> list[str]:
        """Return machine, versions, revision and command, a line each."""
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        return [
            f"machine: {machine.summary}; {machine.memory_gib:g} GiB; {machine.system}; "
            f"governor {machine.governor or 'unknown'}; load {machine.load_average:g} at the start",
            f"versions: {versions}",
            f"revision: {self.git_revision or 'unknown'}; started {self.started}",
            f"command: {self.command}",
        ]


def command() -> str:
    """Return the command line of this process as a person types it."""
    path = Path(sys.argv[0])
    program = path.name or "python"
    if path.parts[-2:] == ("bilateral_cli", "__main__.py"):  # python -m bilateral_cli
        program = "bilateral"
    return " ".join([program, *sys.argv[1:]])
