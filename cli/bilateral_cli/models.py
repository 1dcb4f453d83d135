"""`bilateral models`: the known configurations."""

from __future__ import annotations

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, out, print_json, table


@app.command()
def models(json: JsonOption = False) -> None:
    """List the models this package knows by name, with their sizes."""
    import torch

    from bilateral_export.models.registry import MODELS, build

    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in build(config).parameters())
            for name, config in MODELS.items()
        }
    if json:
        print_json(
            {
                name: config.model_dump(mode="json") | {"parameters": counts[name]}
                for name, config in MODELS.items()
            }
        )
        return
    rows = [(name, config.family, f"{counts[name]:,}") for name, config in MODELS.items()]
    listing = table(["model", "family", ">parameters"], rows)
    for column in listing.columns:
        # Whole even where the terminal is narrower: cut names cannot be distinguished, nor copied.
        column.min_width = max(len(str(cell)) for cell in column.cells)
    out.print(listing, crop=False)
