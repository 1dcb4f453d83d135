"""`bilateral bench language`: streams of words, one and several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption


@bench.command()
def language(
    model: Annotated[
        str, typer.Argument(help="A language model of `bilateral models`.")
    ] = "wikitext103_bilateral_small",
    checkpoints: Annotated[
        Path, typer.Option(help="Directory of trained weights; without them they are random.")
    ] = Path("export/checkpoints"),
    streams: Annotated[int, typer.Option(min=2, help="Streams at once, against one.")] = 8,
    words: Annotated[int, typer.Option(min=2, help="Words of each stream.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 6,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure time to first word and words a second, served and in process.

    The contenders are the served model, eager torch, and ONNX Runtime with a static key/value
    cache. Classifiers of 4,000 tokens follow, against eager torch. `bilateral bench compare` says
    from six rounds on whether a later version writes fewer words a second.

    Example: bilateral bench language --output benchmarks/results/language.json
    """
    from bilateral_benchmarks.experiments.language import measure_language

    with experiment() as shown:
        found = measure_language(
            model,
            checkpoints=checkpoints,
            streams=(1, streams),
            words=words,
            rounds=rounds,
            on_step=shown.step,
        )
    finish(found, f"Streams of {found.model}", output, json)
