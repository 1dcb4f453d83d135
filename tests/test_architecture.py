"""Which folder may import from which: cli -> benchmarks -> serving -> export, and inside each.

A room is a folder of a package. Modules beside the rooms are the package's shared language: any
room may import them, and they import no room but the operator's contract. CONTRIBUTING.md says
what each room is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "bilateral_export": ROOT / "export",
    "bilateral_serving": ROOT / "serving",
    "bilateral_benchmarks": ROOT / "benchmarks",
    "bilateral_cli": ROOT / "cli",
}
# What a package may import of the others.
PACKAGES = {
    "bilateral_export": set(),
    "bilateral_serving": {"bilateral_export"},
    "bilateral_benchmarks": {"bilateral_export", "bilateral_serving"},
    "bilateral_cli": {"bilateral_export", "bilateral_serving", "bilateral_benchmarks"},
}
# What a room may import of its package's other rooms.
ROOMS = {
    "bilateral_export": {
        "": {"op"},  # artifact.py knows the operator's node by the contract
        "op": set(),
        "tasks": set(),
        "models": {"op"},
        "checkpoint": {"models", "tasks"},
        "graph": {"checkpoint", "models", "op"},
        "lowering": {"graph", "op"},
        "quantization": {"lowering"},
        "engine": {"graph", "op"},
        "runners": {"checkpoint", "engine", "lowering", "models", "op"},
        "explain": {"checkpoint", "graph", "models", "op", "runners"},
        "parity": {"checkpoint", "graph", "models", "op", "runners"},
    },
    "bilateral_serving": {
        "client": set(),
        "scoring": {"client"},
        "front_door": set(),
        "python_backend": {"client"},
        "repository": set(),
        "server": {"front_door", "repository"},
        "doctor": {"repository", "server"},
        "rollout": {"doctor", "front_door", "repository", "server"},
        "deploy": {"repository"},
        "declared": {"client", "repository"},
        "watching": set(),
    },
    "bilateral_benchmarks": {
        "statistics": set(),
        "report": {"statistics"},
        "load": {"report", "statistics"},
        "experiments": {"load", "report", "statistics"},
        "kernel": {"report"},
        "end_to_end": {"experiments", "load", "report"},
        "evaluation": set(),
        "gpu_checks": {"report"},
        "studies": {"report"},
    },
    "bilateral_cli": {"bench": set()},
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    folder = FOLDERS[package]
    names = {}
    for path in sorted((folder / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(folder).with_suffix("").parts)
        names[dotted.removesuffix(".__init__")] = path
    return names


MODULES = {name: path for package in FOLDERS for name, path in modules(package).items()}


def imports(path: Path) -> Iterator[str]:
    """The project's modules that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                yield name


def room(module: str) -> str:
    """The folder of a module below its package; empty for the package's shared language."""
    folder = MODULES[module].parent.relative_to(FOLDERS[module.split(".")[0]])
    return folder.parts[1] if len(folder.parts) > 1 else ""


ARROWS = sorted({(source, target) for source, path in MODULES.items() for target in imports(path)})


def test_packages_import_downwards() -> None:
    allowed = {package: others | {package} for package, others in PACKAGES.items()}
    wrong = [
        f"{source} imports {target}"
        for source, target in ARROWS
        if target.split(".")[0] not in allowed[source.split(".")[0]]
    ]
    assert not wrong


@pytest.mark.parametrize("package", FOLDERS)
def test_rooms_import_as_the_table_says(package: str) -> None:
    found: dict[str, set[str]] = {name: set() for name in ROOMS[package]}
    wrong = []
    for source, target in ARROWS:
        if source.split(".")[0] != package or target.split(".")[0] != package:
            continue
        here, there = room(source), room(target)
        if here == there or not there:
            continue
        found.setdefault(here, set()).add(there)
        if package == "bilateral_cli":  # its commands are one list, `bench` is a part of it
            continue
        if there not in ROOMS[package].get(here, set()):
            wrong.append(f"{source} imports {target}")
    assert not wrong
    assert found == ROOMS[package], "the table and the imports differ"


@pytest.mark.parametrize("package", FOLDERS)
def test_every_room_says_what_it_is_for(package: str) -> None:
    silent = [
        str(path)
        for path in modules(package).values()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent
