"""Quantities as Kubernetes writes them: 1000m is 1, and 1024Mi is 1Gi."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def same_quantity(one: object, other: object) -> bool:
    """Return whether two values are the same amount, written as an API server may rewrite it."""
    amounts = _amount(one), _amount(other)
    return amounts[0] is not None and amounts[0] == amounts[1]


def _amount(value: object) -> Decimal | None:
    if isinstance(value, bool):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?", str(value))
    return Decimal(match[1]) * _UNITS[match[2] or ""] if match else None
