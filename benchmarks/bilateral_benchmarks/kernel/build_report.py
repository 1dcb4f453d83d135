"""The report of an ahead-of-time build: registers, spills and shared memory of every cubin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.files import write
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.op.kernel.aot.manifest import problems

_FACTS = (
    "file",
    "architecture",
    "kernel",
    "dtype",
    "head_dim",
    "spatial",
    "coordinates",
    "features",
    "key_term",
    "block_m",
    "block_n",
    "num_warps",
    "num_stages",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "serialised",
    "matrix_instructions",
    "bytes",
)


class BuildReport(Result):
    """What the compiler reports of every cubin; fields as in `manifest.json`."""

    page_title: ClassVar[str] = "Ahead-of-time build of the fused kernel"
    page_text: ClassVar[str] = "No GPU: block sizes are predicted, nothing here is a time."

    kind: Literal["kernel-build"] = "kernel-build"
    triton: list[str]
    ptxas: list[str]
    total_bytes: int
    problems: list[str]
    cubins: list[dict[str, Any]]

    def facts(self) -> list[str]:
        """Return the versions of the compilers, and what is known of the run."""
        compilers = f"Triton {', '.join(self.triton)}, ptxas {', '.join(self.ptxas)}"
        return [compilers, *super().facts()]

    def tables(self) -> list[Table]:
        """Return a row per architecture, then the attention kernels for bf16."""
        rows = []
        for architecture in sorted({cubin["architecture"] for cubin in self.cubins}):
            own = [cubin for cubin in self.cubins if cubin["architecture"] == architecture]
            attention = [cubin for cubin in own if cubin["kernel"] == "attention"]
            kinds = sorted({kind for cubin in attention for kind in cubin["matrix_instructions"]})
            rows.append(
                (
                    f"{architecture / 10:.1f}",
                    f"{len(own)}",
                    f"{sum(cubin['bytes'] for cubin in own) / 1e6:.1f}",
                    f"{sum(cubin['spill_bytes'] for cubin in own)}",
                    f"{sum(cubin['serialised'] for cubin in attention)}",
                    ", ".join(kinds),
                )
            )
        kernels = tuple(
            (
                f"{cubin['architecture'] / 10:.1f}",
                f"{cubin['head_dim']}",
                f"{cubin['spatial']}{cubin['coordinates'] or cubin['features'] or ''}",
                "yes" if cubin["key_term"] else "no",
                f"{cubin['block_m']}x{cubin['block_n']}, {cubin['num_warps']},"
                f" {cubin['num_stages']}",
                f"{cubin['registers']}",
                f"{cubin['shared_bytes'] / 1024:.0f}",
            )
            for cubin in self.cubins
            if cubin["kernel"] == "attention" and cubin["dtype"] == "bf16"
        )
        builds = ("architecture", ">cubins", ">MB", ">spilled bytes", ">wgmma serialised")
        per_kernel = ("architecture", ">D", "spatial", "key term", "block, warps, stages")
        return [
            Table(
                f"{len(self.cubins)} cubins, {self.total_bytes / 1e6:.1f} MB",
                (*builds, "matrix instructions"),
                tuple(rows),
                (f"{len(self.problems)} problems.", *self.problems),
            ),
            Table("Attention in bf16", (*per_kernel, ">registers", ">KiB"), kernels),
        ]


def write_build_report(manifest: dict[str, Any], folder: Path) -> None:
    """Write kernel_build.json, .md and .html from the manifest of a build."""
    report = BuildReport(
        context=Context.now(),
        triton=[manifest["triton"]],
        ptxas=[manifest["ptxas"]],
        total_bytes=manifest["total_bytes"],
        problems=problems(manifest),
        cubins=[{name: cubin[name] for name in _FACTS} for cubin in manifest["cubins"]],
    )
    write(report, folder / "kernel_build.json")
