"""One repository for the whole folder, and the programs that check what is written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.serving.deploy.models import make_repository


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("deployed"))


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Where a program is; a test that needs one that is not here skips."""

    def find(name: str) -> str:
        beside = str(Path(sys.executable).parent)
        found = shutil.which(name) or shutil.which(name, path=f"{beside}:/usr/sbin:/sbin")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find
