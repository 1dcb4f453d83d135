"""Commands that write at once, and commands that are killed: what is left always loads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.serving.repository import kill_points
from tests.serving.server.bare_server import bare_server

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving import repository
from bilateral_serving.config import CONFIG_FILE, Settings
from bilateral_serving.doctor.diagnose import diagnose
from bilateral_serving.doctor.machine import read_machine
from bilateral_serving.repository.lock import leftovers, writing

# One thread: what forks there has no other.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )


def described(root: Path) -> tuple[int, ...]:
    path = root / "quadrants" / CONFIG_FILE
    return configs.described_versions(configs.parse(path.read_text(), path))


ADD_AT_ONCE = """
    import os, sys
    from pathlib import Path
    import onnx, bilateral_export.lowering.lower  # once, and not in every child
    from bilateral_serving import repository
    from bilateral_serving.repository import adding
    from bilateral_serving.repository.dry_run import DryRun

    adding.dry_run = lambda *_, **__: DryRun()  # writes nothing in the repository, and is slow
    model, root, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for round in range(rounds):
        children = []
        for _ in range(4):
            children.append(os.fork())
            if not children[-1]:
                repository.add("quadrants", model, root / str(round))
                os._exit(0)
        assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def test_four_adds_at_once_all_count(tmp_path: Path) -> None:
    model = models.quadrants(tmp_path / "model.onnx")
    root = tmp_path / "repositories"
    adding = python(ADD_AT_ONCE, model, root, 4)
    assert adding.wait(timeout=300) == 0
    for path in root.iterdir():
        (entry,) = repository.list_entries(path)
        assert [version.number for version in entry.versions] == [1, 2, 3, 4]
        assert described(path) == (1, 2, 3, 4)
        assert leftovers(path) == ()


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    hold = """
        import sys, time
        from pathlib import Path
        from bilateral_serving.repository.lock import writing

        with writing(Path(sys.argv[1])) as staging:
            (staging / "model" / "1").mkdir(parents=True)
            print("held", flush=True)
            time.sleep(600)
    """
    holder = python(hold, root)
    assert holder.stdout is not None
    holder.stdout.readline()
    with (
        pytest.raises(UserError, match=r"another command has been writing .* for 0\.1 s"),
        writing(root, wait_s=0.1),
    ):
        pass
    assert len(leftovers(root)) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    repository.add("quadrants", models.quadrants(tmp_path / "model.onnx"), root)
    assert leftovers(root) == ()


def test_what_former_commands_left_is_removed_and_an_export_is_not(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    model = models.quadrants(tmp_path / "model.onnx")
    repository.add("quadrants", model, root)
    left = [".partial-a/1", ".removed-old-1", "quadrants/.partial-b", "quadrants/.before-c"]
    for path in (*left, ".partial-exporting"):
        (root / path).mkdir(parents=True)
    repository.add("quadrants", model, root)
    assert not any((root / path).exists() for path in left)
    assert (root / ".partial-exporting").is_dir()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A repository of every command that was killed, at every point, by name."""
    tmp = tmp_path_factory.mktemp("killed")
    for number in (1, 2):
        model = models.quadrants(tmp / f"{number}.onnx")
        repository.add("quadrants", model, tmp / "start", settings=Settings(versions="1,2"))
    arguments = [tmp / "start", models.quadrants(tmp / "other.onnx"), tmp / "killed"]
    script = [sys.executable, kill_points.__file__, *map(str, arguments)]
    subprocess.run(script, env=ENVIRONMENT, check=True, timeout=300)
    return {path.name: path for path in sorted((tmp / "killed").iterdir())}


def test_every_killed_command_leaves_a_repository_that_the_doctor_passes(
    killed: dict[str, Path], tmp_path: Path
) -> None:
    assert len(killed) > 40
    machine = read_machine()
    model = models.quadrants(tmp_path / "model.onnx")
    for name, path in killed.items():
        diagnosis = diagnose(path, machine, run=False)
        found = [f for f in diagnosis.findings if f.problem != "the repository has no model"]
        assert {finding.severity for finding in found} <= {"info"}, (name, found)
        for entry in repository.list_entries(path):
            assert {version.number for version in entry.versions} <= set(
                configs.described_versions(
                    configs.parse((entry.directory / CONFIG_FILE).read_text(), name)
                )
            ), name
        with writing(path):  # as the next command does, whichever it is
            pass
        assert leftovers(path) == (), name
    repository.add("quadrants", model, next(iter(killed.values())))


def test_every_killed_command_leaves_a_model_that_triton_loads(
    killed: dict[str, Path], tmp_path: Path
) -> None:
    # Most of them differ only in what Triton does not look at.
    models_left = {path / "quadrants": name for name, path in killed.items()}
    different = {
        (*sorted(p.name for p in path.iterdir()), (path / CONFIG_FILE).read_text()): (name, path)
        for path, name in models_left.items()
        if path.is_dir()
    }
    assert len(different) >= 6
    served = tmp_path / "served"
    served.mkdir()
    with bare_server(served) as server:
        for name, path in different.values():
            shutil.copytree(path, served / name)
            config = served / name / CONFIG_FILE
            config.write_text(config.read_text().replace('name: "quadrants"', f'name: "{name}"'))
            assert server.load(name) is None, name
