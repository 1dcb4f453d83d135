"""`bilateral score`: how probable a served language model finds texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_URL, JsonOption, ServersOption, out, print_json, table

if TYPE_CHECKING:
    from bilateral_serving.language import Score


@app.command()
def score(
    name: Annotated[str, typer.Argument(help="The served language model.")],
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text files of any length.")],
    url: ServersOption = DEFAULT_URL,
    timeout: Annotated[float, typer.Option(help="Deadline of each text, in seconds.")] = 60.0,
    json: JsonOption = False,
) -> None:
    """Print the log-likelihood and the perplexity of texts; with --json, of every word.

    The model is one that was added to the repository with --stream.

    Example: bilateral score pydoc export/checkpoints/pydoc_heldout.txt
    """
    from bilateral_serving.client import Client
    from bilateral_serving.client.inputs.files import read_text

    with Client(url, timeout_s=timeout) as client:
        scores = [(path, client.score(name, read_text(path))) for path in files]
    if json:
        print_json([_as_json(path, scored) for path, scored in scores])
        return
    rows = [
        (path, len(scored.words), f"{scored.log_likelihood:.2f}", f"{scored.perplexity:.2f}")
        for path, scored in scores
    ]
    out.print(table(["file", ">words", ">log-likelihood", ">perplexity"], rows))


def _as_json(path: Path, scored: Score) -> dict[str, Any]:
    return {
        "file": str(path),
        "log_likelihood": scored.log_likelihood,
        "perplexity": scored.perplexity,
        "words": [vars(word) for word in scored.words],
    }
