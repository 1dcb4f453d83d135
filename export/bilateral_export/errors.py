"""The one exception that means: the input is wrong, and here is what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can fix. The CLI prints it as one line and exits with `exit_code`.

    Args:
        problem: What is wrong, and where: it names the file, the tensor, the port.
        fix: What to do about it, as an instruction. May be empty when the problem says it all.
    """

    exit_code = 2  # the input is wrong

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.fix = " ".join(fix.split())
        super().__init__(f"{self.problem}. {self.fix}" if self.fix else self.problem)


class UnsupportedError(UserError):
    """A `UserError` that blames nothing in the input: a package or a kernel is missing."""
