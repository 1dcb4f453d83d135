"""`bilateral generate`: streaming text generation by a served language model."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption, out, print_json


@app.command()
def generate(
    name: Annotated[str, typer.Argument(help="The served language model.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; may be empty.")] = "",
    url: UrlOption = DEFAULT_URL,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of words.")] = 50,
    temperature: Annotated[
        float,
        typer.Option(help="0 takes the most probable word; 1 samples from the model."),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Sample from the k most probable words; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most probable words with this total probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same words.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop at this text; may be repeated.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Deadline for the whole text, in seconds.")] = 60.0,
    json: JsonOption = False,
) -> None:
    """Continue a text with a served language model and print each word when it arrives.

    The model must have been added to the repository with --stream.

    Example: bilateral generate pydoc "The class" --max-tokens 30 --top-k 20
    """
    from bilateral_serving.client import Client

    with (
        Client(url, timeout_s=timeout) as client,
        # Closed also on Ctrl-C, so that the server stops its work.
        closing(
            client.generate(
                name,
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                stop=stop or (),
            )
        ) as words,
    ):
        if json:
            print_json({"prompt": prompt, "words": [vars(word) for word in words]})
            return
        out.print(prompt, end="", style="dim")
        try:
            for word in words:
                out.print(word.text, end="")
        finally:  # also before an error or the shell's prompt
            out.print()
