"""Findings of the doctor, each with the reason it matters and the command that fixes it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_export.errors import UserError

Severity = Literal["error", "warning", "info"]

# Why a finding matters. Tests hold the first against the real server: it is said where Triton
# refuses to load, and nowhere else.
NOT_LOADED = "Triton would not load the model."
NOT_ANSWERED = "Requests would fail."


class Finding(BaseModel):
    """One thing found.

    Attributes:
        severity: "error" if something will fail, "warning" if it may, "info" if it is only said.
        subject: What it is about: a model, a version, "machine", "server".
        problem: What is the matter.
        why: What would fail because of it.
        fix: What to do; a command where there is one.
    """

    model_config = ConfigDict(frozen=True)

    severity: Severity
    subject: str
    problem: str
    why: str = ""
    fix: str = ""


class Diagnosis(BaseModel):
    """All findings about a repository and the machine that is to serve it.

    Attributes:
        repository: The directory looked at.
        facts: The machine and what is installed on it, by name.
        findings: Errors first.
    """

    model_config = ConfigDict(frozen=True)

    repository: str
    facts: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing found is an error."""
        return not any(finding.severity == "error" for finding in self.findings)


def error(subject: str, problem: str, why: str, fix: str) -> Finding:
    """Return a finding that something will fail."""
    return Finding(severity="error", subject=subject, problem=problem, why=why, fix=fix)


def warning(subject: str, problem: str, why: str, fix: str) -> Finding:
    """Return a finding that something may fail."""
    return Finding(severity="warning", subject=subject, problem=problem, why=why, fix=fix)


def info(subject: str, problem: str, why: str, fix: str = "") -> Finding:
    """Return a finding that nothing follows from."""
    return Finding(severity="info", subject=subject, problem=problem, why=why, fix=fix)


def from_refusal(subject: str, refusal: UserError, why: str) -> Finding:
    """Return what the project's own code would refuse, as a finding."""
    return error(subject, refusal.problem, why, refusal.fix)
