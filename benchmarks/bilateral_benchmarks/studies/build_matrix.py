"""The TensorRT build matrix: families, precisions, with and without the plugin, by GPU.

Weights are random: what is built depends on the graph alone. TensorRT for RTX needs no GPU; a full
TensorRT builds for the GPU it runs on.
"""

from __future__ import annotations

import itertools
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

from bilateral_benchmarks.report.files import read, write_json, write_pages
from bilateral_benchmarks.report.machine import Machine
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import Library, load_library
from bilateral_export.engine.installation.plugin import find_plugin, plugin_contents
from bilateral_export.engine.options import BuildOptions
from bilateral_export.errors import UserError
from bilateral_export.files import sha256
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
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PATHS: tuple[AttentionBy, ...] = get_args(AttentionBy)
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
    """Return a name such as "sm_86+120"; "this GPU" where none is named."""
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
    """Return a known model with random weights, always the same."""
    torch.manual_seed(0)
    config = named(name)
    state = dict(build(config).state_dict())
    return Checkpoint(Path(name), "0" * 64, CheckpointCard(name=name, model=config), state)


class BuildMatrix(Result):
    """Every build of one library, plugin and machine; `about` names them."""

    page_title: ClassVar[str] = "TensorRT build matrix"
    page_text: ClassVar[str] = (
        "Attention: how many of its nodes became one fused kernel of TensorRT's, or run through the"
        " plugin. MB and seconds: the least and the most over the plans for one GPU, then the plan"
        " for several."
    )

    kind: Literal["build-matrix"] = "build-matrix"
    about: dict[str, str]
    rows: tuple[Row, ...]

    def facts(self) -> list[str]:
        """Return what was built with and where."""
        return [f"{key}: {value}" for key, value in self.about.items()]

    @property
    def passed(self) -> bool:
        """Whether everything was built for Ampere GPUs and later."""
        return all(row.built for row in self.rows if "sm_75" not in row.target)

    def tables(self) -> list[Table]:
        """Return a row for each model, precision and path, over its GPUs."""
        rows = []
        for keys, group in itertools.groupby(
            self.rows, lambda row: (row.model, row.precision, row.path)
        ):
            if built := [row for row in group if row.built]:
                rows.append(
                    (
                        *keys,
                        ", ".join(row.target for row in built),
                        ", ".join(dict.fromkeys(map(_attention_text, built))),
                        _spread([(row.target, row.bytes / 1e6) for row in built]),
                        _spread([(row.target, row.seconds) for row in built]),
                    )
                )
        refused: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            if not row.built:
                refused.setdefault((row.precision, row.path, row.target), []).append(row)
        notes = tuple(
            f"- {precision}, {path}, for {target} ({', '.join(row.model for row in left)}):"
            f" {left[0].reason}"
            for (precision, path, target), left in refused.items()
        )
        columns = (
            "model",
            "precision",
            "attention by",
            "built for",
            "attention",
            ">MB",
            ">seconds",
        )
        return [Table("Built", columns, tuple(rows), ("Not built:", *notes) if notes else ())]


def run_matrix(
    models: Sequence[str],
    precisions: Sequence[Precision],
    paths: Sequence[AttentionBy],
    targets: Sequence[Targets],
    folder: Path,
    *,
    fresh: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
) -> BuildMatrix:
    """Build each combination, write tensorrt-build-matrix.json, .md and .html, return the rows.

    The JSON file is written after each build; what an earlier run with the same library, plugin and
    machine built is not built again.

    Args:
        models: Names of known models.
        precisions: Of their graphs.
        paths: What runs attention.
        targets: GPUs, one plan for each entry.
        folder: For the files.
        fresh: Build again what is there.
        on_row: Called with each new row.

    Raises:
        UserError: The library is missing, or the JSON file is something else.
    """
    library = load_library()
    about = _about(library)
    path = folder / f"{NAME}.json"
    done: tuple[Row, ...] = ()
    if path.is_file() and not fresh:
        problem, fix = "does not hold rows of this command", "Give --fresh, or another --out."
        earlier = read(BuildMatrix, path, problem, fix)
        # The command may be written in another way; what decides a build may not differ.
        done = earlier.rows if _same(earlier.about, about) else ()
    rows: list[Row] = []
    for row in build_matrix(models, precisions, paths, targets, library, done):
        rows.append(row)
        if row not in done:
            on_row(row)
            others = [old for old in done if old not in rows]
            write_json(BuildMatrix(about=about, rows=(*rows, *others)), path)
    found = BuildMatrix(about=about, rows=tuple(rows))
    write_pages(found, path)
    return found


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return one | {"command": ""} == other | {"command": ""}


def _attention_text(row: Row) -> str:
    if row.path == "plugin":
        return f"{row.through_plugin} of {row.attention} through the plugin"
    fused = "?" if row.fused is None else str(row.fused)
    return f"{fused} of {row.attention} fused"


def _spread(values: Sequence[tuple[str, float]]) -> str:
    """Return the least and the most over the plans for one GPU, then those for several."""
    single = [value for target, value in values if "+" not in target]
    ends = dict.fromkeys(f"{end:.1f}" for end in (min(single), max(single))) if single else {}
    several = [f"{value:.1f}" for target, value in values if "+" in target]
    return "; ".join(text for text in (" to ".join(ends), *several) if text)


def _about(library: Library) -> dict[str, str]:
    plugin = find_plugin()
    about = {
        "command": "bilateral study build-matrix",
        "library": f"{library.name} {library.version}",
        "machine": f"{Machine.here().cpu}, {os.cpu_count()} cores, {platform.system()}",
    }
    if plugin is not None:
        contents = plugin_contents(plugin)
        targets = ", ".join(f"sm_{target}" for target in contents.targets)
        about["plugin"] = f"{contents.kernels} kernels for {targets}; SHA-256 {sha256(plugin)[:16]}"
    return about
