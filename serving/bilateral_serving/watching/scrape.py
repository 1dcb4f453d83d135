"""A metrics page in Prometheus' text format, as numbers."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from bilateral_export.errors import UserError

Labels = tuple[tuple[str, str], ...]
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Snapshot:
    """The page at one moment.

    Attributes:
        time_s: When, by a clock that only goes forward.
        samples: Value by name and sorted labels.
    """

    time_s: float
    samples: Mapping[tuple[str, Labels], float]

    def of(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return the samples of a name that have these labels."""
        wanted = set(labels.items())
        return {
            key: value
            for (found, key), value in self.samples.items()
            if found == name and wanted <= set(key)
        }

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of those samples; 0 of none."""
        return sum(self.of(name, **labels).values())


def scrape(url: str, timeout_s: float = 5.0) -> Snapshot:
    """Read a server's metrics page.

    Raises:
        UserError: Nothing answers there, it is no such page, or prometheus-client is missing.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"'{url}' is not the address of a metrics page", "Give http://host:8002/metrics."
        )
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            text = answer.read(_LARGEST).decode("utf-8", errors="replace")
    # A server of another protocol, such as gRPC's port, is an HTTPException, which is no OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"no metrics at {url}: {str(error).strip() or type(error).__name__}",
            "Give the address with --metrics-url; `bilateral serve` has it on --metrics-port.",
        ) from error
    return parse(text, url)


def parse(text: str, url: str = "the page") -> Snapshot:
    """Return a page's samples.

    Raises:
        UserError: It is no such page, or prometheus-client is missing.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise UserError(
            "reading metrics needs prometheus-client",
            "Install it with `pip install 'bilateral-serve[server]'`.",
        ) from error
    try:
        samples = {
            (name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            # The library ends every counter's name in "_total"; Triton's have no such end.
            for name in {sample.name, _bare(sample.name, family.type)}
        }
        for name, labels in samples:
            if name.endswith("_bucket"):
                float(dict(labels).get("le", ""))  # an end that is a number, or a ValueError
    except ValueError as error:
        raise UserError(
            f"{url} is no page of metrics: {' '.join(str(error).split())[:200]}",
            "Give the address of a server's metrics.",
        ) from error
    return Snapshot(time.monotonic(), samples)


def _bare(name: str, kind: str) -> str:
    return name.removesuffix("_total") if kind == "counter" else name
