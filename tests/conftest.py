"""What holds for every test: where kernels run, and where random numbers come from.

Where there is no GPU, Triton kernels run in Triton's interpreter. Triton decides that when it is
first imported, by whoever imports it, so it is said here.
"""

from __future__ import annotations

import os
import random
import shutil
import sys

import pytest
from hypothesis import HealthCheck, settings

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples each time, however slow the machine: a fault fails every run, and luck none.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random numbers do not depend on which tests ran before in the same process."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
