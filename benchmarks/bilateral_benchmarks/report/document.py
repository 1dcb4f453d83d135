"""Documents: any number of results under a title."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.result import Result


class Document(BaseModel):
    """Any number of results under a title.

    Attributes:
        title: What they are.
        items: The results; a document that is read from a file says of which types.
        failures: Measurements that were asked for and are missing, each with its reason.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    items: tuple[Result, ...]
    failures: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is missing, and every run that is invalid, with the reason."""
        return (*self.failures, *(problem for item in self.items for problem in item.invalid()))
