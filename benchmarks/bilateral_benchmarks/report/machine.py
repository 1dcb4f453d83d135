"""The machine of a measurement: hardware, settings and package versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bilateral_export.runners.registry import RUNTIMES

# The instruction sets that decide how fast a matrix product is.
_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "i8mm",
    "bf16",
)
_RESULTS = ":(top,exclude)benchmarks/results"
_PACKAGES = (
    "bilateral-serve",
    "numpy",
    "torch",
    "onnx",
    *(name for runtime in RUNTIMES.values() for name in runtime.distributions),
    "nvidia-pytriton",
    "tritonclient",
    "grpcio",
)


class Gpu(BaseModel):
    """One GPU, with its clocks in MHz at the time of asking."""

    model_config = ConfigDict(frozen=True)

    name: str
    driver: str
    memory_mib: int
    sm_clock_mhz: int
    memory_clock_mhz: int
    max_sm_clock_mhz: int


class Machine(BaseModel):
    """Hardware, settings and versions.

    Attributes:
        cpu: The processor's name.
        cores: Logical processors this process may use.
        flags: Instruction sets that matter here.
        governor: The frequency governor; None where the kernel does not say.
        memory_gib: Physical memory.
        load_average: Of the last minute, before the measurement.
        system: Kernel and its version.
        gpus: What nvidia-smi lists.
        versions: Python, and the packages of this project's stack that are installed.
    """

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    flags: tuple[str, ...]
    governor: str | None
    memory_gib: float
    load_average: float
    system: str
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]

    @staticmethod
    def here() -> Machine:
        """Describe this machine."""
        cpuinfo = _cpuinfo()
        flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
        return Machine(
            cpu=cpuinfo.get("model name", platform.processor() or platform.machine()),
            cores=len(os.sched_getaffinity(0)),
            flags=tuple(flag for flag in _FLAGS if flag in flags),
            governor=_governor(),
            memory_gib=round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1
            ),
            load_average=round(os.getloadavg()[0], 2),
            system=f"{platform.system()} {platform.release()}",
            gpus=_gpus(),
            versions=_versions(),
        )

    def differences(self, other: Machine) -> list[str]:
        """In what another machine differs so that times of the two cannot be compared."""

        def listed(machine: Machine) -> dict[str, str]:
            return {
                "processor": machine.cpu,
                "cores": str(machine.cores),
                "instruction sets": " ".join(machine.flags) or "none known",
                "governor": machine.governor or "unknown",
                "GiB": f"{machine.memory_gib:g}",
                "system": machine.system,
                "GPUs": ", ".join(f"{gpu.name}, {gpu.driver}" for gpu in machine.gpus) or "none",
            }

        here, there = listed(self), listed(other)
        return [
            f"{name} {here[name]} | {there[name]}" for name in here if here[name] != there[name]
        ]

    @property
    def summary(self) -> str:
        """One line for headings."""
        parts = [f"{self.cpu}, {self.cores} cores"]
        wide = [flag for flag in self.flags if flag.startswith(("avx512", "amx", "sve"))]
        parts += [", ".join(wide)] if wide else []
        parts += [gpu.name for gpu in self.gpus]
        return "; ".join(parts)


def git_revision() -> str | None:
    """Return the revision of this source tree, "-dirty" if it differs; None outside of one.

    Committed results are not source: a run that rewrites them row by row stays clean.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An installation may lie inside a repository of something else.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        revision = _git("describe", "--always", "--abbrev=12")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", _RESULTS)
        return f"{revision}-dirty" if changed else revision or None
    return None


def _git(*arguments: str) -> str:
    """Return what git answers about this source tree; raises SubprocessError outside of one."""
    answer = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return answer.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if not line.strip():
                break
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    return fields


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return None


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm"
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return tuple(_gpu(line) for line in answer.stdout.splitlines() if line.strip())
    return ()


def _gpu(line: str) -> Gpu:
    name, driver, *numbers = (field.strip() for field in line.split(","))
    memory, sm_clock, memory_clock, max_clock = (int(number) for number in numbers)
    return Gpu(
        name=name,
        driver=driver,
        memory_mib=memory,
        sm_clock_mhz=sm_clock,
        memory_clock_mhz=memory_clock,
        max_sm_clock_mhz=max_clock,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
