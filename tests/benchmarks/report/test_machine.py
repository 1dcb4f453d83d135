"""What is said about machine and source is of this machine and this source."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from bilateral_benchmarks.report import machine
from bilateral_benchmarks.report.machine import Machine


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_an_installation_inside_another_repository_has_no_revision(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    copy = tmp_path / "site-packages" / "installed.py"
    copy.parent.mkdir()
    shutil.copy(machine.__file__, copy)
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "something else")
    spec = importlib.util.spec_from_file_location("installed", copy)
    assert spec is not None
    assert spec.loader is not None
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.git_revision() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "source")
    assert installed.git_revision() is not None
    copy.write_text(copy.read_text() + "\n")
    assert installed.git_revision().endswith("-dirty")


def test_machines_differ_in_what_decides_how_fast_they_are() -> None:
    here = Machine.here()
    busy = here.model_copy(update={"load_average": here.load_average + 1, "versions": {}})
    assert here.differences(busy) == []
    other = here.model_copy(update={"flags": (*here.flags, "new"), "governor": "other"})
    assert [text.split(" ")[0] for text in here.differences(other)] == ["instruction", "governor"]
