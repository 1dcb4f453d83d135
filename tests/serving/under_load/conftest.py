"""One confined server for all faults: each leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.steady_caller import SteadyCaller


@pytest.fixture(scope="package")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    server = Confined(tmp_path_factory.mktemp("confined"))
    yield server
    server.end()


@pytest.fixture
def caller(confined: Confined) -> Iterator[SteadyCaller]:
    """A caller that is answered already."""
    confined.server.lines_so_far()  # of earlier tests
    caller = SteadyCaller(confined.url)
    caller.start()
    caller.wait_for(5)
    yield caller
    caller.finish()
