"""Builds every family in every precision, with and without the plugin, for several GPUs.

    python -m bilateral_export.engine.matrix [--out benchmarks/results] [--models ...] [--sm ...]

Writes tensorrt-build-matrix.json and .md. Weights are fresh: what is built depends on the graph
alone. Builds with TensorRT for RTX need no GPU; a full TensorRT builds for the GPU it runs on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.engine.build import BuildOptions, build_plan
from bilateral_export.engine.library import Library, load_library
from bilateral_export.errors import UserError
from bilateral_export.files import sha256, write_text
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.models.zoo import build, named
from bilateral_export.plugin import find_plugin, plugin_contents

AttentionBy = Literal["function", "plugin"]
# One of each shape of graph: images at two sizes, long and paired sequences, a cached decoder.
MODELS = (
    "digits_bilateral",
    "deit_bilateral_tiny_patch16_224",
    "deit_bilateral_small_patch16_224",
    "lra_bilateral_text",
    "lra_bilateral_retrieval",
    "wikitext103_bilateral_small",
)
TARGETS = (80, 86, 89, 120)
NAME = "tensorrt-build-matrix"


@dataclass(frozen=True)
class Row:
    """One build.

    Attributes:
        model, family: What was built.
        precision: The graph's.
        path: What runs attention.
        target: The SM, such as "sm_86".
        built: Whether a plan came out.
        computed_in: The precision read from the built network.
        attention: Number of attention nodes.
        fused: How many of them became one fused kernel; None with the plugin.
        through_plugin: How many run through the plugin.
        bytes: Of the plan.
        seconds: Of the build, parsing included.
        reason: Why nothing came out.
    """

    model: str
    family: str
    precision: Precision
    path: AttentionBy
    target: str
    built: bool
    computed_in: str = ""
    attention: int = 0
    fused: int | None = None
    through_plugin: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reason: str = ""


def build_matrix(
    models: Sequence[str],
    precisions: Sequence[Precision],
    paths: Sequence[AttentionBy],
    targets: Sequence[int],
    library: Library,
) -> Iterator[Row]:
    """Build each combination; yields a row as each is done."""
    with tempfile.TemporaryDirectory(prefix="bilateral-matrix-") as folder:
        for name, precision in itertools.product(models, precisions):
            onnx = Path(folder) / f"{name}_{precision}.onnx"
            checkpoint = _fresh(name)
            export_onnx(checkpoint, onnx, precision=precision)
            family = checkpoint.card.model.family
            for path, target in itertools.product(
                paths, targets if library.ahead_of_time else (0,)
            ):
                yield _row(name, family, precision, path, target, onnx, library)
            for file in onnx.parent.glob(f"{onnx.name}*"):
                file.unlink()


def _row(
    name: str,
    family: str,
    precision: Precision,
    path: AttentionBy,
    target: int,
    onnx: Path,
    library: Library,
) -> Row:
    plan = onnx.with_suffix(".plan")
    options = BuildOptions(attention=path, targets=(target,) if library.ahead_of_time else ())
    named_target = f"sm_{target}" if target else "this GPU"
    try:
        manifest = build_plan(onnx, plan, options, library=library)
    except UserError as error:
        return Row(name, family, precision, path, named_target, False, reason=error.problem)
    finally:
        plan.unlink(missing_ok=True)
    return Row(
        model=name,
        family=family,
        precision=precision,
        path=path,
        target=manifest.targets[0],
        built=True,
        computed_in=manifest.precision,
        attention=manifest.attention.nodes,
        fused=manifest.attention.fused,
        through_plugin=manifest.plugin.nodes if manifest.plugin else 0,
        bytes=manifest.plan.bytes,
        seconds=manifest.seconds,
    )


def _fresh(name: str) -> Checkpoint:
    """A known model with random weights, always the same."""
    torch.manual_seed(0)
    config = named(name)
    state = dict(build(config).state_dict())
    return Checkpoint(Path(name), "0" * 64, CheckpointCard(name=name, model=config), state)


def as_markdown(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The table; one line for each build."""
    lines = [
        "# TensorRT build matrix",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| model | precision | attention by | target | built | computed in | attention nodes |"
        " fused | plugin | MB | seconds |",
        "|---|---|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if not row.built:
            lines.append(
                f"| {row.model} | {row.precision} | {row.path} | {row.target} | no: {row.reason} |"
                " | | | | | |"
            )
            continue
        fused = "" if row.fused is None else str(row.fused)
        lines.append(
            f"| {row.model} | {row.precision} | {row.path} | {row.target} | yes |"
            f" {row.computed_in} | {row.attention} | {fused} | {row.through_plugin or ''} |"
            f" {row.bytes / 1e6:.1f} | {row.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, print each row, write both files; 1 when a build failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_export.engine.matrix", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", default=list(get_args(Precision)))
    parser.add_argument("--paths", nargs="+", default=list(get_args(AttentionBy)))
    parser.add_argument("--sm", type=int, nargs="+", default=list(TARGETS))
    options = parser.parse_args(arguments)
    try:
        library = load_library()
        about = _about(library, sys.argv[1:] if arguments is None else arguments)
        rows = []
        for row in build_matrix(
            options.models, options.precisions, options.paths, options.sm, library
        ):
            rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    document = {"about": about, "rows": [asdict(row) for row in rows]}
    write_text(options.out / f"{NAME}.json", json.dumps(document, indent=1) + "\n")
    write_text(options.out / f"{NAME}.md", as_markdown(rows, about))
    return 0 if all(row.built for row in rows) else 1


def _about(library: Library, arguments: Sequence[str]) -> dict[str, str]:
    plugin = find_plugin()
    about = {
        "command": " ".join(["python -m bilateral_export.engine.matrix", *arguments]),
        "library": f"{library.name} {library.version}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }
    if plugin is not None:
        contents = plugin_contents(plugin)
        targets = ", ".join(f"sm_{target}" for target in contents.targets)
        about["plugin"] = f"{contents.kernels} kernels for {targets}; SHA-256 {sha256(plugin)[:16]}"
    return about


def _processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    raise SystemExit(main())
