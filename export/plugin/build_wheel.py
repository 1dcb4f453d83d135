"""Builds the project's wheel with the plugin library in it, for this platform.

    python build_wheel.py LIBRARY DIST

Works on a copy: a library left in the package's folder would be found before a newer build.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "README.md", "LICENSE")
ROOTS = ("export", "serving", "benchmarks", "cli")
FOLDER = Path("export/bilateral_export/lib")  # engine/installation/plugin.py looks there


def main(library: Path, dist: Path) -> None:
    """Write the wheel into `dist`."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    with tempfile.TemporaryDirectory(prefix="bilateral-wheel-") as folder:
        copy = Path(folder) / "project"
        copy_sources(copy)
        (copy / FOLDER).mkdir()
        shutil.copy(library, copy / FOLDER)
        # The package is pure Python but for this file, which setuptools takes for data.
        options = [f"--config-settings=--build-option=--plat-name={platform}"]
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options]
        subprocess.run([*command, "--wheel-dir", dist, copy], check=True)


def copy_sources(target: Path) -> None:
    """Copy what setuptools needs of the project."""
    target.mkdir()
    for name in FILES:
        shutil.copy(PROJECT / name, target)
    for root in ROOTS:
        for package in (PROJECT / root).glob("bilateral_*"):
            ignored = shutil.ignore_patterns("__pycache__", FOLDER.name)
            shutil.copytree(package, target / root / package.name, ignore=ignored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
