"""Messages and pages name commands and options that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.conftest import ROOT

from bilateral_cli.commands import app

PACKAGES = ("cli", "export", "serving", "benchmarks")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Of other programs, which messages tell to start: Python's configure, docker, tritonserver.
FOREIGN = {"--enable-shared", "--shm-size", "--rm", "--backend-config"}


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Every command by its path, with its options; a group has those of its commands too."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name, inner in getattr(command, "commands", {}).items():
        found |= commands(inner, (*path, name))
    own = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return found | {path: own.union({"--help"}, *found.values())}


@pytest.fixture(scope="module")
def options() -> dict[tuple[str, ...], set[str]]:
    return commands(typer.main.get_command(app))


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string under a node; what an f-string puts in is a gap."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "X" for part in node.values
            )  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def unknown(text: str, options: dict[tuple[str, ...], set[str]]) -> list[str]:
    """The options in a text that the command which it names before them does not have."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for said in re.split(r"(?=\bbilateral [a-z])|`", line):
            match = re.match(r"bilateral ([a-z-]+)(?: ([a-z-]+))?", said)
            if match is None:
                continue
            path = next((p for p in (match.groups(), match.groups()[:1]) if p in options), None)
            if path is not None:
                named = OPTION.findall(re.split(r"[|;#&)]", said)[0])
                found += [
                    f"bilateral {' '.join(path)} {o}" for o in named if o not in options[path]
                ]
    return found


def test_every_option_in_a_message_exists(options: dict[tuple[str, ...], set[str]]) -> None:
    every = set().union(*options.values(), FOREIGN)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            named = {
                (getattr(call.func, "id", getattr(call.func, "attr", "")), option, call.lineno)
                for call in calls
                for text in strings(call)
                for option in OPTION.findall(text)
            }
            own = {option for name, option, _ in named if name == "add_argument"}
            for name, option, line in named:
                if name.endswith(("Error", "print", "Option", "Argument", "error", "warning")):
                    assert option in every | own, f"{path}:{line}: {option}"


def test_a_command_that_is_named_has_the_options_named_with_it(
    options: dict[tuple[str, ...], set[str]],
) -> None:
    assert unknown("run `bilateral serve --quick`", options) == ["bilateral serve --quick"]
    assert unknown("bilateral bench served m --rate 3 --rat 4", options)
    texts: list[tuple[Path, str]] = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            texts += [(path, text) for text in strings(ast.parse(path.read_text()))]
    pages = [*ROOT.glob("*.md"), *(p for folder in PACKAGES for p in (ROOT / folder).rglob("*.md"))]
    texts += [(path, path.read_text()) for path in (*pages, ROOT / "Makefile")]
    wrong = [f"{path}: {problem}" for path, text in texts for problem in unknown(text, options)]
    assert wrong == []
