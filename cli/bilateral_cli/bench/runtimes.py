"""`bilateral bench runtimes`, `ablation`, `growth` and `tiles`: comparisons in process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import BatchOption, OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption
from bilateral_cli.options import numbers

if TYPE_CHECKING:
    from bilateral_benchmarks.experiments.comparison import Comparison


@bench.command()
def runtimes(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a known model's name.")],
    batch: BatchOption = 1,
    image_size: Annotated[int | None, typer.Option(help="With a name: another image size.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of every runtime, interleaved.")] = 15,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile.")] = True,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Compare torch, ONNX Runtime, OpenVINO and TensorRT on one model in process, interleaved.

    Example: bilateral bench runtimes deit_bilateral_small_patch16_224
    """
    from bilateral_benchmarks.experiments.contenders import usual_contenders

    def contenders(*args: Any) -> list[Any]:
        return list(usual_contenders(*args, compiled=compiled))

    found = _compare(checkpoint, image_size, batch, rounds, contenders, False, "runtimes")
    finish(found, found.title, output, json)


@bench.command()
def ablation(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a known model's name.")],
    batch: BatchOption = 1,
    image_size: Annotated[int | None, typer.Option(help="With a name: another image size.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of every form, interleaved.")] = 15,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the forms of one model's attention: latency, memory and parity side by side.

    Example: bilateral bench ablation export/checkpoints/digits_bilateral.safetensors
    """
    from bilateral_benchmarks.experiments.contenders import attention_forms

    def contenders(*args: Any) -> list[Any]:
        return list(attention_forms(*args))

    found = _compare(checkpoint, image_size, batch, rounds, contenders, True, "forms")
    finish(found, found.title, output, json)


@bench.command()
def growth(
    lengths: Annotated[str, typer.Option(help="Numbers of tokens.")] = "1025,2026,4097,8101",
    seconds: Annotated[float, typer.Option(help="For each point.")] = 1.0,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure attention's time and peak memory against length, batch and depth.

    The exponents have intervals from three sizes on. Tiles need a class token and a full grid, such
    as 1025 = 1 + 32 x 32 tokens.

    Example: bilateral bench growth --lengths 1025,4097,16385
    """
    from bilateral_benchmarks.experiments.scaling import measure_scaling

    # A class token and one patch.
    sizes = [int(value) for value in numbers(lengths, whole=True, least=2)]
    with experiment() as shown:
        found = measure_scaling(sizes, seconds=seconds, on_point=shown.step)
    finish(found, "Growth of attention", output, json)


@bench.command()
def tiles(
    lengths: Annotated[str, typer.Option(help="Numbers of tokens.")] = "4097,16385",
    rounds: Annotated[int, typer.Option(min=1, help="Of both forms, interleaved.")] = 6,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Compare attention in tiles with dense attention by bandwidth, interleaved.

    Example: bilateral bench tiles --lengths 16385
    """
    from bilateral_benchmarks.experiments.tile_speed import measure_tile_speed

    # A class token and one patch.
    sizes = [int(value) for value in numbers(lengths, whole=True, least=2)]
    with experiment() as shown:
        found = measure_tile_speed(sizes, rounds=rounds, on_step=shown.step)
    finish(found, "Attention in tiles", output, json)


def _compare(
    source: str,
    image_size: int | None,
    batch: int,
    rounds: int,
    contenders: Callable[..., list[Any]],
    memory: bool,
    what: str,
) -> Comparison:
    """Export a checkpoint and compare contenders on it."""
    from bilateral_benchmarks.experiments.comparison import run_comparison
    from bilateral_benchmarks.experiments.contenders import checkpoint_of, goals_of
    from bilateral_export.graph.export import export_onnx

    with experiment() as shown, tempfile.TemporaryDirectory() as scratch:
        shown.step("Exporting")
        folder = Path(scratch)
        checkpoint = checkpoint_of(source, folder, image_size)
        exported = folder / "exported.onnx"
        export_onnx(checkpoint, exported)
        return run_comparison(
            f"{checkpoint.card.name}, {what}",
            checkpoint,
            exported,
            contenders(checkpoint, exported, folder),
            batch=batch,
            rounds=rounds,
            memory=memory,
            goals=goals_of(checkpoint.card.name) if what == "runtimes" and batch == 1 else (),
            on_step=shown.step,
            on_round=shown.blocks,
        )
