"""What several tests here need: a small model and the server with known latency."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from known_server import known_server


@pytest.fixture(scope="session")
def prompt_server() -> Iterator[str]:
    """Address of a server that answers at once."""
    with known_server() as url:
        yield url
