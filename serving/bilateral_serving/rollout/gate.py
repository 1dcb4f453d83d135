"""The gate of a rollout: parity, the doctor and a dry run of the version that is to be served.

The last part, a real inference on the running server, is the server's: it asks the loaded version
before it changes a route (`server/rollouts/carry_out.py`).
"""

from __future__ import annotations

from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.doctor.machine import read_machine
from bilateral_serving.doctor.versions import check_version
from bilateral_serving.repository import Version, show
from bilateral_serving.repository.containment import check_contained


def check_gate(
    repository: Path, name: str, number: int, *, parity: Path | None, unjudged: bool = False
) -> None:
    """Check that a version may be served.

    Args:
        repository: The repository.
        name: The model.
        number: The version.
        parity: The report that `bilateral parity --json` printed about the file that was added;
            None: there is none, or the version was added with it.
        unjudged: Whether a version without a report may pass.

    Raises:
        UserError: There is no such version, parity failed or is of another file, the doctor
            finds an error, or the version does not run as the server would run it.
    """
    found = [version for version in show(name, repository).versions if version.number == number]
    if not found:
        known = ", ".join(str(version.number) for version in show(name, repository).versions)
        raise UserError(
            f"model '{name}' has no version {number}",
            f"It has: {known or 'none'}. Add one with `bilateral repository add {name} FILE`.",
        )
    if not unjudged:
        _check_parity(name, found[0], parity)
    _check_doctor(found[0], name, repository)


def _check_parity(name: str, version: Version, report: Path | None) -> None:
    known = version.provenance
    if known and known.parity == "passed":
        return
    if report is None:
        raise UserError(
            f"nothing says whether version {version.number} of '{name}' computes what was trained",
            "Give the report of `bilateral parity CHECKPOINT FILE --json` with --parity, here or"
            " when it is added, or say --unjudged.",
        )
    # Only here: a server without the export's packages can roll out too.
    from bilateral_export.parity.report.document import read_report

    found = read_report(report)
    found.require_about(
        f"version {version.number} of '{name}'", [known.source_sha256 if known else "unknown"]
    )
    found.require_passed()


def _check_doctor(version: Version, name: str, repository: Path) -> None:
    directory = repository / name
    check_contained(directory)
    config = configs.read(directory / CONFIG_FILE)
    subject = f"{name} version {version.number}"
    # This version alone: what is wrong with the one that is served must not keep its successor out.
    _, findings = check_version(subject, version.directory, config, read_machine(), run=True)
    for finding in findings:
        if finding.severity == "error":
            raise UserError(f"the doctor refuses {finding.subject}: {finding.problem}", finding.fix)
