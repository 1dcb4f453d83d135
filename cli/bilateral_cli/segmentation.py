"""What `bilateral infer` does with a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bilateral_cli.console import out, print_json, table

if TYPE_CHECKING:
    from bilateral_export.metadata import ArtifactMetadata
    from bilateral_serving.client import Client


def segment(
    client: Client,
    name: str,
    files: Sequence[Path],
    about: ArtifactMetadata,
    overlay: Path | None,
    top: int,
    json: bool,
) -> None:
    """Print the classes of images and write their pictures."""
    from bilateral_serving.client.inputs.segmentation import overlay_paths, save_overlay, shares

    pictures = overlay_paths(files, overlay) if overlay else [None] * len(files)
    rows, documents = [], []
    for path, picture, classes in zip(files, pictures, client.segment(name, files), strict=True):
        found = [
            {"label": about.labels[number] if about.labels else str(number), "share": share}
            for number, share in shares(classes)[:top]
        ]
        if picture:
            save_overlay(path, classes, about, picture)
        documents.append({"input": str(path), "overlay": picture, "classes": found})
        rows += [
            (path if rank == 0 else "", one["label"], f"{one['share']:.1%}")
            for rank, one in enumerate(found)
        ]
    if json:
        print_json(documents)
        return
    out.print(table(["input", "label", ">pixels"], rows))
    if overlay:
        out.print(f"Pictures: {', '.join(str(d['overlay']) for d in documents)}", soft_wrap=True)
