"""Builds every family in every precision, with and without the plugin, for several GPUs.

    python -m bilateral_benchmarks.studies.build_matrix [--out DIR] [--models ...] [--sm ...]

Writes tensorrt-build-matrix.json and .md after each build; started again with the same library,
plugin and machine, it goes on where it stopped. Weights are fresh: what is built depends on the
graph alone. TensorRT for RTX needs no GPU; a full TensorRT builds for the GPU it runs on.
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
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import Library, load_library
from bilateral_export.engine.installation.plugin import find_plugin, plugin_contents
from bilateral_export.engine.options import BuildOptions
from bilateral_export.errors import UserError
from bilateral_export.files import sha256, write_text
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.models.registry import build, named

AttentionBy = Literal["function", "plugin"]
Targets = tuple[int, ...]
# Every family at the size it is served at, and the smallest of three: images, long and paired
# sequences, a cached decoder, a segmenter.
MODELS = (
    "digits_bilateral",
    "deit_bilateral_small_patch16_224",
    "segmenter_bilateral_small",
    "lra_bilateral_text",
    "lra_bilateral_retrieval",
    "wikitext103_bilateral_small",
    "pydoc_bilateral",
)
# One plan for each GPU, and one plan for four.
TARGETS: tuple[Targets, ...] = ((75,), (80,), (86,), (89,), (120,), (80, 86, 89, 120))
NAME = "tensorrt-build-matrix"


@dataclass(frozen=True)
class Row:
    """One build.

    Attributes:
        model, family: What was built.
        precision: The graph's.
        path: What runs attention.
        target: The SMs, such as "sm_86", or "sm_86+120" for one plan for both.
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
    targets: Sequence[Targets],
    library: Library,
    done: Sequence[Row] = (),
) -> Iterator[Row]:
    """Build each combination; yields a row as each is done, those of `done` unbuilt."""
    known = {(row.model, row.precision, row.path, row.target): row for row in done}
    chosen = tuple(targets) if library.ahead_of_time else ((),)
    with tempfile.TemporaryDirectory(prefix="bilateral-matrix-") as folder:
        for name, precision in itertools.product(models, precisions):
            onnx = Path(folder) / f"{name}_{precision}.onnx"
            for path, target in itertools.product(paths, chosen):
                if row := known.get((name, precision, path, target_text(target))):
                    yield row
                    continue
                if not onnx.exists():
                    export_onnx(_fresh(name), onnx, precision=precision)
                yield _row(name, precision, path, target, onnx, library)
            for file in onnx.parent.glob(f"{onnx.name}*"):
                file.unlink()


def target_text(targets: Targets) -> str:
    """Such as "sm_86+120"; "this GPU" where none is named."""
    return f"sm_{'+'.join(map(str, targets))}" if targets else "this GPU"


def _row(
    name: str,
    precision: Precision,
    path: AttentionBy,
    target: Targets,
    onnx: Path,
    library: Library,
) -> Row:
    plan = onnx.with_suffix(".plan")
    options = BuildOptions(attention=path, targets=target)
    family, where = named(name).family, target_text(target)
    try:
        manifest = build_plan(onnx, plan, options, library=library)
    except UserError as error:
        return Row(name, family, precision, path, where, False, reason=error.problem)
    finally:
        plan.unlink(missing_ok=True)
    return Row(
        model=name,
        family=family,
        precision=precision,
        path=path,
        target=where,
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
    """The table; one line for each model, precision and path, sizes and seconds over its GPUs."""
    lines = [
        "# TensorRT build matrix",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "Attention: how many of its nodes became one fused kernel of TensorRT's, or run through the"
        " plugin. MB and seconds: the least and the most over the plans for one GPU, then the plan"
        " for several.",
        "",
        "| model | precision | attention by | built for | attention | MB | seconds |",
        "|---|---|---|---|---|---:|---:|",
    ]
    for (model, precision, path), group in itertools.groupby(
        rows, lambda row: (row.model, row.precision, row.path)
    ):
        built = [row for row in group if row.built]
        if built:
            lines.append(
                f"| {model} | {precision} | {path} | {', '.join(row.target for row in built)} |"
                f" {', '.join(dict.fromkeys(map(_attention_text, built)))} |"
                f" {_spread([(row.target, row.bytes / 1e6) for row in built])} |"
                f" {_spread([(row.target, row.seconds) for row in built])} |"
            )
    refused: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if not row.built:
            refused.setdefault((row.precision, row.path, row.target), []).append(row)
    if refused:
        lines += ["", "Not built:", ""]
    for (precision, path, target), left in refused.items():
        names = ", ".join(row.model for row in left)
        lines.append(f"- {precision}, {path}, for {target} ({names}): {left[0].reason}")
    return "\n".join(lines) + "\n"


def _attention_text(row: Row) -> str:
    if row.path == "plugin":
        return f"{row.through_plugin} of {row.attention} through the plugin"
    fused = "?" if row.fused is None else str(row.fused)
    return f"{fused} of {row.attention} fused"


def _spread(values: Sequence[tuple[str, float]]) -> str:
    """Least and most over the plans for one GPU, then those for several."""
    single = [value for target, value in values if "+" not in target]
    ends = dict.fromkeys(f"{end:.1f}" for end in (min(single), max(single))) if single else {}
    several = [f"{value:.1f}" for target, value in values if "+" in target]
    return "; ".join(text for text in (" to ".join(ends), *several) if text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, print each row, write both files; 1 when a build for an Ampere GPU or later failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.studies.build_matrix", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--precisions", nargs="+", default=list(get_args(Precision)), choices=get_args(Precision)
    )
    parser.add_argument(
        "--paths", nargs="+", default=list(get_args(AttentionBy)), choices=get_args(AttentionBy)
    )
    parser.add_argument(
        "--sm",
        type=_targets,
        nargs="+",
        default=list(TARGETS),
        help="GPUs, one plan for each; 80,86 is one plan for two",
    )
    parser.add_argument("--fresh", action="store_true", help="build again what is there")
    options = parser.parse_args(arguments)
    try:
        library = load_library()
        about = _about(library)
        done = () if options.fresh else _done(options.out / f"{NAME}.json", about)
        rows: list[Row] = []
        for row in build_matrix(
            options.models, options.precisions, options.paths, options.sm, library, done
        ):
            rows.append(row)
            if row not in done:
                print(json.dumps(asdict(row)), flush=True)
                others = [old for old in done if old not in rows]
                document = {"about": about, "rows": [asdict(row) for row in [*rows, *others]]}
                write_text(options.out / f"{NAME}.json", json.dumps(document, indent=1) + "\n")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    write_text(options.out / f"{NAME}.md", as_markdown(rows, about))
    return 0 if all(row.built for row in rows if "sm_75" not in row.target) else 1


def _targets(text: str) -> Targets:
    return tuple(int(sm) for sm in text.split(","))


def _done(path: Path, about: dict[str, str]) -> tuple[Row, ...]:
    """The rows of an earlier run with the same library, plugin and machine.

    Raises:
        UserError: The file is something else.
    """
    if not path.is_file():
        return ()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        same = document["about"] == about
        return tuple(Row(**row) for row in document["rows"]) if same else ()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold rows of this command", "Give --fresh, or another --out."
        ) from error


def _about(library: Library) -> dict[str, str]:
    plugin = find_plugin()
    about = {
        "command": "python -m bilateral_benchmarks.studies.build_matrix",
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
