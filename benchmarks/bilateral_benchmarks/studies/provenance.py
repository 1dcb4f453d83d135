"""The provenance of a study: command, source revision and machine."""

from __future__ import annotations

from bilateral_benchmarks.report.context import command
from bilateral_benchmarks.report.machine import Machine, git_revision
from bilateral_benchmarks.report.result import Result


class Study(Result):
    """What a study found.

    Attributes:
        command: The command that made it.
        revision: Revision of the source tree.
        machine: Where it ran.
    """

    command: str
    revision: str | None
    machine: Machine

    def facts(self) -> list[str]:
        """Return machine, revision and command, a line each."""
        return [
            f"machine: {self.machine.summary}",
            f"revision: {self.revision or 'unknown'}",
            f"command: {self.command}",
        ]

    @staticmethod
    def provenance() -> dict[str, object]:
        """Return these fields for this process."""
        return {"command": command(), "revision": git_revision(), "machine": Machine.here()}
